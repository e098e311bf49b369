import numpy as np
from trainer_cases import data

from lrdist_keras.data.batches import Encoded
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training.plan import Plan, TrainingSet, mixed


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
