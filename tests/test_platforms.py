"""What a configuration leaves to the platform."""

import jax
import numpy as np
import pytest

from lrdist_keras.data.batches import buckets
from lrdist_keras.models import platforms
from lrdist_keras.settings import TrainingSettings


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def test_a_cpu_leaves_settings_as_they_are():
    settings = TrainingSettings()
    assert platforms.settled(settings) is settings
    assert "row_lengths" not in settings.model_dump(mode="json")
    assert platforms.compiler_options() == {} and platforms.calls_ahead() == 0


def test_a_gpu_gets_few_shapes(gpu):
    found = platforms.settled(TrainingSettings(max_length=100))
    assert found.row_lengths == (32, 64, 128)
    assert (found.steps_per_call, found.evaluation_batch_size) == (8, 256)
    assert buckets(found.max_length, found.row_lengths) == [32, 64, 100]
    assert platforms.settled(found) == found
    assert TrainingSettings(**found.model_dump()) == found


def test_what_is_given_stays(gpu):
    given = {"steps_per_call": 8, "evaluation_batch_size": 16, "row_lengths": (7, 9)}
    settings = TrainingSettings(max_length=16, **given)
    assert platforms.settled(settings) == settings
    assert buckets(16, settings.row_lengths) == [7, 9, 16]
    assert buckets(8, settings.row_lengths) == [7, 8]


@pytest.mark.parametrize("lengths", [(), (8, 8), (16, 8), (0, 8)])
def test_lengths_ascend(lengths):
    with pytest.raises(ValueError, match="row_lengths"):
        TrainingSettings(row_lengths=lengths)


@pytest.mark.parametrize(
    "millions, chunk", [(1, 64), (16, 64), (17, 32), (110, 8), (335, 2), (3000, 1)]
)
def test_the_squares_of_a_fisher_fit_the_memory(gpu, millions, chunk):
    class Shape:
        size = millions * 1_000_000

    assert platforms.fisher_chunk([Shape()]) == chunk


def test_a_cpu_squares_four_gradients_at_a_time():
    assert platforms.fisher_chunk([np.zeros(8)]) == 4
