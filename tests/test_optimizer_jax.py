"""What only compiled programs show: traces, scan, vmap, cost, devices."""

import os
import subprocess
import sys
import textwrap

from optimizer_cases import (
    ABC,
    BACKEND,
    GROUPS,
    make_gradients,
    make_variables,
    small_data,
    small_model,
    train,
)

# isort: split
import keras
import numpy as np
import pytest

from lrdist_keras.optimizer import LayerwiseOptimizer

if BACKEND != "jax":
    pytest.skip("compiled JAX programs need the JAX backend", allow_module_level=True)

import jax
import jax.numpy as jnp

X, Y = small_data()


def built(inner=None, multipliers=None):
    variables = make_variables()
    inner = inner or keras.optimizers.AdamW(0.01)
    optimizer = LayerwiseOptimizer(inner, GROUPS, multipliers)
    optimizer.build(variables)
    return optimizer, variables


def start(optimizer, variables):
    return [v.value for v in variables], [v.value for v in optimizer.variables]


def vectors(count):
    return np.random.default_rng(0).uniform(0, 2, (count, 3)).astype("float32")


def test_fifty_vectors_are_one_program():
    optimizer, variables = built()
    gradients = make_gradients(1)[0]
    traces = 0

    @jax.jit
    def step(weights, state):
        nonlocal traces
        traces += 1
        return optimizer.stateless_apply(state, gradients, weights)

    weights, state = start(optimizer, variables)
    results = [step(weights, [jnp.array(v), *state[1:]])[0] for v in vectors(50)]
    assert traces == 1
    assert len({float(r[0][0, 0]) for r in results}) == 50


def test_fit_traces_once_for_fifty_vectors():
    traces = 0

    def loss(y, prediction):
        nonlocal traces
        traces += 1
        return keras.ops.mean((y - prediction) ** 2)

    model = small_model()
    model.compile(LayerwiseOptimizer(keras.optimizers.AdamW(0.01), ABC), loss)
    model.fit(X, Y, verbose=0)
    after_first = traces
    for vector in vectors(50):
        model.optimizer.multipliers = vector
        model.fit(X, Y, verbose=0)
    assert traces == after_first


def test_scan_over_steps_is_the_loop():
    gradients = make_gradients(6)
    optimizer, variables = built(multipliers=[0.5, 1.0, 2.0])

    def step(carry, gradients):
        return optimizer.stateless_apply(carry[1], gradients, carry[0]), None

    stacked = [jnp.stack(g) for g in zip(*gradients, strict=True)]
    (weights, _), _ = jax.lax.scan(step, start(optimizer, variables), stacked)
    for a, b in zip(weights, train(optimizer, gradients, variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_vmap_over_a_population_of_vectors():
    gradients, population = make_gradients(1)[0], vectors(5)
    optimizer, variables = built()
    weights, state = start(optimizer, variables)

    def step(vector):
        return optimizer.stateless_apply([vector, *state[1:]], gradients, weights)[0]

    batched = jax.vmap(step)(population)
    for i, vector in enumerate(population):
        for a, b in zip(batched, step(jnp.array(vector)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6, atol=1e-7)


def test_cost_of_the_compiled_step():
    """FLOPs and bytes of forward, backward and update: at most 1.01 of plain."""

    def cost(optimizer):
        keras.utils.set_random_seed(0)
        inputs = x = keras.Input((64,))
        for name in "abc":
            x = keras.layers.Dense(64, "tanh", name=name)(x)
        model = keras.Model(inputs, x)
        optimizer.build(model.trainable_variables)

        def step(weights, state, batch):
            def loss(weights):
                return jnp.mean(model.stateless_call(weights, [], batch)[0] ** 2)

            return optimizer.stateless_apply(state, jax.grad(loss)(weights), weights)

        arguments = start(optimizer, model.trainable_variables)
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
            *arguments, jnp.ones((256, 64))
        )
        return lowered.compile().cost_analysis()

    plain = cost(keras.optimizers.AdamW(0.01))
    ours = cost(LayerwiseOptimizer(keras.optimizers.AdamW(0.01), ABC))
    for quantity in ("flops", "bytes accessed"):
        assert ours[quantity] <= 1.01 * plain[quantity]


DISTRIBUTED = """
    import os, sys
    sys.path.insert(0, os.path.join(os.getcwd(), "tests"))
    from optimizer_cases import ABC, small_data, small_model
    import jax, keras
    import numpy as np
    from lrdist_keras.optimizer import LayerwiseOptimizer

    assert len(jax.devices()) == 2
    x, y = small_data()

    def weights():
        model = small_model()
        inner = keras.optimizers.AdamW(0.01, global_clipnorm=0.5)
        model.compile(LayerwiseOptimizer(inner, ABC, [0.5, 0.0, 2.0]), "mse")
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return model.get_weights(), model.optimizer

    expected, _ = weights()
    kind = sys.argv[1]
    if kind == "data":
        distribution = keras.distribution.DataParallel()
    else:
        mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"])
        layout = keras.distribution.LayoutMap(mesh)
        layout["(a|c)/kernel"] = (None, "model")
        distribution = keras.distribution.ModelParallel(
            layout_map=layout, batch_dim_name="batch"
        )
    with distribution.scope():
        actual, optimizer = weights()
    sharding = optimizer.variables[0].value.sharding
    assert sharding.is_fully_replicated and len(sharding.device_set) == 2
    if kind == "model":
        slots = [v.value.sharding for v in optimizer.variables if "a_kernel" in v.path]
        assert slots and not any(s.is_fully_replicated for s in slots)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.parametrize("kind", ["data", "model"])
def test_two_devices(tmp_path, kind):
    script = tmp_path / "distributed.py"
    script.write_text(textwrap.dedent(DISTRIBUTED))
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, script, kind], check=True, env=environment)
