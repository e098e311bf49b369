"""All that can be checked of a configuration without loading its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrdist_keras.config import Configuration, SequenceSettings
from lrdist_keras.data.checks import SplitSummary, summarize_split
from lrdist_keras.data.findings import Finding, errors_of
from lrdist_keras.data.splits import Task
from lrdist_keras.data.tokenizer import load_tokenizer
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory.arms import check_counts, named_distributions
from lrdist_keras.laboratory.task_data import (
    check_domain,
    check_texts,
    divide,
    encode_tasks,
    halves,
    load_texts,
    token_counts,
    with_search_slices,
)
from lrdist_keras.models.encoder import find_preset
from lrdist_keras.printable import printable
from lrdist_keras.training.run import TaskData

_TOKENS = ("min", "median", "95%", "max")


@dataclass(frozen=True)
class Check:
    """What a check found.

    Args:
        findings: What is wrong, or may be; errors first.
        summaries: What each split of each task has.
        max_length: Tokens per example at most in training.
        unchecked: Names of sequences whose parts only the model can tell.
    """

    findings: list[Finding]
    summaries: list[SplitSummary]
    max_length: int
    unchecked: list[str]

    @property
    def errors(self) -> int:
        """Number of findings that must be mended before a training."""
        return len(errors_of(self.findings))

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON can hold it, every row included."""
        return {
            "findings": [
                {
                    "level": found.level,
                    "task": found.task,
                    "sentence": found.sentence,
                    "rows": found.places,
                }
                for found in self.findings
            ],
            "splits": [
                {
                    "task": summary.task,
                    "split": summary.split,
                    "examples": summary.examples,
                    "classes": summary.classes,
                    "tokens": dict(zip(_TOKENS, summary.lengths, strict=True)),
                    "cut": summary.cut,
                }
                for summary in self.summaries
            ],
        }


def check(configuration: Configuration) -> Check:
    """Checks the tasks of all sequences, what they are divided into, and the arms.

    The tokenizer is loaded, to count tokens, but no weights. Where the configuration
    has a section `search`, the slice of the search is checked too.

    Raises:
        ValueError: If something cannot be loaded.
        OSError: If an input is missing or the cache cannot be written.
    """
    preset = find_preset(configuration.model)
    named_distributions(configuration)
    check_counts(configuration)
    names = {name for sequence in configuration.sequences for name in sequence.tasks}
    texts = load_texts(configuration, names)
    findings = check_texts(configuration, texts)
    tokenizer = load_tokenizer(preset)
    tasks = encode_tasks(configuration, texts, tokenizer)
    counts = {
        name: token_counts(configuration, task, texts[name], tokenizer)
        for name, task in tasks.items()
    }
    most = configuration.training.max_length
    summaries = [
        summarize_split(texts[name], split, found, most)
        for name, of_task in counts.items()
        for split, found in of_task.items()
        if len(found)
    ]
    for sequence in configuration.sequences:
        findings += _check_sequence(configuration, sequence, tasks, texts, counts)
    unchecked = [s.name for s in configuration.sequences if s.shift == "cluster"]
    findings.sort(key=lambda finding: finding.level != "error")
    return Check(findings, summaries, most, unchecked)


def _check_sequence(
    configuration: Configuration,
    sequence: SequenceSettings,
    tasks: Mapping[str, TaskData],
    texts: Mapping[str, Task],
    counts: Mapping[str, Mapping[str, np.ndarray]],
) -> Iterator[Finding]:
    """Finds why a sequence cannot be trained, where that is known without a model."""
    search = configuration.search
    searched = (
        "search" in configuration.model_fields_set
        and search.sequence in (None, sequence.name)
        and "report_on_tuning_split" not in configuration.compat
    )
    first = sequence.tasks[0]
    tasks = {name: tasks[name] for name in sequence.tasks}
    try:
        if sequence.shift == "domain":
            check_domain(sequence, texts)
        if sequence.shift == "length":
            tasks, texts = divide(
                tasks[first],
                texts[first],
                halves(configuration, counts[first]),
                f"The sequence '{printable(sequence.name)}'",
            )
        if searched and sequence.shift != "cluster":
            with_search_slices(configuration, tasks, texts)
    except InputError as error:
        yield Finding("error", first, str(error).removesuffix("."))
