"""Data, weights and tokenizer are part of what a folder of results is of."""

import json
import shutil
from pathlib import Path

import pytest
from record_cases import record, write_runs

from lrdist_keras import config
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory import comparison
from lrdist_keras.laboratory.inputs import Input, check_inputs, save_inputs
from lrdist_keras.search import search


def test_a_change_is_named_with_its_source_and_both_digests(tmp_path, capsys):
    old = {"weights": Input("bert", "a" * 64), "train of 'x'": Input("x.csv", "b" * 64)}
    save_inputs(tmp_path, old)
    check_inputs(tmp_path, old, has_results=True)
    moved = old | {"weights": Input("elsewhere/bert", "a" * 64)}
    check_inputs(tmp_path, moved, has_results=True)  # the same content
    new = {"weights": Input("bert", "a" * 64), "train of 'x'": Input("y.csv", "c" * 64)}
    check_inputs(tmp_path, new, has_results=False)
    with pytest.raises(InputError) as error:
        check_inputs(tmp_path, new, has_results=True)
    for told in ("train of 'x' (x.csv, y.csv)", "bbbbbbbbbbbb…", "cccccccccccc…"):
        assert told in str(error.value)
    assert "weights" not in str(error.value)
    more = old | {"text of arm 'y'": Input("y.txt", "d" * 64)}
    with pytest.raises(InputError, match="text of arm 'y'.*none"):
        check_inputs(tmp_path, more, has_results=True)
    assert capsys.readouterr().err == ""


def test_digests_that_are_missing_or_damaged(tmp_path, capsys):
    check_inputs(tmp_path, {}, has_results=True)
    assert "kept no digests" in capsys.readouterr().err
    for damage in ("", "[]", "{", '{"a": 1}', '{"a": {"source": "x"}}', "[" * 10**5):
        (tmp_path / "inputs.json").write_text(damage)
        with pytest.raises(InputError, match=r"inputs.json is damaged.*Remove it"):
            check_inputs(tmp_path, {}, has_results=True)


@pytest.fixture
def own(tmp_path, toml, tables, tiny_preset):
    """A configuration whose files may be changed; returns where they lie."""
    data = shutil.copytree(tables, tmp_path / "tables")
    preset = shutil.copytree(tiny_preset, tmp_path / "model")
    text = toml.replace(str(tables), str(data)).replace(str(tiny_preset), str(preset))
    text = text.replace('"kenneweg2022"', f'"{data}/rates.json"')
    from lrdist_keras.distribution import kenneweg2022

    kenneweg2022().save(data / "rates.json")
    (tmp_path / "c.toml").write_text(text)
    return data, preset


def labels_swapped(path):
    text = path.read_text()
    text = text.replace("positive", "?").replace("negative", "positive")
    path.write_text(text.replace("?", "negative"))


def one_rate_changed(path):
    content = json.loads(path.read_text())
    content["rates"]["head"] *= 1.5
    path.write_text(json.dumps(content))


def one_weight_changed(path):
    import h5py

    with h5py.File(path, "r+") as file:
        file["layers/embedding/vars/0"][0, 0] += 1e-3


CHANGES = {
    "validation examples of 'first'": ("first_validation.csv", labels_swapped),
    "train examples of 'second'": ("second.csv", labels_swapped),
    "learning rates of arm 'kenneweg'": ("rates.json", one_rate_changed),
    "weights of the model": ("../model/model.weights.h5", one_weight_changed),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_comparison_on_other_inputs_is_refused(own, tmp_path, what):
    data, _ = own
    configuration, folder = config.load(tmp_path / "c.toml"), tmp_path / "out"
    comparison.prepare(configuration, folder)
    file, change = CHANGES[what]
    shutil.copy(data / file, tmp_path / "old")
    change(data / file)
    comparison.prepare(configuration, folder)  # nothing has run yet
    shutil.copy(tmp_path / "old", data / file)
    comparison.prepare(configuration, folder)
    write_runs(folder, record("flat", sequence="first -> second"))
    comparison.prepare(configuration, folder)
    change(data / file)
    with pytest.raises(InputError, match=f"Changed: {what} \\("):
        comparison.prepare(configuration, folder)
    assert "runs.jsonl" in {p.name for p in Path(folder).iterdir()}


def test_a_search_on_other_data_is_refused_and_its_workers_know(own, tmp_path):
    data, _ = own
    configuration, folder = config.load(tmp_path / "c.toml"), tmp_path / "out"

    def fingerprint():
        space = search.prepare(configuration, folder).oracle.hyperparameters
        return space.get("tuner/configuration")

    first = fingerprint()
    assert fingerprint() == first
    (folder / "search").mkdir()
    (folder / "search" / "oracle.json").write_text("{}")
    labels_swapped(data / "first.csv")
    with pytest.raises(InputError, match="Changed: train examples of 'first'"):
        search.prepare(configuration, folder)
    shutil.rmtree(folder)
    assert fingerprint() != first


def test_a_failed_start_leaves_no_folder(own, tmp_path):
    data, _ = own
    (data / "second.csv").unlink()
    configuration, folder = config.load(tmp_path / "c.toml"), tmp_path / "runs" / "out"
    for prepare in (comparison.prepare, search.prepare):
        with pytest.raises(FileNotFoundError):
            prepare(configuration, folder)
        assert not (tmp_path / "runs").exists()


def test_what_an_arm_cannot_do_is_said_before_any_is_trained(own, tmp_path):
    memory = 'arms.flat={name="flat", rate=1e-3, strategy="replay", %s}'
    configuration = config.load(
        tmp_path / "c.toml", [memory % "examples_per_class=100"]
    )
    with pytest.raises(InputError, match="Arm 'flat': `examples_per_class` must be"):
        comparison.prepare(configuration, tmp_path / "out")
    pull = 'arms.flat={name="flat", rate=1.0, strategy="recadam"}'
    with pytest.raises(InputError, match="Arm 'flat': largest learning rate x"):
        comparison.prepare(config.load(tmp_path / "c.toml", [pull]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
