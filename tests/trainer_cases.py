"""Small tasks that a tiny model can be trained on."""

import numpy as np

from lrdist_keras.data.batches import Encoded
from lrdist_keras.training.run import Observer, TaskData


def data(seed, count=36, classes=2, shortest=25, longest=33, vocabulary=30):
    """Random ids whose label is told by the part of the vocabulary they are from."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest, count)
    labels = rng.integers(0, classes, count).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    part = (vocabulary - 5) // classes
    start = 5 + part * np.repeat(labels, lengths)
    ids = (start + rng.integers(0, part, offsets[-1])).astype(np.int32)
    ids[offsets[:-1]] = 2
    return Encoded(ids, offsets, lengths, labels, 0)


def task(name, seed, classes=2, epochs=2, **settings):
    train, validation = data(seed, classes=classes), data(seed + 50, 24, classes)
    return TaskData(
        **{
            "name": name,
            "train": train,
            "validation": validation,
            "classes": classes,
            "train_examples": None,
            "epochs": epochs,
        }
        | settings
    )


def same(one, two):
    return all(np.array_equal(one.logits[key], two.logits[key]) for key in one.logits)


def trained(trainer, tasks, rates, strategy, seed=0):
    """Runs; returns after each task the weights, then the heads of all tasks."""
    found = []

    def keep(i, weights, heads):
        found.append([np.array(w) for w in [*weights, *sum(heads, [])]])

    trainer.run(tasks, rates, strategy, seed, observer=Observer(after_task=keep))
    return found
