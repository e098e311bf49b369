from dataclasses import replace

import numpy as np
import pytest

from lrdist_keras.data import shifts
from lrdist_keras.data.shifts import Part, cluster_shift, length_shift
from lrdist_keras.data.splits import Split
from lrdist_keras.data.tokenizer import encode, load_tokenizer
from lrdist_keras.laboratory import loading
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.models.layer_features import FeatureReader


@pytest.mark.parametrize("count", [2, 7, 500])
def test_every_text_of_the_first_half_is_at_most_as_long_as_every_of_the_second(count):
    rng = np.random.default_rng(count)
    train, validation = rng.integers(3, 20, count), rng.integers(3, 90, count + 1)
    short, long = length_shift(train, validation)
    assert (short.name, long.name) == ("short", "long")
    for side, lengths in (("train", train), ("validation", validation)):
        first, second = getattr(short, side), getattr(long, side)
        assert lengths[first].max() <= lengths[second].min()
        assert sorted([*first, *second]) == list(range(len(lengths)))
        assert len(second) - len(first) == len(lengths) % 2
        assert (np.diff(first) > 0).all() and (np.diff(second) > 0).all()


def test_texts_of_equal_length_are_halved_by_their_order():
    short, long = length_shift(np.array([5, 9, 5, 5, 5, 1]), np.array([4, 4]))
    assert short.train.tolist() == [0, 2, 5]
    assert long.train.tolist() == [1, 3, 4]
    assert (short.validation.tolist(), long.validation.tolist()) == ([0], [1])


def test_training_and_validation_are_halved_each_by_itself():
    train = np.array([4, 9, 2, 7])
    one, other = (
        length_shift(train, validation)
        for validation in (np.array([1, 2]), np.array([100, 50]))
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.train, b.train)


def test_the_random_halving_is_the_rule_of_the_authors_code():
    lengths = [5, 3, 9, 4, 8]
    first, second = [], []
    # Index 1 is shortest, then 3, 0, 4, 2; they read it as example 0 having rank 1, …
    for example, index in enumerate([1, 3, 0, 4, 2]):
        (first if index > len(lengths) / 2 else second).append(example)
    parts = length_shift(np.array(lengths), np.array([1, 2]), random_halving=True)
    assert [part.train.tolist() for part in parts] == [first, second]


def blobs(seed, sizes, width=5, spread=0.1):
    """Points about well separated centres, and the number of each point's centre."""
    rng = np.random.default_rng(seed)
    home = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = np.random.default_rng(99).normal(size=(len(sizes), width)) * 5
    return centres[home] + spread * rng.normal(size=(len(home), width)), home


@pytest.mark.parametrize("sizes", [[10, 40], [20, 50, 30]])
def test_clusters_are_found_largest_first_and_validation_goes_to_the_nearest(sizes):
    train, home = blobs(0, sizes)
    validation, validation_home = blobs(1, [30] * len(sizes))
    parts = cluster_shift(train, validation, len(sizes), seed=0)
    order = np.argsort(sizes)[::-1]
    assert [part.name for part in parts] == [
        f"cluster {i + 1}" for i in range(len(sizes))
    ]
    for part, centre in zip(parts, order, strict=True):
        np.testing.assert_array_equal(part.train, np.flatnonzero(home == centre))
        nearest = np.flatnonzero(validation_home == centre)
        np.testing.assert_array_equal(part.validation, nearest)


def continuous(seed, count=90):
    """Points without any clusters, of which k-means makes what its seed makes it."""
    return np.random.default_rng(seed).normal(size=(count, 6))


def test_one_seed_gives_the_same_clusters():
    train, validation = continuous(0), continuous(1)
    first, again = (cluster_shift(train, validation, 3, seed=4) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.train, b.train)
        np.testing.assert_array_equal(a.validation, b.validation)


def test_validation_has_no_influence_on_the_clusters_of_training():
    train = continuous(0)
    one, other = (
        cluster_shift(train, validation, 2, seed=0)
        for validation in (continuous(1), 100 + continuous(2, 50))
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.train, b.train)


def test_validation_decides_where_the_authors_code_is_reproduced():
    train, validation = continuous(0), continuous(1)
    validation[:, 0] += np.where(np.arange(len(validation)) % 3, 50, -50)
    fitted = cluster_shift(train, validation, 2, seed=0, fit_on_validation=True)
    own = cluster_shift(train, validation, 2, seed=0)
    # Training falls to the two centres of validation, one on either side of 0.
    for part in fitted:
        side = np.sign(validation[part.validation, 0])
        assert abs(side.sum()) == len(side)
        assert (np.sign(train[part.train, 0]) == side[0]).mean() > 0.9
    assert any(
        a.train.tolist() != b.train.tolist() for a, b in zip(fitted, own, strict=True)
    )


def test_more_clusters_than_examples():
    points = continuous(0, 3)
    with pytest.raises(ValueError, match="`clusters` must be at most the 3.*: 4"):
        cluster_shift(points, points, 4, seed=0)


def test_fewer_different_texts_than_clusters_leave_a_part_empty():
    same = np.ones((10, 2))
    parts = cluster_shift(same, same, 2, seed=0)
    assert [len(part.train) for part in parts] == [10, 0]
    labels = np.arange(10) % 2
    with pytest.raises(ValueError, match="S: every part needs.*'cluster 2': none"):
        shifts.check_parts(parts, labels, labels, None, "S")


