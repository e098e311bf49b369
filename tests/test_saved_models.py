"""From a run to a folder that answers raw text, and from there to the next task."""

import json
import subprocess
import sys
from typing import get_args

import keras
import numpy as np
import pytest
from conftest import sentiment
from typer.testing import CliRunner

from lrdist_keras import config, load_classifier
from lrdist_keras.cli import app
from lrdist_keras.data.local_files import load_files
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory import comparison, model_card, training
from lrdist_keras.models.saved import SavedModel, read_saved
from lrdist_keras.settings import ModelSettings

ARMS = 'arms=[{name="flat", rate=1e-2}, {name="ewc", rate=1e-2, strategy="ewc"}]'
NO_MEASURES = (
    "measures={forward_transfer=false, probe=false, similarity=false, drift=false}"
)


def nothing(*arguments):
    return None


@pytest.fixture(scope="module")
def toml_file(tmp_path_factory, tiny_preset, tables):
    """A configuration of two tasks, in float32."""
    folder = tmp_path_factory.mktemp("configuration")

    def toml_file(name="c.toml", preset=tiny_preset, model="", first=""):
        (folder / name).write_text(
            f"""
name = "small"
[model]
preset = "{preset}"
precision = "float32"
{model}
[data]
dir = "{tables}"
cache = "{folder / "cache"}"
[training]
epochs = 2
batch_size = 8
max_length = 32
steps_per_call = 4
curve_points = 0
[[tasks]]
name = "first"
source = "files"
validation = "first_validation.csv"
text = "text"
label = "label"
{first or 'train = "first.csv"'}
[[tasks]]
name = "second"
source = "files"
train = "second.csv"
validation = "second_validation.csv"
text = "text"
label = "label"
[[sequences]]
tasks = ["first", "second"]
[[arms]]
name = "flat"
rate = 1e-2
[[arms]]
name = "ewc"
rate = 1e-2
strategy = "ewc"
"""
        )
        return folder / name

    return toml_file


