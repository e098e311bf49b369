"""Sequence classifiers of Hugging Face as the first task, against NumPy."""

import json

import numpy as np
import pytest
from conftest import WORDS
from safetensors.numpy import load_file, save_file

from lrdist_keras import config
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory import comparison
from lrdist_keras.models.pooler import load_pooled
from lrdist_keras.models.trained import load_trained

WIDTH, INNER, LAYERS, HEADS, ROWS, POSITIONS = 8, 16, 2, 2, 40, 32
BERT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": ROWS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "hidden_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "id2label": {"0": "negative", "1": "positive"},
}
ROBERTA = {
    **BERT,
    "architectures": ["RobertaForSequenceClassification"],
    "model_type": "roberta",
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
DISTILBERT = {
    "architectures": ["DistilBertForSequenceClassification"],
    "model_type": "distilbert",
    "vocab_size": ROWS,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "dim": WIDTH,
    "hidden_dim": INNER,
    "max_position_embeddings": POSITIONS,
    "dropout": 0.1,
    "id2label": {"0": "negative", "1": "positive"},
}


def shapes_of(kind):
    """Names and shapes of a checkpoint's tensors, as the library transformers has."""

    def dense(name, inputs=WIDTH, outputs=WIDTH):
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def norm(name):
        return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}

    root = {"distilbert": "distilbert"}.get(kind, kind)
    shapes = {
        f"{root}.embeddings.word_embeddings.weight": (ROWS, WIDTH),
        f"{root}.embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
    } | norm(f"{root}.embeddings.LayerNorm")
    for i in range(LAYERS):
        if kind == "distilbert":
            layer = f"{root}.transformer.layer.{i}"
            for x in ("q_lin", "k_lin", "v_lin", "out_lin"):
                shapes |= dense(f"{layer}.attention.{x}")
            shapes |= norm(f"{layer}.sa_layer_norm")
            shapes |= norm(f"{layer}.output_layer_norm")
            shapes |= dense(f"{layer}.ffn.lin1", WIDTH, INNER)
            shapes |= dense(f"{layer}.ffn.lin2", INNER, WIDTH)
            continue
        layer = f"{root}.encoder.layer.{i}"
        for x in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= dense(f"{layer}.attention.{x}")
        shapes |= norm(f"{layer}.attention.output.LayerNorm")
        shapes |= norm(f"{layer}.output.LayerNorm")
        shapes |= dense(f"{layer}.intermediate.dense", WIDTH, INNER)
        shapes |= dense(f"{layer}.output.dense", INNER, WIDTH)
    types = f"{root}.embeddings.token_type_embeddings.weight"
    if kind == "bert":
        return (
            shapes
            | {types: (2, WIDTH)}
            | dense("bert.pooler.dense")
            | dense("classifier", WIDTH, 2)
        )
    if kind == "roberta":
        return (
            shapes
            | {types: (1, WIDTH)}
            | dense("classifier.dense")
            | dense("classifier.out_proj", WIDTH, 2)
        )
    return shapes | dense("pre_classifier") | dense("classifier", WIDTH, 2)


