import numpy as np
import pytest

from lrdist_keras.training.carried_moments import CarriedMoments, bias_correction
from lrdist_keras.training.optimizers import OptimizerState


def state(counter, moments):
    """The first moments of one weight, kernels and biases, then the second ones."""
    moments = [*map(np.float32, moments)]
    half = len(moments) // 2
    rate = np.float32(0.1)
    return OptimizerState(
        np.ones(2), rate, np.int32(counter), moments[:half], moments[half:]
    )


def numbers(state):
    return [*map(float, [*state.first, *state.second])]


def test_the_backbone_goes_on_and_a_new_head_begins():
    kept = CarriedMoments()
    kept.keep(state(5, range(6)), (0,), steps=5, heads_only=False)
    assert kept.head_steps((0, 1)).tolist() == [5, 0]
    fresh = kept.put(state(0, [9] * 6), (1,))
    # The counter and the weight's moments are those kept, the head's those given.
    assert [int(fresh.iterations), *numbers(fresh)] == [5, 0, 9, 9, 3, 9, 9]
    again = kept.put(state(0, [9] * 6), (0,))
    assert [int(again.iterations), *numbers(again)] == [5, 0, 1, 2, 3, 4, 5]


def test_a_probe_leaves_the_backbones_moments():
    kept = CarriedMoments()
    kept.keep(state(5, range(6)), (0,), steps=5, heads_only=False)
    kept.keep(state(12, range(10, 16)), (0,), steps=7, heads_only=True)
    assert kept.head_steps((0,)).tolist() == [12]
    found = kept.put(state(0, [9] * 6), (0,))
    assert [int(found.iterations), *numbers(found)] == [5, 0, 11, 12, 3, 14, 15]


def test_every_head_that_trains_again_goes_on():
    kept = CarriedMoments()
    kept.keep(state(5, range(6)), (0,), steps=5, heads_only=False)
    found = kept.put(state(0, [9] * 10), (0, 1))
    assert numbers(found) == [0, 1, 2, 9, 9, 3, 4, 5, 9, 9]
    kept.keep(found, (0, 1), steps=3, heads_only=False)
    assert kept.head_steps((1, 0)).tolist() == [3, 8]


def test_the_correction_makes_the_first_step_the_sign_of_the_gradient():
    """After step 1 the moments are (1 - b1) g and (1 - b2) g^2."""
    b1, b2, g = 0.9, 0.999, 0.02
    moved = bias_correction(1.0, b1, b2) * (1 - b1) * g / np.sqrt((1 - b2) * g**2)
    assert float(moved) == pytest.approx(1.0, rel=1e-4)
    assert float(bias_correction(1e6, b1, b2)) == 1
