import numpy as np

from lrdist_keras.training.schedule import schedule


def test_schedule_is_the_formula():
    total, warmup = 20, 0.25
    found = [float(schedule(t, total, warmup, "cosine")) for t in range(total)]
    rise = [(t + 1) / 5 for t in range(5)]
    fall = [(1 + np.cos(np.pi * (t - 5) / 15)) / 2 for t in range(5, 20)]
    np.testing.assert_allclose(found, rise + fall, rtol=1e-5, atol=1e-7)
    constant = [float(schedule(t, total, 0.0, "constant")) for t in range(total)]
    assert constant == [1.0] * total
    assert float(schedule(0, 3, 0.1, "cosine")) == 1.0