def checkpoint(folder, settings, **changes):
    """Writes a classifier of random weights; returns its folder."""
    folder.mkdir(parents=True)
    settings = {**settings, **changes}
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in shapes_of(settings["model_type"]).items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    words += [f"[unused{i}]" for i in range(ROWS - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return folder


def bert_logits(tensors, ids):
    """The logits of texts without padding, in NumPy and float64."""
    from scipy.special import erf

    def weight(name):
        return tensors[f"bert.{name}"].astype(float)

    def dense(x, name):
        return x @ weight(f"{name}.weight").T + weight(f"{name}.bias")

    def norm(x, name):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        scaled = (x - mean) / np.sqrt(variance + 1e-12)
        return scaled * weight(f"{name}.weight") + weight(f"{name}.bias")

    x = weight("embeddings.word_embeddings.weight")[ids]
    x = x + weight("embeddings.position_embeddings.weight")[: len(ids)]
    x = norm(
        x + weight("embeddings.token_type_embeddings.weight")[0],
        "embeddings.LayerNorm",
    )
    size = WIDTH // HEADS
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            dense(x, f"{layer}.attention.self.{name}").reshape(-1, HEADS, size)
            for name in ("query", "key", "value")
        )
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", shares, v).reshape(-1, WIDTH)
        attended = dense(mixed, f"{layer}.attention.output.dense")
        x = norm(x + attended, f"{layer}.attention.output.LayerNorm")
        inner = dense(x, f"{layer}.intermediate.dense")
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        outer = dense(inner, f"{layer}.output.dense")
        x = norm(x + outer, f"{layer}.output.LayerNorm")
    pooled = np.tanh(dense(x[0], "pooler.dense"))
    kernel, bias = tensors["classifier.weight"], tensors["classifier.bias"]
    return pooled @ kernel.T.astype(float) + bias


@pytest.fixture
def toml_file(tmp_path, tables):
    def toml_file(preset, trained, model="pooler = true", more=""):
        (tmp_path / "c.toml").write_text(
            f"""
name = "given"
[model]
preset = "{preset}"
precision = "float32"
{model}
[data]
dir = "{tables}"
cache = "{tmp_path / "cache"}"
[training]
epochs = 1
batch_size = 8
max_length = 32
[measures]
forward_transfer = false
similarity = false
drift = false
[[tasks]]
name = "first"
source = "files"
validation = "first_validation.csv"
text = "text"
label = "label"
trained = "{trained}"
{more}
[[tasks]]
name = "second"
source = "files"
train = "second.csv"
text = "text"
label = "label"
[[sequences]]
tasks = ["first", "second"]
[[arms]]
name = "flat"
rate = 1e-4
"""
        )
        return config.load(tmp_path / "c.toml", ())

    return toml_file


def test_its_answers_are_those_of_numpy(tmp_path, toml_file):
    folder = checkpoint(tmp_path / "bert", BERT)
    prepared = comparison.prepare(toml_file(folder, folder), tmp_path / "out")
    (record,) = prepared.run(*(lambda *_: None,) * 3)
    logits = np.load(tmp_path / "out" / record["logits"]["file"])["after_0_on_0"]
    data = prepared.tasks["first -> second"][0].validation
    tensors = load_file(folder / "model.safetensors")
    expected = [
        bert_logits(tensors, data.ids[start:end])
        for start, end in zip(data.offsets, data.offsets[1:], strict=False)
    ]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    found = np.mean(np.argmax(expected, axis=1) == data.labels)
    assert record["a1"] == found
    assert "probe" not in record  # there are no training examples to fit one on


@pytest.mark.parametrize("settings", [ROBERTA, DISTILBERT])
def test_poolers_and_heads_of_other_families(tmp_path, settings):
    folder = checkpoint(tmp_path / "x", settings)
    encoder = load_pooled(str(folder))
    found = load_trained(str(folder), "first", encoder)
    tensors = load_file(folder / "model.safetensors")
    pooler, head = (
        ("classifier.dense", "classifier.out_proj")
        if settings is ROBERTA
        else ("pre_classifier", "classifier")
    )
    ids = np.array([[2, 7, 9, 12, 3]])
    inputs = {
        "token_ids": ids,
        "padding_mask": np.ones_like(ids),
        "segment_ids": np.zeros_like(ids),
    }
    below = encoder.below
    first, _ = below.features(found.weights[:-2], below.state, inputs, False)
    inner = np.asarray(first) @ tensors[f"{pooler}.weight"].T
    inner += tensors[f"{pooler}.bias"]
    pooled = np.tanh(inner) if settings is ROBERTA else np.maximum(inner, 0)
    features, _ = encoder.features(found.weights, encoder.state, inputs, False)
    np.testing.assert_allclose(np.asarray(features), pooled, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.head[0], tensors[f"{head}.weight"].T)
    np.testing.assert_array_equal(found.head[1], tensors[f"{head}.bias"])
    assert found.class_names == ("negative", "positive")


def changed(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"architectures": ["BertModel"]}, "must be a sequence classifier with its"),
        ({"architectures": None}, "must be a sequence classifier with its"),
        ({"problem_type": "regression"}, "must give each text one class.*regression"),
        ({"id2label": {"0": "a"}}, "must name the head's 2 classes"),
    ],
)
def test_what_is_no_classifier(tmp_path, changes, match):
    folder = checkpoint(tmp_path / "bert", BERT)
    other = checkpoint(tmp_path / "other", BERT, **changes)
    with pytest.raises(InputError, match=match):
        load_trained(str(other), "first", load_pooled(str(folder)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("classifier.weight"), "`classifier.weight` is missing"),
        (lambda t: t["classifier.bias"].fill(np.nan), "must be finite"),
        (
            lambda t: t.update({"classifier.weight": np.zeros((1, WIDTH), np.float32)}),
            "at least two classes. Received: 8 inputs, 1 classes",
        ),
    ],
)
def test_a_missing_or_damaged_head(tmp_path, change, match):
    encoder = load_pooled(str(checkpoint(tmp_path / "bert", BERT)))
    other = checkpoint(tmp_path / "other", BERT)
    changed(other, change)
    with pytest.raises(InputError, match=match):
        load_trained(str(other), "first", encoder)


