"""What only TensorFlow has: replicas of the model, shapes that are known late."""

import subprocess
import sys
import textwrap

from optimizer_cases import ABC, BACKEND, small_data, small_model

# isort: split
import pytest

if BACKEND != "tensorflow":
    pytest.skip("needs the TensorFlow backend", allow_module_level=True)

MIRRORED = """
    import os, sys
    sys.path.insert(0, os.path.join(os.getcwd(), "tests"))
    from optimizer_cases import ABC, small_data, small_model
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    import keras
    import numpy as np
    from lrdist_keras.optimizer import LayerwiseOptimizer

    x, y = small_data()
    schedule = keras.optimizers.schedules.CosineDecay(0.02, 8)

    def trained():
        model = small_model()
        inner = keras.optimizers.AdamW(schedule, use_ema=True)
        model.compile(LayerwiseOptimizer(inner, ABC, [0.5, 0.0, 2.0]), "mse")
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        model.optimizer.multipliers = [1.0, 0.5, 0.0]
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    expected = trained()
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        actual = trained()
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
"""


def test_two_replicas(tmp_path):
    script = tmp_path / "mirrored.py"
    script.write_text(textwrap.dedent(MIRRORED))
    subprocess.run([sys.executable, script], check=True)


def test_multipliers_by_a_function_whose_shape_is_known_late():
    """The graph does not know the shape of the vector, and must assign it."""
    import keras
    import tensorflow as tf

    from lrdist_keras import LayerwiseOptimizer

    def last_only(step):
        opened = tf.minimum(tf.cast(step, "int32"), 2)
        return tf.concat([tf.zeros([opened]), tf.ones([3 - opened])], 0)

    x, y = small_data()
    model = small_model()
    optimizer = LayerwiseOptimizer(keras.optimizers.SGD(0.01), ABC, last_only)
    model.compile(optimizer, "mse")
    model.fit(x, y, epochs=3, batch_size=16, verbose=0)
    assert dict(optimizer.multipliers) == {"a": 0.0, "b": 0.0, "c": 1.0}