@pytest.mark.parametrize(
    "part, train_examples, message",
    [
        (Part("x", np.arange(4), np.array([], int)), None, "validation.*'x': none"),
        (Part("x", np.array([1, 3]), np.arange(2)), None, "'x': 2, all of class 1"),
        (Part("x", np.arange(4), np.array([1])), None, "validation.*: 1, of class 1"),
        (Part("x", np.arange(4), np.array([1, 3])), None, "validation.*2, all of cl"),
        (Part("x", np.arange(4), np.arange(2)), 5, "at most the 4 examples of 'x'.*5"),
        (Part("x", np.arange(4), np.arange(2)), 1, "`train_examples` ex.*: 1, of cl"),
    ],
)
def test_parts_that_cannot_be_trained(part, train_examples, message):
    labels = np.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match=f"The sequence 'q'.*{message}"):
        shifts.check_parts([part], labels, labels, train_examples, "The sequence 'q'")


def test_all_parts_that_cannot_be_trained_are_named():
    parts = [Part(n, np.array([0]), np.array([0, 1])) for n in ("short", "long")]
    labels = np.array([0, 1])
    with pytest.raises(ValueError, match="'short': 1, of class 0.*'long': 1, of"):
        shifts.check_parts(parts, labels, labels, None, "S")


def test_parts_that_can_be_trained_pass():
    part = Part("x", np.arange(4), np.array([0, 1]))
    labels = np.array([0, 1, 0, 1])
    shifts.check_parts([part], labels, labels, 4, "S")


def test_label_table_shows_the_label_shift():
    rows = shifts.label_table(
        ["a", "b"],
        [np.array([0, 0, 0, 1]), np.array([1, 1, 2, 0])],
        [np.array([0, 1]), np.array([1])],
        [["x", "y", "z"]] * 2,
    )
    assert [row.part for row in rows] == ["a", "b"]
    assert rows[0].train == (0.75, 0.25, 0) and rows[1].train == (0.25, 0.5, 0.25)
    assert rows[1].validation == (0, 1, 0)
    assert (rows[0].train_distance, rows[0].validation_distance) == (0, 0)
    # Half of |0.75 - 0.25| + |0.25 - 0.5| + |0 - 0.25|, and of 0.5 + 0.5 + 0.
    assert rows[1].train_distance == pytest.approx(0.5)
    assert rows[1].validation_distance == pytest.approx(0.5)


def test_labels_of_other_classes_have_no_distance():
    labels = [np.array([0, 1]), np.array([2, 1])]
    classes = [["x", "y"], ["x", "y", "z"]]
    first, second = shifts.label_table(["a", "b"], labels, labels, classes)
    assert first.train == (0.5, 0.5) and first.train_distance == 0
    assert second.classes == ("x", "y", "z") and second.validation == (0, 0.5, 0.5)
    assert np.isnan([second.train_distance, second.validation_distance]).all()


def test_embeddings_and_clusters_are_kept_by_all_that_they_depend_on(
    tiny_preset, tmp_path
):
    encoder = load_encoder(str(tiny_preset))
    tokenizer = load_tokenizer(str(tiny_preset))

    def encoded(seed):
        rng = np.random.default_rng(seed)
        words = ["good film", "bad plot", "the actor won", "a dull match"]
        texts = [" ".join(rng.choice(words, 4)) for _ in range(20)]
        return encode(Split((texts,), np.zeros(20, np.int32)), tokenizer, 32, tmp_path)

    reads = []

    class Counting(FeatureReader):
        def last(self, weights, data):
            reads.append(len(data))
            return super().last(weights, data)

    train, validation, other = encoded(0), encoded(1), encoded(2)
    cache = tmp_path / "clusters"

    def find(encoder=encoder, train=train, clusters=2, seed=0, compat=False):
        reader = Counting(encoder, 32)
        return loading.cached_cluster_shift(
            reader, train, validation, clusters, seed, cache, compat
        )

    first = find()
    assert reads == [20, 20]
    direct = cluster_shift(
        *(
            FeatureReader(encoder, 32).last(encoder.weights, d)
            for d in (train, validation)
        ),
        clusters=2,
        seed=0,
    )
    for a, b, c in zip(first, find(), direct, strict=True):
        for side in ("train", "validation"):
            np.testing.assert_array_equal(getattr(a, side), getattr(b, side))
            np.testing.assert_array_equal(getattr(a, side), getattr(c, side))
    for change in ({"clusters": 3}, {"seed": 1}, {"compat": True}):
        files = len(list(cache.iterdir()))
        find(**change)
        assert len(list(cache.iterdir())) == files + 1
    # All of that from the embeddings of the first time.
    assert reads == [20, 20]
    find(train=other)
    assert reads == [20, 20, 20]
    weights = [weight + 0.1 for weight in encoder.weights]
    find(encoder=replace(encoder, weights=weights))
    assert reads == [20] * 5
    # What is damaged is made again: clusters from whole embeddings, then both.
    for kind, read in (("clusters-*", 0), ("*", 2)):
        for path in (p for p in cache.glob(f"{kind}/*.npy")):
            path.write_bytes(path.read_bytes()[:-1])
        for a, b in zip(first, find(), strict=True):
            np.testing.assert_array_equal(a.train, b.train)
        assert reads == [20] * (5 + read)
