import os

import numpy as np
import pytest
from conftest import WORDS, sentiment, write_rows

from lrdist_keras import config
from lrdist_keras.config import ArmSettings, DataSettings, TaskSettings
from lrdist_keras.data.shifts import cluster_shift, length_shift
from lrdist_keras.data.tasks import load_task
from lrdist_keras.data.tokenizer import encode, load_tokenizer, uncut_lengths
from lrdist_keras.distribution import flat
from lrdist_keras.errors import InputError
from lrdist_keras.groups import Scheme
from lrdist_keras.laboratory import loading
from lrdist_keras.models.layer_features import FeatureReader
from lrdist_keras.training.strategies.plain import Plain

SEQUENCE = 'tasks = ["first", "second"]'
LENGTH = 'tasks = ["second"]\nshift = "length"'
CLUSTER = 'tasks = ["second"]\nshift = "cluster"'


@pytest.fixture
def load(tmp_path, toml):
    """Loads the small configuration with its sequence in another form."""

    def load(lines, *overrides):
        path = tmp_path / "config.toml"
        path.write_text(toml.replace(SEQUENCE, lines))
        overrides = ("tasks.second.train_examples=10", *overrides)
        configuration = config.load(path, overrides)
        (sequence,) = configuration.sequences
        return loading.load(configuration, sequence.tasks), sequence

    return load


def row(data, i):
    return data.ids[data.offsets[i] : data.offsets[i + 1]].tolist()


def test_a_sequence_of_tasks_is_its_tasks_in_its_order(load):
    loaded, sequence = load('tasks = ["second", "first"]')
    found = loaded.shifted(sequence)
    assert list(found.tasks) == list(found.texts) == ["second", "first"]
    assert all(found.tasks[name] is loaded.tasks[name] for name in found.tasks)


def test_the_layers_are_divided_as_the_configuration_says(load):
    loaded, _ = load(SEQUENCE, "model.layer_groups=[2]")
    assert loaded.trainer.scheme == Scheme(2, layer_groups=(2,))
    assert list(loaded.trainer.groups) == ["embeddings", "encoder_1", "head"]
    with pytest.raises(InputError, match=r"the 2 transformer layers.*add up to 12"):
        load(SEQUENCE, "model.layer_groups=[1, 2, 9]")


def test_halves_by_tokens_are_right_even_where_texts_are_cut(load, tiny_preset):
    loaded, sequence = load(LENGTH, "training.max_length=8")
    found = loaded.shifted(sequence)
    assert list(found.tasks) == ["second (short)", "second (long)"]
    tokenizer = load_tokenizer(str(tiny_preset))
    for split, count in (("train", 64), ("validation", 40)):
        lengths = []
        for name, task in found.tasks.items():
            assert (task.name, task.classes, task.epochs) == (name, 2, 1)
            assert task.train_examples == 10
            data, texts = getattr(task, split), found.texts[name].splits[split]
            np.testing.assert_array_equal(data.labels, texts.labels)
            ids = [list(ids) for ids, _ in tokenizer.encode(texts.texts, 64)]
            assert [row(data, i)[:7] for i in range(len(data))] == [i[:7] for i in ids]
            lengths.append([len(i) for i in ids])
        assert len(lengths[0]) == len(lengths[1]) == count // 2
        assert max(lengths[0]) <= min(lengths[1])
        assert max(lengths[0]) > 8


def test_more_training_examples_than_a_part_has(load):
    loaded, sequence = load(LENGTH, "tasks.second.train_examples=40")
    with pytest.raises(
        ValueError,
        match=r"'second \(length\)'.*each part.*at most the 32.*'short'.*: 40",
    ):
        loaded.shifted(sequence)


def embeddings(loaded):
    encoder = loaded.trainer.encoder
    reader = FeatureReader(encoder, 32)
    task = loaded.tasks["second"]
    return [reader.last(encoder.weights, d) for d in (task.train, task.validation)]


