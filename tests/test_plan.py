import numpy as np
from trainer_cases import data

from lrdist_keras.data.batches import Encoded
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training.plan import Memory, Plan, TrainingSet, mixed
from lrdist_keras.training.token_rows import used_rows


def encoded(labels, first_id=10):
    """Example i has i + 1 tokens: first_id, first_id + 1, …"""
    sizes = np.arange(1, len(labels) + 1)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    ids = np.concatenate([first_id + np.arange(size) for size in sizes])
    return Encoded(ids.astype(np.int32), offsets, sizes, np.array(labels), 0)


def test_a_mixture_holds_the_examples_of_its_parts_with_their_heads():
    parts = [encoded([0, 1]), encoded([2, 0, 1], first_id=20), encoded([1], 30)]
    both = mixed(parts)
    assert len(both) == 6
    batch = both.arrays(np.array([4, 0, 5, -1]), 4)
    assert batch["head"][:3].tolist() == [1, 0, 2]
    assert batch["labels"].tolist() == [1, 0, 1, 0]
    assert batch["token_ids"].tolist() == [
        [20, 21, 22, 0],
        [10, 0, 0, 0],
        [30, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert batch["weights"].tolist() == [1, 1, 1, 0]


def test_a_batch_has_what_goes_with_its_examples_beside_it():
    old = mixed([encoded([1]), encoded([0, 2], first_id=20)])
    old = TrainingSet(old.encoded, old.head, (np.arange(6.0).reshape(3, 2),))
    drawn = np.array([2, 0, 0, 1])
    both = TrainingSet(encoded([0, 1, 0, 1], 30), memory=Memory(old, drawn, 2))
    assert len(both) == 4
    batch = both.arrays(np.array([[3, 0], [1, -1]]), 4)
    assert batch["token_ids"][0].tolist() == [[30, 31, 32, 33], [30, 0, 0, 0]]
    beside = batch["memory"]
    assert beside["token_ids"].tolist() == [[[20, 0], [20, 21]], [[10, 0], [0, 0]]]
    assert beside["labels"].tolist() == [[0, 2], [1, 0]]
    assert beside["weights"].tolist() == [[1, 1], [1, 0]]
    assert beside["head"][0].tolist() == [1, 1] and beside["head"][1, 0] == 0
    assert beside["teacher"][0][0].tolist() == [[2, 3], [4, 5]]
    # Rows of the embeddings are those of both.
    rows = used_rows(both.shown, 0, 16, 50)
    assert rows.rows.tolist()[:8] == [0, 10, 20, 21, 30, 31, 32, 33]
    narrowed = both.narrowed(rows).arrays(np.array([0]), 1)
    assert narrowed["token_ids"].tolist() == [[4]]
    assert narrowed["memory"]["token_ids"].tolist() == [[2, 3]]


def test_parts_end_at_stops_and_hold_every_example_once_an_epoch():
    examples = TrainingSet(data(0, count=45, shortest=4, longest=33))
    settings = TrainingSettings(batch_size=4, max_length=32, steps_per_call=5)
    stops = {0, 3, 12, 17}

    def plan():
        return Plan(examples, settings, 2, np.random.default_rng(0))

    total = 2 * 12
    parts = list(plan().parts(total, stops))
    assert sum(part.steps for part in parts) == total
    assert sum(part.examples for part in parts) == 2 * 45
    ends = set(np.cumsum([part.steps for part in parts]).tolist())
    assert stops - {0} <= ends
    for part in parts:
        assert len(part.batches["labels"]) == 5
        rows = part.batches["weights"].sum(axis=1)
        assert not rows[part.steps :].any() and rows.sum() == part.examples
    shapes = {part.batches["token_ids"].shape for part in parts}
    assert {x["token_ids"].shape for x in plan().shapes(total)} == shapes
    assert sum(part.steps for part in plan().parts(7, {2})) == 7