def test_another_backbone(tmp_path):
    encoder = load_pooled(str(checkpoint(tmp_path / "bert", BERT)))
    other = checkpoint(tmp_path / "other", ROBERTA)
    with pytest.raises(InputError, match="another backbone.*Received: RobertaBackbone"):
        load_trained(str(other), "first", encoder)


def test_other_labels(tmp_path, toml_file):
    folder = checkpoint(tmp_path / "bert", BERT)
    for names, match in (
        ({"0": "Negative", "1": "positive"}, "differ in case or spaces only"),
        ({"0": "yes", "1": "no"}, "its classes are 'yes', 'no', those of the data"),
    ):
        config_file = folder / "config.json"
        config_file.write_text(json.dumps({**BERT, "id2label": names}))
        configuration = toml_file(
            folder, folder, more='class_names = ["negative", "positive"]'
        )
        with pytest.raises(InputError, match=match):
            comparison.prepare(configuration, tmp_path / "out")


def test_another_vocabulary(tmp_path, toml_file):
    folder = checkpoint(tmp_path / "bert", BERT)
    other = checkpoint(tmp_path / "other", BERT)
    words = (other / "vocab.txt").read_text().split()
    words[8], words[12] = words[12], words[8]
    (other / "vocab.txt").write_text("\n".join(words) + "\n")
    with pytest.raises(InputError, match="vocabulary is not that of model.preset"):
        comparison.prepare(toml_file(folder, other), tmp_path / "out")


def test_a_search_and_a_report_share_no_validation_example(tmp_path, toml_file, capsys):
    from lrdist_keras.search import search

    folder = checkpoint(tmp_path / "bert", BERT)
    configuration = toml_file(folder, folder)
    settings = configuration.search.model_copy(update={"budget": 1.0, "repeats": 0})
    searched = configuration.model_copy(update={"search": settings})
    prepared = search.prepare(searched, tmp_path / "search")
    half = prepared.tasks[0].validation
    assert len(half) == 20
    prepared.run()
    prepared.save_results()
    arm = configuration.arms[0].model_copy(
        update={"rate": None, "distribution": str(tmp_path / "search" / "best.json")}
    )
    compared = configuration.model_copy(update={"arms": [arm]})
    found = comparison.prepare(compared, tmp_path / "out")
    rest = found.tasks["first -> second"][0].validation
    assert "reported on 20 of its 40" in capsys.readouterr().err
    rows = [
        {tuple(d.ids[a:b]) for a, b in zip(d.offsets, d.offsets[1:], strict=False)}
        for d in (half, rest)
    ]
    assert len(rest) == 20 and not rows[0] & rows[1]