@pytest.mark.parametrize("compat", [False, True])
def test_the_clusters_of_the_pretrained_features(load, compat):
    overrides = ['compat=["cluster_on_validation"]'] if compat else []
    loaded, sequence = load(CLUSTER, "tasks.second.train_examples=5", *overrides)
    found = loaded.shifted(sequence)
    assert list(found.tasks) == ["second (cluster 1)", "second (cluster 2)"]
    expected = cluster_shift(*embeddings(loaded), 2, 0, compat)
    task = loaded.tasks["second"]
    for part, data in zip(expected, found.tasks.values(), strict=True):
        assert data.train.labels.tolist() == task.train.labels[part.train].tolist()
        rows = [row(task.validation, i) for i in part.validation]
        assert [row(data.validation, i) for i in range(len(rows))] == rows
    sizes = [len(data.train) for data in found.tasks.values()]
    assert sizes[0] >= sizes[1] and sum(sizes) == 64
    # The settings matter here: one fit is not the other.
    other = cluster_shift(*embeddings(loaded), 2, 0, not compat)
    assert [p.train.tolist() for p in expected] != [p.train.tolist() for p in other]


def test_more_clusters_than_there_are_texts(load):
    loaded, sequence = load(f"{CLUSTER}\nclusters = 65")
    with pytest.raises(ValueError, match="`clusters` must be at most the 64.*: 65"):
        loaded.shifted(sequence)


def preset_of(folder, rows, segments=2):
    """A BERT of so many rows, whose tokenizer has the words of the tasks."""
    import keras_hub

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    backbone = keras_hub.models.BertBackbone(
        rows, 1, 1, 4, 4, max_sequence_length=64, num_segments=segments
    )
    backbone.save_to_preset(str(folder))
    keras_hub.models.BertTokenizer(vocabulary).save_to_preset(str(folder))
    return f"model.preset={folder}", len(vocabulary)


def test_a_tokenizer_with_more_ids_than_the_model_has_rows(load, tmp_path):
    preset, size = preset_of(tmp_path / "small", 30)
    with pytest.raises(
        InputError,
        match=rf"small'.*\(assets/tokenizer/vocabulary.txt\) has ids up to {size - 1}"
        r".*\(model.weights.h5\) have 30 rows, for ids up to 29.*same checkpoint",
    ):
        load('tasks = ["first"]', preset)
    preset, size = preset_of(tmp_path / "padded", size + 7)
    loaded, _ = load('tasks = ["first"]', preset)
    assert loaded.tokenizer.rows == size + 7


def test_pairs_need_two_segments(load, tables, tmp_path):
    preset, _ = preset_of(tmp_path / "one", 64, segments=1)
    pair = 'tasks.first.text=["text", "label"]'
    with pytest.raises(InputError, match="Task 'first': pairs.*Received: one row"):
        load('tasks = ["first"]', preset, pair)
    load('tasks = ["first"]', preset)
    load('tasks = ["first"]', pair)


def test_a_cache_that_cannot_be_used(load, tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match="data.cache, or mend its permissions"):
        load('tasks = ["first"]', f"data.cache={tmp_path / 'file'}")


def test_parts_are_trained_like_tasks(load):
    loaded, sequence = load(LENGTH)
    tasks = list(loaded.shifted(sequence).tasks.values())
    trainer = loaded.trainer
    run = trainer.run(tasks, flat(1e-2, trainer.scheme), Plain(), seed=0)
    assert run.accuracy.shape == (2, 2)
    assert run.examples.tolist() == [20, 20]
    assert list(run.curves) == ["second (long)"]


