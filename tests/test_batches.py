import json
import os

import numpy as np
import pytest

from lrdist_keras.config import DataSettings, TaskSettings
from lrdist_keras.data import batches
from lrdist_keras.data.batches import Encoded
from lrdist_keras.data.keras_hub_tokenizer import keras_hub_tokenizer
from lrdist_keras.data.splits import Split
from lrdist_keras.data.tasks import load_task
from lrdist_keras.data.tokenizer import Tokenizer, encode, load_tokenizer, uncut_lengths


def rows(encoded):
    bounds = zip(encoded.offsets, encoded.offsets[1:], strict=False)
    return [encoded.ids[a:b].tolist() for a, b in bounds]


def split_of(*texts):
    return Split(texts, np.zeros(len(texts[0]), np.int32))


def encoded_of(lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(offsets[-1], dtype=np.int32) + 1
    count = len(lengths)
    return Encoded(
        ids, offsets, np.asarray(lengths), np.arange(count, dtype=np.int32) % 3, 0
    )


def test_ids_are_those_of_the_checkpoints_own_tokenizer(minilm, shared, tmp_path):
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    own.no_padding()
    own.enable_truncation(64)
    settings = TaskSettings(name="t", source="glue/mrpc")
    split = load_task(settings, DataSettings(dir=str(shared / "tfds"))).splits["train"]
    encoded = encode(split, load_tokenizer(str(minilm)), 64, tmp_path)
    pairs = zip(*split.texts, strict=True)
    expected = [own.encode(*pair) for pair in pairs]
    assert rows(encoded) == [e.ids for e in expected]
    assert encoded.second.tolist() == [e.type_ids.index(1) for e in expected]
    assert max(encoded.lengths) == 64


def test_ids_are_the_same_where_there_is_no_tokenizer_json(minilm, shared, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in minilm.iterdir():
        if path.is_file() and path.name != "tokenizer.json":
            os.symlink(path, bare / path.name)
    settings = TaskSettings(name="t", source="glue/rte", validation_examples=150)
    task = load_task(settings, DataSettings(dir=str(shared / "tfds")))
    split = task.splits["validation"]
    own = encode(split, load_tokenizer(str(minilm)), 512, tmp_path)
    built = encode(split, load_tokenizer(str(bare)), 512, tmp_path / "other")
    assert rows(own) == rows(built)
    np.testing.assert_array_equal(own.second, built.second)


def test_special_tokens_in_a_users_text_are_text(minilm, tmp_path):
    tokenizer = load_tokenizer(str(minilm))
    (ids,) = rows(encode(split_of(["never [SEP] mind [PAD]"]), tokenizer, 32, tmp_path))
    cls, sep, pad = 101, 102, 0
    assert (ids[0], ids[-1]) == (cls, sep)
    assert sep not in ids[1:-1] and pad not in ids


def test_the_longer_text_of_a_pair_is_cut_first(minilm, tmp_path):
    tokenizer = load_tokenizer(str(minilm))
    split = split_of(["a b"], ["c d e f g h i j k l"])
    (cut,) = rows(encode(split, tokenizer, 8, tmp_path))
    (whole,) = rows(encode(split, tokenizer, 32, tmp_path))
    assert cut == [*whole[:4], *whole[4:7], 102]


def test_a_gpt2_of_keras_hub_has_no_special_tokens(tmp_path):
    import keras_hub

    vocabulary = {"!": 0, "air": 1, "Ġair": 2, "plane": 3, "<|endoftext|>": 4}
    merges = ["a i", "ai r", "Ġ air", "p l", "pl a", "pla n", "plan e"]
    vocabulary |= {c: 10 + i for i, c in enumerate("aiplnerĠ")}
    vocabulary |= {c: 30 + i for i, c in enumerate(["ai", "pl", "pla", "plan"])}
    backbone = keras_hub.models.GPT2Backbone(50, 1, 1, 4, 4, max_sequence_length=8)
    folder = tmp_path / "gpt2"
    backbone.save_to_preset(str(folder))
    keras_hub.models.GPT2Tokenizer(vocabulary, merges).save_to_preset(str(folder))
    split = split_of(["airplane air", ""], [" air", ""])
    for tokenizer, pad in [
        (load_tokenizer(str(folder)), 4),
        (keras_hub_tokenizer(str(folder), None), 0),
    ]:
        encoded = encode(split, tokenizer, 8, tmp_path)
        assert rows(encoded) == [[1, 3, 2, 2], [pad]]
        assert rows(encode(split, tokenizer, 2, tmp_path))[0] == [1, 2]


def test_keras_hub_preset_folder_is_not_taken_for_a_tokenizer_file(tiny_preset):
    content = json.loads((tiny_preset / "tokenizer.json").read_text())
    assert "model" not in content
    tokenizer = load_tokenizer(str(tiny_preset))
    (ids, second), *_ = tokenizer.encode((["good film"], ["bad plot"]), 32)
    assert (len(ids), second) == (7, 4)
    hub = keras_hub_tokenizer(str(tiny_preset), None)
    ((ids_of_hub, second),) = hub.encode((["good film"], ["bad plot"]), 32)
    assert (list(ids_of_hub), second) == (ids, 4)


def test_the_second_start_takes_the_cache(tiny_preset, tmp_path):
    tokenizer = load_tokenizer(str(tiny_preset))
    split = split_of(["good film", "bad"])
    first = encode(split, tokenizer, 32, tmp_path)

    def refuse(texts, max_length):
        raise AssertionError("encoded again")

    again = encode(
        split,
        Tokenizer(tokenizer.identity, tokenizer.pad_id, refuse),
        32,
        tmp_path,
    )
    assert rows(again) == rows(first)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_key_has_texts_tokenizer_and_length(tmp_path):
    def tokenizer(identity):
        return Tokenizer(identity, 0, lambda texts, n: [([1], 1) for _ in texts[0]])

    for texts, identity, length in [
        ((["ab", "c"],), "x", 8),
        ((["a", "bc"],), "x", 8),
        ((["ab"], ["c"]), "x", 8),
        ((["ab", "c"],), "y", 8),
        ((["ab", "c"],), "x", 9),
    ]:
        encode(split_of(*texts), tokenizer(identity), length, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_an_interrupted_encoding_leaves_nothing(tmp_path):
    def fail(texts, max_length):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        encode(split_of(["a"]), Tokenizer("x", 0, fail), 8, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_arrays_are_padded_rows():
    encoded = encoded_of([3, 2])
    encoded = Encoded(encoded.ids, encoded.offsets, np.array([2, 1]), encoded.labels, 9)
    x = encoded.arrays(np.array([[1, -1], [0, 1]]), 4)
    assert x["token_ids"].tolist() == [
        [[4, 5, 9, 9], [9, 9, 9, 9]],
        [[1, 2, 3, 9], [4, 5, 9, 9]],
    ]
    assert x["padding_mask"][1].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert x["segment_ids"][1].tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]
    assert x["weights"].tolist() == [[1, 0], [1, 1]]
    assert x["labels"].tolist() == [[1, 0], [0, 1]]
    # Attention over nothing is undefined, so a row of padding shows one token.
    assert x["padding_mask"][0, 1].tolist() == [1, 0, 0, 0]


def test_take_is_the_same_examples():
    encoded = encoded_of([3, 5, 1, 4])
    chosen = np.array([3, 1])
    assert rows(batches.take(encoded, chosen)) == [rows(encoded)[i] for i in chosen]


def test_buckets():
    short = [8, 16, 24, 32, 40, 48, 56, 64]
    assert batches.buckets(200) == [*short, 80, 96, 112, 128, 160, 192, 200]
    assert batches.buckets(64) == short
    assert batches.buckets(63) == [*short[:-1], 63]
    assert batches.buckets(5) == [5]
    bounds = np.array(batches.buckets(512))
    lengths = np.arange(33, 513)
    padded = bounds[np.searchsorted(bounds, lengths)]
    assert ((padded - lengths) / padded).max() < 0.2


def test_an_epoch_has_every_example_once_and_little_padding():
    lengths = np.random.default_rng(0).integers(3, 129, 333)
    encoded = encoded_of(lengths)
    plan = batches.training_steps(
        encoded, batches.buckets(128), 16, 4, np.random.default_rng(1)
    )
    indices = np.concatenate([call.indices.ravel() for call in plan])
    assert sorted(indices[indices >= 0]) == list(range(333))
    assert sum(len(call.indices) for call in plan) == -(-333 // 16)
    assert (indices < 0).sum() == -333 % 16
    for call in plan:
        assert call.indices.shape[0] <= 4 and call.indices.shape[1] == 16
        real = call.indices[call.indices >= 0]
        assert lengths[real].max() <= call.length
    row_tokens = sum(call.indices.size * call.length for call in plan)
    assert row_tokens < 0.75 * 333 * 128


def test_a_length_of_few_batches_is_left_out():
    counts = {8: 2 * 16 + 15, 16: 16, 24: 3 * 16, 32: 20, 40: 5}
    lengths = np.repeat(list(counts), list(counts.values()))
    rng = np.random.default_rng(0)
    plan = batches.training_steps(encoded_of(lengths), batches.buckets(64), 16, 8, rng)
    found = {call.length: len(call.indices) for call in plan}
    # Those of 8 move to 16 and fill three batches; 15 rows move on, in the end to 40.
    assert found == {16: 3, 24: 3, 40: 3}
    assert sum(found.values()) == -(-len(lengths) // 16)


def test_without_a_generator_batches_are_consecutive_rows_of_the_length_they_need():
    lengths = np.random.default_rng(0).integers(3, 129, 333)
    lengths[48:144] = 20  # six batches of the shortest bucket
    plan = batches.training_steps(
        encoded_of(lengths), batches.buckets(128), 16, 4, None
    )
    found = [(call.length, row) for call in plan for row in call.indices]
    assert np.concatenate([r for _, r in found]).tolist() == [*range(333), *[-1] * 3]
    for i, (length, _) in enumerate(found):
        longest = lengths[16 * i : 16 * (i + 1)].max()
        assert length == next(n for n in batches.buckets(128) if n >= longest)
    sizes = [len(call.indices) for call in plan if call.length == 24]
    assert sizes == [4, 2] and max(len(call.indices) for call in plan) == 4


def test_the_order_is_that_of_the_generator():
    encoded = encoded_of(np.full(40, 5))

    def order(seed):
        plan = batches.training_steps(
            encoded, batches.buckets(32), 8, 2, np.random.default_rng(seed)
        )
        return [call.indices.tolist() for call in plan]

    assert order(0) == order(0) != order(1)


def test_an_evaluation_has_every_example_once():
    lengths = np.random.default_rng(0).integers(3, 65, 50)
    plan = list(
        batches.evaluation_batches(encoded_of(lengths), batches.buckets(64), 16)
    )
    indices = np.concatenate([batch.indices for batch in plan])
    assert sorted(indices[indices >= 0]) == list(range(50))
    assert {batch.indices.shape for batch in plan} == {(16,)}


@pytest.mark.parametrize("hub", [False, True])
def test_uncut_lengths_are_those_of_whole_texts(tiny_preset, tmp_path, hub):
    preset = str(tiny_preset)
    tokenizer = keras_hub_tokenizer(preset, None) if hub else load_tokenizer(preset)
    texts = [" ".join(["good", "film"] * n) for n in (1, 40, 2, 90, 7)]
    lengths = [2 * n + 2 for n in (1, 40, 2, 90, 7)]
    split = split_of(texts)
    encoded = encode(split, tokenizer, 16, tmp_path)
    assert encoded.lengths.tolist() == [4, 16, 6, 16, 16]
    found = uncut_lengths(split, encoded, tokenizer, 16)
    assert found.tolist() == lengths
    # Both texts of a pair and their three special tokens.
    pairs = split_of(texts, texts[::-1])
    encoded = encode(pairs, tokenizer, 16, tmp_path)
    found = uncut_lengths(pairs, encoded, tokenizer, 16)
    assert found.tolist() == [
        a + b - 1 for a, b in zip(lengths, lengths[::-1], strict=True)
    ]
