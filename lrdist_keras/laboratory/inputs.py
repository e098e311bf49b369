"""What the numbers of a folder depend on beside its configuration, as digests."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from lrdist_keras._storage import digest, digest_of_file, write_text
from lrdist_keras.config import ArmSettings, Configuration
from lrdist_keras.data.splits import Split, Task
from lrdist_keras.data.tokenizer import Tokenizer
from lrdist_keras.distribution import get
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory.arms import files_of
from lrdist_keras.models.encoder import Encoder
from lrdist_keras.strict_json import parse_json

_NAME = "inputs.json"


@dataclass(frozen=True)
class Input:
    """One input, such as the validation examples of a task.

    Args:
        source: Where it is from: a file, a folder, a name.
        sha256: The digest of its content.
    """

    source: str
    sha256: str


def inputs_of(
    configuration: Configuration,
    encoder: Encoder,
    tokenizer: Tokenizer,
    tasks: Mapping[str, Task],
    arms: Iterable[ArmSettings] = (),
    given: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Input]:
    """Returns the inputs of a comparison or a search, by what they are.

    Args:
        configuration: Where they are from.
        encoder: The pretrained encoder.
        tokenizer: Its tokenizer.
        tasks: The tasks, as their sources have them.
        arms: The arms whose distributions and texts count.
        given: Digests of the models that have learned a task already, by its name.

    Raises:
        OSError: If a file is gone.
    """
    preset = configuration.model.preset
    found = {
        "weights of the model": Input(preset, encoder.digest),
        "its tokenizer": Input(preset, digest(tokenizer.identity)),
    }
    for name, task in tasks.items():
        settings = configuration.task(name)
        for split, data in task.splits.items():
            source = getattr(settings, split, None) or settings.train or task.source
            content = digest(*task.class_names, *_columns(data), data.labels)
            found[f"{split} examples of '{name}'"] = Input(source, content)
    for name, content in given.items():
        source = configuration.task(name).trained or name
        found[f"trained model of '{name}'"] = Input(source, content)
    if configuration.first is not None:
        for name in files_of(configuration.first):
            rates = json.dumps(get(name).to_json()["rates"])
            found["learning rates of [first]"] = Input(name, digest(rates))
    for arm in arms:
        for i, name in enumerate(files_of(arm), start=1):
            rates = json.dumps(get(name).to_json()["rates"])
            of_task = f", task {i}" if isinstance(arm.distribution, list) else ""
            what = f"learning rates of arm '{arm.name}'{of_task}"
            found[what] = Input(name, digest(rates))
        for file in arm.strategy.files:
            path = Path(configuration.data.dir) / file
            text = digest_of_file(path)
            found[f"text of arm '{arm.name}'"] = Input(str(path), text)
    return found


def _columns(data: Split) -> Iterator[str]:
    """Each column of texts as one, with the lengths that tell where one ends."""
    for column in data.texts:
        yield json.dumps([len(text) for text in column])
        yield "".join(column)


def check_inputs(folder: Path, found: Mapping[str, Input], has_results: bool) -> None:
    """Checks that the inputs are those of the results that lie in the folder.

    Args:
        folder: Folder of a comparison or a search.
        found: Its inputs now, by what they are.
        has_results: Whether there are results.

    Raises:
        InputError: If an input is another; the message names each with its source and
            both digests.
    """
    path = folder / _NAME
    if not has_results:
        return
    if not path.is_file():
        print(
            f"lrdist: warning: the results in '{folder}' are of a version that kept no "
            "digests of data and weights; that they are the same cannot be checked.",
            file=sys.stderr,
        )
        return
    try:
        then = {
            name: Input(str(entry["source"]), str(entry["sha256"]))
            for name, entry in parse_json(path.read_bytes()).items()
        }
    except (InputError, AttributeError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is damaged: {error}. Remove it if data and weights are still "
            "those of the results in the folder; else name another with --out."
        ) from None
    changed = [
        _change(name, then.get(name), found.get(name))
        for name in dict.fromkeys([*then, *found])
        if _sha256(then.get(name)) != _sha256(found.get(name))
    ]
    if changed:
        raise InputError(
            f"The inputs are not those of the results in '{folder}'; bring the old "
            "ones back, or name another folder with --out. Changed: "
            + "; ".join(changed)
        )


def save_inputs(folder: Path, found: Mapping[str, Input]) -> None:
    """Writes `inputs.json`."""
    content = {name: asdict(entry) for name, entry in found.items()}
    write_text(folder / _NAME, json.dumps(content, indent=2) + "\n")


def _sha256(entry: Input | None) -> str | None:
    return None if entry is None else entry.sha256


def _change(name: str, then: Input | None, now: Input | None) -> str:
    sources = dict.fromkeys(e.source for e in (then, now) if e is not None)
    before, after = ("none" if e is None else e.sha256[:12] for e in (then, now))
    return f"{name} ({', '.join(sources)}): SHA-256 {before}… then, {after}… now"