def test_labels_of_the_sides_and_their_distance(load):
    loaded, sequence = load(LENGTH)
    found = loaded.shifted(sequence)
    short, long = found.label_table()
    assert (short.part, long.part) == tuple(found.tasks)
    labels = {name: task.train.labels for name, task in found.tasks.items()}
    ones = [float(np.mean(labels[part.part] == 1)) for part in (short, long)]
    assert [part.train[1] for part in (short, long)] == pytest.approx(ones)
    # Of two classes the total variation is the difference in either.
    assert long.train_distance == pytest.approx(abs(ones[1] - ones[0]))


def test_domains_must_have_the_same_classes(load, tables):
    domain = 'tasks = ["first", "second"]\nshift = "domain"'
    loaded, sequence = load(domain)
    assert list(loaded.shifted(sequence).tasks) == ["first", "second"]
    names = {"negative": "bad", "positive": "good"}
    other = []
    for seed, split in enumerate(("train", "validation")):
        texts, labels = sentiment(30, 5 + seed)
        labels = [names[label] for label in labels]
        write_rows(tables / f"renamed_{split}.csv", texts, labels)
        other.append(f"tasks.second.{split}=renamed_{split}.csv")
    loaded, sequence = load(domain, *other)
    with pytest.raises(
        ValueError,
        match=r"'first -> second \(domain\)'.*same classes.*`class_names`"
        r".*'negative', 'positive'.*Received for 'second': \['bad', 'good'\]",
    ):
        loaded.shifted(sequence)


def test_bytes_literals_reach_the_model_but_not_what_a_search_cuts_by(load):
    plain, sequence = load('tasks = ["second"]')
    wrapped, _ = load('tasks = ["second"]', 'compat=["bytes_literal_texts"]')
    split = plain.texts["second"].splits["train"]
    assert wrapped.texts["second"].splits["train"].texts == split.texts
    literals = [f"b'{text}'" for text in split.texts[0]]
    expected = wrapped.tokenizer.encode((literals,), 32)
    found = wrapped.tasks["second"].train
    assert [row(found, i) for i in range(len(found))] == [list(i) for i, _ in expected]
    assert row(found, 0) != row(plain.tasks["second"].train, 0)


def test_a_raw_text_that_is_a_pipe_is_refused_at_once(load, tmp_path):
    os.mkfifo(tmp_path / "raw.txt")
    arm = {"name": "p", "rate": 1e-3, "strategy": "ewc_pretraining"}
    arm |= {"strength": 1.0, "raw_text": str(tmp_path / "raw.txt")}
    loaded, _ = load('tasks = ["first"]')
    with pytest.raises(InputError, match="Arm 'p', `raw_text`: .*a named pipe"):
        loading.arm_strategy(loaded.configuration, ArmSettings(**arm), loaded)


@pytest.mark.parametrize("source", ["sst2", "cola", "mrpc"])
def test_the_authors_length_split_is_a_random_halving_of_real_texts(
    shared, minilm, tmp_path, source
):
    from scipy.stats import ks_2samp

    data = DataSettings(dir=str(shared / "tfds"))
    task = load_task(TaskSettings(name="t", source=f"glue/{source}"), data)
    tokenizer = load_tokenizer(str(minilm))
    lengths = []
    for name in ("train", "validation"):
        split = task.splits[name].take(np.arange(min(8000, len(task.splits[name]))))
        encoded = encode(split, tokenizer, 128, tmp_path)
        lengths.append(uncut_lengths(split, encoded, tokenizer, 128))
    true, halving = (length_shift(*lengths, random) for random in (False, True))
    for side, values in zip(("train", "validation"), lengths, strict=True):
        short, long = (values[getattr(part, side)] for part in true)
        assert short.max() <= long.min()
        assert ks_2samp(short, long).pvalue < 1e-20
        first, second = (values[getattr(part, side)] for part in halving)
        assert abs(len(first) - len(second)) <= 2
        # Of lengths drawn at random for both sides one in a thousand differs more.
        assert ks_2samp(first, second).pvalue > 1e-3
        assert abs(first.mean() - second.mean()) < 0.1 * (long.mean() - short.mean())