@pytest.fixture(scope="module")
def saved(toml_file, tmp_path_factory):
    """A folder of `lrdist train`, and what was printed."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    command = ["train", str(toml_file()), "--arm", "flat", "--out", str(folder)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return folder, result.output


@pytest.fixture(scope="module")
def pooled(toml_file, tmp_path_factory):
    """A folder of a model with a pooler, and its configuration."""
    folder = tmp_path_factory.mktemp("trained") / "pooled"
    path = toml_file("pooled.toml", model="pooler = true")
    command = ["train", str(path), "--arm", "flat", "--out", str(folder)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return folder, path


def validation_of(path, name):
    settings = config.load(path, ())
    task = load_files(settings.task(name), path.parent / settings.data.dir)
    split = task.splits["validation"]
    return list(split.texts[0]), [task.class_names[i] for i in split.labels]


def test_three_lines_answer_raw_text_as_reported(saved, toml_file):
    folder, output = saved
    entries = {task.name: task for task in read_saved(folder).tasks}
    for name in ("first", "second"):
        classifier = load_classifier(folder, name)
        texts, labels = validation_of(toml_file(), name)
        found = classifier.predict(texts)
        accuracy = np.mean([a == b for a, b in zip(found, labels, strict=True)])
        assert accuracy == entries[name].accuracy
    assert output.startswith("Trained one model, and its accuracies are: 'first' 0.")
    assert "right after" in output and "Saved:" in output
    card = (folder / "README.md").read_text()
    assert "| first | 40 |" in card and "load_classifier" in card
    assert "without a pooler" in card and "| head | 0.01 | 0.01 |" in card
    again = json.loads((folder / "model.json").read_text())
    assert again["inputs"]["weights of the model"]["sha256"]


def test_the_run_is_the_same_in_a_comparison(saved, toml_file, tmp_path):
    configuration = config.load(toml_file(), [NO_MEASURES])
    prepared = comparison.prepare(configuration, tmp_path / "out")
    (record, _) = prepared.run(nothing, nothing, nothing)
    entries = read_saved(saved[0]).tasks
    assert record["accuracy"][1] == [task.accuracy for task in entries]
    assert record["a1"] == entries[0].accuracy_after


def test_a_new_process_without_the_laboratory_in_it_answers(saved):
    code = (
        "import sys; from lrdist_keras import load_classifier;"
        "c = load_classifier(sys.argv[1], 'second');"
        "print(c.predict(['good good good film is was', 'a bad bad bad film']))"
    )
    given = [sys.executable, "-W", "ignore", "-c", code, str(saved[0])]
    found = subprocess.run(given, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert eval(found.stdout) == load_classifier(saved[0], "second").predict(
        ["good good good film is was", "a bad bad bad film"]
    )


def test_kerashub_loads_the_preset_of_a_model_with_a_pooler(pooled):
    import keras_hub

    folder, path = pooled
    saved = read_saved(folder)
    assert saved.pooler and [task.preset for task in saved.tasks] == [
        "1-first",
        "2-second",
    ]
    task = keras_hub.models.TextClassifier.from_preset(
        str(folder / "2-second"), preprocessor=None
    )
    classifier = load_classifier(folder, "second")
    texts, _ = validation_of(path, "second")
    data = classifier._encoded(texts)
    inputs = data.arrays(np.arange(len(data)), 32)
    names = [tensor.name for tensor in task.inputs]
    found = task.predict_on_batch({name: inputs[name] for name in names})
    expected = classifier.logits(texts)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["folder", "keras", "preset"])
def test_a_trained_model_begins_a_sequence(pooled, toml_file, tmp_path, kind, capsys):
    folder, _ = pooled
    places = {
        "folder": folder,
        "keras": folder / "1-first.keras",
        "preset": folder / "1-first",
    }
    names = "" if kind == "folder" else '\nclass_names = ["negative", "positive"]'
    path = toml_file(
        f"{kind}.toml",
        model="pooler = true",
        first=f'trained = "{places[kind]}"{names}',
    )
    arms = 'arms=[{name="flat", rate=1e-2}, {name="slow", rate=1e-3}]'
    configuration = config.load(path, [arms, NO_MEASURES])
    prepared = comparison.prepare(configuration, tmp_path / "out")
    assert len(prepared.tasks["first -> second"][0].train) == 0
    records = prepared.run(nothing, nothing, nothing)
    # The file is of the end of a sequence, and so is its accuracy.
    expected = read_saved(folder).tasks[0].accuracy
    assert [record["a1"] for record in records] == [expected, expected]
    said = capsys.readouterr().err
    assert ("does not say what its classes are" in said) == (kind != "folder")


def test_training_data_is_asked_for_where_a_strategy_needs_it(pooled, toml_file):
    path = toml_file(
        "needs.toml", model="pooler = true", first=f'trained = "{pooled[0]}"'
    )
    with pytest.raises(InputError, match="Arm 'ewc': .*ewc needs the training exam"):
        comparison.prepare(config.load(path, ()), path.parent / "out")


@pytest.mark.parametrize(
    ("first", "match"),
    [
        ('trained = "/nowhere"', "there is no such file or folder"),
        ('trained = "{folder}"\nclass_names = ["a", "b"]', "label must be"),
        ('trained = "{folder}/1-first"', "the classes must be said"),
        (
            'trained = "{folder}"\nclass_names = ["positive", "negative", "neither"]',
            "the head has 2 classes.*data has 3",
        ),
        ('trained = "{tables}"', "must be a folder of `lrdist train`"),
        ('trained = "{tables}/first.csv"', "must end in `.keras`"),
        ('trained = "{folder}/1-first.keras"', "the classes must be said"),
    ],
)
def test_what_cannot_begin_a_sequence(pooled, toml_file, tables, first, match):
    first = first.format(folder=pooled[0], tables=tables)
    path = toml_file("wrong.toml", model="pooler = true", first=first)
    with pytest.raises(InputError, match=match):
        comparison.prepare(config.load(path, [ARMS]), path.parent / "out")


def test_a_model_with_a_pooler_needs_one(pooled, saved, toml_file):
    path = toml_file("without.toml", first=f'trained = "{pooled[0]}"')
    with pytest.raises(InputError, match="has a pooler.*set model.pooler = true"):
        comparison.prepare(config.load(path, [ARMS]), path.parent / "out")
    path = toml_file(
        "with.toml", model="pooler = true", first=f'trained = "{saved[0]}"'
    )
    with pytest.raises(InputError, match="no pooler, so leave out model.pooler"):
        comparison.prepare(config.load(path, [ARMS]), path.parent / "out")


def test_classes_in_another_order_are_put_in_order(pooled, toml_file, tmp_path):
    path = toml_file(
        "order.toml",
        model="pooler = true",
        first=f'trained = "{pooled[0]}"\nclass_names = ["positive", "negative"]',
    )
    arms = 'arms=[{name="flat", rate=1e-2}]'
    prepared = comparison.prepare(
        config.load(path, [arms, NO_MEASURES]), tmp_path / "out"
    )
    (record,) = prepared.run(nothing, nothing, nothing)
    assert record["a1"] == read_saved(pooled[0]).tasks[0].accuracy


def test_nothing_is_written_over(saved, toml_file):
    command = ["train", str(toml_file()), "--arm", "flat", "--out", str(saved[0])]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "new or empty" in result.output


def test_arm_and_sequence_are_asked_for(toml_file, tmp_path):
    configuration = config.load(toml_file(), ())
    with pytest.raises(InputError, match="2 arms; name one with --arm.*'flat', 'ewc'"):
        training.prepare(configuration, None, None, None, tmp_path / "x")
    with pytest.raises(InputError, match=r"--arm must be one.*mean 'flat'"):
        training.prepare(configuration, "flatt", None, None, tmp_path / "x")


@pytest.mark.parametrize("which", ["best", "all"])
def test_a_comparison_keeps_models(toml_file, tmp_path, which):
    out = tmp_path / "out"
    command = ["compare", str(toml_file()), "--out", str(out), "--save-models", which]
    overrides = ["--set", NO_MEASURES, "--set", "training.epochs=20"]
    result = CliRunner().invoke(app, [*command, *overrides])
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (out / "models").iterdir())
    results = json.loads((out / "results.json").read_text())
    rewards = [run["reward"] for run in results["runs"] if run["learned"]]
    if which == "all":
        assert names == ["0-0-0", "0-1-0"]
    else:
        assert names == ["best-0"]
        tasks = read_saved(out / "models" / "best-0").tasks
        assert sum(task.accuracy for task in tasks) == max(rewards)
    classifier = load_classifier(out / "models" / names[0], "first")
    assert set(classifier.predict(sentiment(5, 3)[0])) <= {"negative", "positive"}


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("model.json", "{", "model.json is damaged"),
        ("model.json", '{"format": 2}', "model.json is damaged: format"),
        ("1-first.keras", "no archive", "must be a model that Keras can load"),
        ("tokenizer.json", "[]", "must hold one JSON object"),
    ],
)
def test_a_damaged_folder_is_named(saved, tmp_path, file, content, match):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(saved[0], folder)
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=match):
        load_classifier(folder, "first")


def test_a_model_of_every_precision_can_be_described(saved):
    content = json.loads((saved[0] / "model.json").read_text())
    for precision in get_args(ModelSettings.model_fields["precision"].annotation):
        described = SavedModel.model_validate(content | {"precision": precision})
        assert described.precision == precision


def test_what_a_classifier_is_asked(saved):
    classifier = load_classifier(saved[0], "first")
    assert classifier.predict([]) == []
    for wrong in ("one text", [("a", "b")], [3], [None]):
        with pytest.raises(InputError, match="`texts` must be a list"):
            classifier.predict(wrong)
    with pytest.raises(InputError, match="`task` must be one of.*'first', 'second'"):
        load_classifier(saved[0])


def test_intervals_of_the_model_card():
    """Newcombe's own example of paired proportions, table III, method 10."""
    pairs = [(1, 1)] * 36 + [(1, 0)] * 12 + [(0, 1)] * 2
    pairs += [(0, 0)] * 0
    after, before = (np.array(column, bool) for column in zip(*pairs, strict=True))
    low, high = model_card.change_interval(before, after)
    assert (round(low, 4), round(high, 4)) == (0.0569, 0.3404)
    low, high = model_card.accuracy_interval(np.array([True] * 15 + [False] * 133))
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)


def test_gpt2_takes_the_last_token_in_the_file_too(tmp_path):
    """The classifier of a decoder, against the encoder that it was made of."""
    import keras_hub

    from lrdist_keras.models.classifier import keras_classifier
    from lrdist_keras.models.encoder import load_encoder

    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=20,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=16,
    )
    backbone.save_to_preset(str(tmp_path / "gpt2"))
    encoder = load_encoder(str(tmp_path / "gpt2"))
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=w.shape).astype(np.float32) for w in encoder.weights]
    head = [rng.normal(size=(8, 3)).astype(np.float32), np.ones(3, np.float32)]
    keras_classifier(encoder, weights, head).save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    inputs = {
        "token_ids": rng.integers(0, 20, (4, 8)).astype(np.int32),
        "padding_mask": (np.arange(8) < [[3], [8], [1], [5]]).astype(np.int32),
    }
    features, _ = encoder.features(weights, encoder.state, inputs, False)
    expected = np.asarray(features) @ head[0] + head[1]
    found = np.asarray(model(inputs))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
