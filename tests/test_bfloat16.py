"""bfloat16 products: where they are put, how exact they are, what stays as it is."""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import jaxprs_in_params, primitives
from record_cases import record, write_runs

from lrdist_keras import config, machine
from lrdist_keras.config import DataSettings, TaskSettings, TrainingSettings
from lrdist_keras.data.tasks import load_task
from lrdist_keras.data.tokenizer import encode, load_tokenizer
from lrdist_keras.laboratory import comparison, loading
from lrdist_keras.machine import cpu_flags
from lrdist_keras.models.bfloat16 import bfloat16_products
from lrdist_keras.models.encoder import load_encoder, new_head
from lrdist_keras.models.precision import in_precision, resolve
from lrdist_keras.search import search
from lrdist_keras.training.compiler import jitted
from lrdist_keras.training.plan import Terms
from lrdist_keras.training.step import Clock, WeightSum
from lrdist_keras.training.trainer import SequentialTrainer

ROUNDING = 2.0**-8  # of a number to bfloat16, relative


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def products(function, *arguments):
    """Returns the type of the operands of each product in a traced function."""
    return [
        str(equation.invars[0].aval.dtype)
        for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr)
        if equation.primitive is primitives.dot_general_p
    ]


CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Some CPU
flags\t\t: fpu avx512_bf16 {amx}amx_tile
bogomips\t: 4000.00

processor\t: 1
flags\t\t: fpu amx_bf16
"""


def test_flags_are_those_of_the_first_processor():
    expected = {"fpu", "avx512_bf16", "amx_tile", "GenuineIntel"}
    assert cpu_flags(CPUINFO.format(amx="")) == expected
    assert "amx_bf16" in cpu_flags(CPUINFO.format(amx="amx_bf16 "))
    assert cpu_flags("") == frozenset()
    assert cpu_flags("Features\t: fp asimd bf16\n") == frozenset()


@pytest.mark.parametrize(
    "platform, flags, expected",
    [
        ("cpu", {"amx_bf16", "amx_tile", "avx512_bf16"}, "bfloat16"),
        ("cpu", {"avx512_bf16", "amx_tile"}, "float32"),
        ("cpu", {"avx512_bf16", "GenuineIntel"}, "float32"),
        ("cpu", {"avx512_bf16", "AuthenticAMD"}, "bfloat16"),
        ("cpu", {"avx512f", "AuthenticAMD"}, "float32"),
        ("cpu", set(), "float32"),
        ("gpu", set(), "bfloat16"),
        ("tpu", set(), "bfloat16"),
        ("METAL", {"amx_bf16"}, "float32"),
    ],
)
def test_auto_goes_by_platform_and_flags(platform, flags, expected):
    assert resolve("auto", platform, flags) == expected
    for given_one in ("float32", "bfloat16"):
        assert resolve(given_one, platform, flags) == given_one


# Each dimension: in which of a, b and the result it is, by its letter.
@st.composite
def einsums(draw):
    letters = iter("abcdefgh")
    kinds = {
        kind: [next(letters) for _ in range(draw(st.integers(low, 2)))]
        for kind, low in (("batch", 0), ("rows", 1), ("sum", 1), ("columns", 1))
    }
    sizes = {
        letter: draw(st.sampled_from([3, 8] if kind == "batch" else [6, 16, 35]))
        for kind, of in kinds.items()
        for letter in of
    }
    a = draw(st.permutations(kinds["batch"] + kinds["rows"] + kinds["sum"]))
    b = draw(st.permutations(kinds["batch"] + kinds["sum"] + kinds["columns"]))
    out = draw(st.permutations(kinds["batch"] + kinds["rows"] + kinds["columns"]))
    total = {k: int(np.prod([sizes[x] for x in of])) for k, of in kinds.items()}
    fills = total["rows"] >= 16 <= total["columns"] and total["sum"] >= 32
    return "".join(a), "".join(b), "".join(out), sizes, fills


@settings(max_examples=25, deadline=None, derandomize=True)
@given(einsums())
def test_any_order_of_dimensions_is_right_within_the_rounding(case):
    a, b, out, sizes, fills = case
    x = normal(0, *(sizes[i] for i in a))
    y = normal(1, *(sizes[i] for i in b))
    contract = partial(jnp.einsum, f"{a},{b}->{out}")
    found = jax.jit(bfloat16_products(contract))(x, y)
    assert products(bfloat16_products(contract), x, y) == [
        "bfloat16" if fills else "float32"
    ]
    if not fills:
        np.testing.assert_array_equal(found, jax.jit(contract)(x, y))
        return
    exact = partial(np.einsum, f"{a},{b}->{out}", optimize=True)
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    error = np.abs(found - exact(wide_x, wide_y))
    # Two roundings, and the sums in float32.
    bound = (2 * ROUNDING + ROUNDING**2 + 1e-4) * exact(abs(wide_x), abs(wide_y))
    assert np.all(error <= bound)
    assert error.max() > 0


W = normal(0, 32, 32) / 6


def custom_jvp(x):
    @jax.custom_jvp
    def square(x):
        return x @ W

    square.defjvp(lambda primals, tangents: (square(*primals), tangents[0] @ W))
    return square(x)


def custom_vjp(x):
    @jax.custom_vjp
    def square(x):
        return x @ W

    square.defvjp(lambda x: (square(x), None), lambda _, g: (g @ W.T,))
    return square(x)


def closed_call(x):
    call = primitives.closed_call_p
    inner = jax.make_jaxpr(lambda x: x @ W)(x)
    return call.bind(x, **call.get_bind_params({"call_jaxpr": inner}))[0]


def nested(x):
    step = jax.jit(lambda x: jnp.tanh(x @ W))
    body = jax.checkpoint(lambda i, x: jax.lax.cond(i > 0, step, lambda x: x, x))
    return jax.lax.fori_loop(0, jnp.int32(x[0, 0]) * 0 + 3, body, x)


# Function, the primitive that it is about, and the products in it.
INNER = {
    "jit": (jax.jit(lambda x: x @ W), "jit", 1),
    "closed_call": (closed_call, primitives.closed_call_p.name, 1),
    "checkpoint": (jax.checkpoint(lambda x: jnp.sin(x @ W)), "remat2", 1),
    "checkpoint_gradient": (
        jax.grad(lambda x: jax.checkpoint(lambda x: jnp.sin(x @ W))(x).sum()),
        "remat2",
        3,
    ),
    "custom_jvp": (custom_jvp, "custom_jvp_call", 1),
    "custom_vjp": (custom_vjp, "custom_vjp_call", 1),
    "scan": (
        lambda x: jax.lax.scan(lambda c, _: (c @ W, c), x, None, length=3)[0],
        "scan",
        1,
    ),
    "scan_gradient": (
        jax.grad(
            lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c @ W), c), x, None, 3)[
                0
            ].sum()
        ),
        "scan",
        2,
    ),
    "while": (
        lambda x: jax.lax.while_loop(
            lambda c: jnp.sum(c @ W) > 1e9, lambda c: c @ W, x
        ),
        "while",
        2,
    ),
    "fori_loop": (
        lambda x: jax.lax.fori_loop(
            0, jnp.int32(x[0, 0] * 0) + 2, lambda i, c: c @ W, x
        ),
        "while",
        1,
    ),
    "cond": (
        lambda x: jax.lax.cond(x[0, 0] > 0, lambda c: c @ W, lambda c: c @ W.T, x),
        "cond",
        2,
    ),
    "nested": (nested, "while", 1),
}


@pytest.mark.parametrize("name", INNER)
def test_products_inside_of_other_primitives(name):
    function, primitive, count = INNER[name]
    x = normal(1, 48, 32)
    assert products(function, x) == count * ["float32"]
    rewritten = bfloat16_products(function)
    assert products(rewritten, x) == count * ["bfloat16"]
    traced = jax.make_jaxpr(rewritten)(x).jaxpr
    assert primitive in [equation.primitive.name for equation in equations(traced)]
    found, exact = jax.jit(rewritten)(x), jax.jit(function)(x)
    error = np.linalg.norm(found - exact) / max(np.linalg.norm(exact), 1)
    # The loop of `while` ends before its first turn.
    assert error < 0.02
    assert (error > 0) == (name != "while")


@pytest.mark.parametrize("subscripts", ["td,dh->th", "bt,tdnh->bdnh", "btd,dnh->btnh"])
def test_no_gradient_of_a_kernel_is_transposed(subscripts):
    operands, _ = subscripts.split("->")
    sizes = {"b": 33, "t": 34, "d": 35, "n": 3, "h": 16}
    x, w = (
        normal(i, *(sizes[k] for k in operand))
        for i, operand in enumerate(operands.split(","))
    )
    gradient = jax.grad(lambda w: jnp.sum(jnp.sin(jnp.einsum(subscripts, x, w))))
    rewritten = bfloat16_products(gradient)
    traced = jax.make_jaxpr(rewritten)(w).jaxpr
    (last,) = (e for e in traced.eqns if traced.outvars[0] in e.outvars)
    assert last.params["name"] == "_row_major_product"
    found, exact = jax.jit(rewritten)(w), jax.jit(gradient)(w)
    assert 0 < np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)


def test_a_product_that_is_read_elsewhere_keeps_its_order():
    x, y = normal(0, 48, 32), normal(1, 32, 16)
    many = jnp.asarray(normal(2, 5, 16, 32))

    def both(x):
        product, batched = x @ y, many @ many.transpose(0, 2, 1)
        return product.T, product, jnp.swapaxes(x @ y, 0, 1), batched.transpose(0, 2, 1)

    rewritten = bfloat16_products(both)
    assert products(rewritten, x) == 3 * ["bfloat16"]
    for found, exact in zip(jax.jit(rewritten)(x), both(x), strict=True):
        assert found.shape == exact.shape
        assert 0 < np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)


def test_a_primitive_that_is_not_known_stays_untouched():
    def solve(x):
        return jax.lax.custom_linear_solve(
            lambda v: v @ W + 8 * v, x, lambda f, b: b / 8 - f(b / 8) / 8
        )

    x = normal(1, 48, 32)
    assert set(products(bfloat16_products(solve), x)) == {"float32"}
    np.testing.assert_array_equal(
        jax.jit(bfloat16_products(solve))(x), jax.jit(solve)(x)
    )


HALF = jnp.bfloat16
UNTOUCHED = {
    "few_rows": (jnp.matmul, normal(0, 15, 64), normal(1, 64, 64)),
    "few_columns": (jnp.matmul, normal(0, 64, 64), normal(1, 64, 15)),
    "short_sums": (jnp.matmul, normal(0, 64, 31), normal(1, 31, 64)),
    "vectors": (jnp.vdot, normal(0, 64), normal(1, 64)),
    "highest": (
        partial(jnp.matmul, precision="highest"),
        normal(0, 64, 64),
        normal(1, 64, 64),
    ),
    "bfloat16": (jnp.matmul, normal(0, 64, 64).astype(HALF), normal(1, 64, 64)),
    "result": (
        partial(jnp.matmul, preferred_element_type=HALF),
        normal(0, 64, 64),
        normal(1, 64, 64),
    ),
    "integers": (jnp.matmul, np.ones((64, 64), np.int32), np.ones((64, 64), np.int32)),
    "float16": (
        jnp.matmul,
        normal(0, 64, 64).astype(np.float16),
        normal(1, 64, 64).astype(np.float16),
    ),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_is_small_or_asks_for_its_precision_stays_as_it_is(name):
    function, a, b = UNTOUCHED[name]

    def gradient(a, b):
        return jax.grad(lambda a: function(a, b).sum())(a)

    stays = ("few_rows", "few_columns", "vectors", "highest")
    for f in (function, gradient) if name in stays else (function,):
        rewritten = bfloat16_products(f)
        assert str(jax.make_jaxpr(rewritten)(a, b)) == str(jax.make_jaxpr(f)(a, b))
        np.testing.assert_array_equal(jax.jit(rewritten)(a, b), jax.jit(f)(a, b))


def test_a_precision_means_the_same_on_every_platform(monkeypatch):
    """Where XLA's default is not float32, float32 has to be asked for."""
    x, few = normal(1, 48, 32), normal(5, W.shape[1], 2)

    def both(x):  # a product that fills a tile, and one that does not
        return (x @ W) @ few

    def asked_for(precision):
        products = equations(jax.make_jaxpr(in_precision(both, precision))(x).jaxpr)
        return {
            (e.invars[0].aval.dtype.name, str(e.params["precision"]))
            for e in products
            if e.primitive.name == "dot_general"
        }

    assert in_precision(nested, "float32") is nested
    assert asked_for("bfloat16") == {("bfloat16", "None"), ("float32", "None")}
    found = [jax.jit(in_precision(both, p))(x) for p in ("float32", "bfloat16")]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    highest = str((jax.lax.Precision.HIGHEST,) * 2)
    assert asked_for("bfloat16") == {("bfloat16", "None"), ("float32", highest)}
    assert asked_for("float32") == {("float32", highest)}
    ((kind, asked),) = asked_for("tf32")
    assert kind == "float32" and "HIGH" in asked and asked != highest
    again = [jax.jit(in_precision(both, p))(x) for p in ("float32", "bfloat16")]
    np.testing.assert_allclose(found, again, rtol=1e-5, atol=1e-5)


def test_tf32_is_of_gpus():
    assert resolve("tf32", "gpu", ()) == "tf32"
    for platform in ("cpu", "tpu"):
        with pytest.raises(ValueError, match="'tf32' is a precision of GPUs"):
            resolve("tf32", platform, ())


def test_names_and_effects_stay():
    seen = []

    @jax.jit
    def inner(x):
        jax.debug.callback(lambda total: seen.append(float(total)), x.sum())
        with jax.named_scope("scope"):
            return checkpoint_name(x @ W, "product")

    rewritten = bfloat16_products(lambda x: {"y": (inner(x), None)})
    x = normal(1, 48, 32)
    traced = jax.make_jaxpr(rewritten)(x)
    assert traced.effects == jax.make_jaxpr(inner)(x).effects != set()
    found = {e.primitive.name: e.params.get("name") for e in equations(traced.jaxpr)}
    assert found["name"] == "product"
    assert "inner" in [e.params.get("name") for e in equations(traced.jaxpr)]
    result = jax.jit(rewritten)(x)
    assert result["y"][1] is None
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [x.sum()], rtol=1e-4)
    assert "scope" in jax.jit(rewritten).lower(x).as_text(debug_info=True)


def test_options_closures_and_changed_shapes():
    scale = jnp.float32(2)

    @jax.jit
    def outer(x, factor):
        rewritten = bfloat16_products(lambda x, *, w: (x @ w) * factor * scale)
        return rewritten(x, w=W)

    for rows in (16, 40):
        x = normal(rows, rows, 32)
        np.testing.assert_allclose(outer(x, 3.0), 6 * x @ W, atol=0.2)


def loss(w, x):
    for layer in w:
        x = jnp.tanh(x @ layer)
    return jnp.mean(jnp.square(x))


def test_steps_in_a_loop_with_donated_weights():
    def steps(w, x, count):
        def step(_, w):
            return jax.tree.map(lambda a, g: a - 0.5 * g, w, jax.grad(loss)(w, x))

        return jax.lax.fori_loop(0, count, step, w)

    w, x = [W, W.T], normal(1, 64, 32)
    rewritten = bfloat16_products(steps)
    assert products(rewritten, w, x, 3) == 5 * ["bfloat16"]
    given_away = [jnp.array(a) for a in w]
    found = jax.jit(rewritten, donate_argnums=0)(given_away, x, 3)
    assert all(a.is_deleted() for a in given_away)
    exact = jax.jit(steps)(w, x, 3)
    for a, b, start in zip(found, exact, w, strict=True):
        assert 0 < np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b - start)


def test_vmap_outside_and_inside():
    w, xs = [W, W.T], normal(1, 3, 64, 32)
    gradient = jax.grad(loss)
    one_by_one = [jax.jit(bfloat16_products(gradient))(w, x) for x in xs]
    outside = jax.jit(jax.vmap(bfloat16_products(gradient), (None, 0)))(w, xs)
    inside = jax.jit(bfloat16_products(jax.vmap(gradient, (None, 0))))(w, xs)
    for found in (outside, inside):
        for i, expected in enumerate(one_by_one):
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-7)
    assert "float32" not in products(
        jax.vmap(bfloat16_products(gradient), (None, 0)), w, xs
    )


@pytest.fixture(scope="module")
def wide_preset(tmp_path_factory):
    """A KerasHub preset folder whose products fill tiles."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(30, 2, 2, 64, 128, max_sequence_length=32)
    folder = tmp_path_factory.mktemp("preset")
    backbone.save_to_preset(str(folder))
    return folder


def batch_of(shape, classes=20):
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 30, shape).astype(np.int32)
    labels = rng.integers(0, classes, shape[:-1]).astype(np.int32)
    return {
        "token_ids": ids,
        "padding_mask": np.ones_like(ids),
        "segment_ids": np.zeros_like(ids),
        "labels": labels,
        "weights": np.ones(labels.shape, np.float32),
    }


def test_the_programs_rewrite_the_encoder_and_no_head_fisher_or_gradient(wide_preset):
    classes = 20  # a head that would fill tiles
    encoder = load_encoder(str(wide_preset), precision="bfloat16")
    step = SequentialTrainer(encoder, TrainingSettings()).step
    head = new_head(classes, encoder.width, np.random.default_rng(0))
    weights, state = encoder.weights, encoder.state
    one = batch_of((16, 32))

    def found(function, *arguments):
        types = products(jitted(function, *arguments), *arguments)
        return types.count("bfloat16"), types.count("float32")

    # Query, key and value, two of attention, output, two of the feed-forward part; of
    # one token the query is apart, and attention too small for a tile.
    whole, of_one_token = 6, 5
    float32 = 2 + 1  # that, and the head
    assert found(step.evaluate, weights, head, state, one) == (
        whole + of_one_token,
        float32,
    )
    multipliers = dict.fromkeys(step.groups, 1.0)
    many = {name: array[None] for name, array in one.items()}
    first = step.begin(weights, [head], state, multipliers)
    clock = Clock(np.int32(1), *map(np.float32, (0, 1, 1e-3)))
    # The gradients of the kernels above one token sum over 16 rows, half a tile.
    shallow = 4
    expected = 3 * (whole + of_one_token) - shallow, 3 * float32 + shallow
    assert found(step.train_steps, first, many, clock, Terms()) == expected
    total = WeightSum([jnp.zeros_like(w) for w in weights])
    given = (total, weights, head, many, np.int32(1), np.float32(1))
    for function in (step.fisher, step.gradient):
        rewritten, untouched = found(function, *given)
        assert rewritten == 0 and untouched > 0


def test_a_model_is_float32_but_for_its_products(wide_preset, monkeypatch):
    encoder = load_encoder(str(wide_preset), precision="bfloat16")
    batch = batch_of((16, 32))

    def features(weights):
        return encoder.features(weights, encoder.state, batch, training=False)[0]

    plain = jax.jit(features)(encoder.weights)
    found = {}
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda p=platform: p)
        precise = in_precision(features, "bfloat16")
        assert "bfloat16" in products(precise, encoder.weights)
        found[platform] = jax.jit(precise)(encoder.weights)
    assert found["gpu"].dtype == jnp.float32
    np.testing.assert_allclose(found["gpu"], found["cpu"], rtol=1e-4, atol=1e-4)
    error = np.linalg.norm(found["gpu"] - plain)
    assert 0 < error < 0.02 * np.linalg.norm(plain)


def resolved_with(flags, configuration, monkeypatch):
    monkeypatch.setattr(machine, "cpu_flags", lambda cpuinfo: frozenset(flags))
    return loading.resolved(configuration)


def test_runs_of_two_precisions_do_not_mix(toml, tmp_path, monkeypatch):
    path = tmp_path / "small.toml"
    path.write_text(toml)
    configuration = config.load(path)
    assert configuration.model.precision == "auto"
    on = partial(resolved_with, configuration=configuration, monkeypatch=monkeypatch)
    amx, other = on({"amx_bf16"}), on(())
    assert (amx.model.precision, other.model.precision) == ("bfloat16", "float32")
    assert search._fingerprint(amx, {}) != search._fingerprint(other, {})

    compared, searched = tmp_path / "compared", tmp_path / "searched"
    comparison.claim(other, compared, {})
    write_runs(compared, record())
    (searched / "search").mkdir(parents=True)
    (searched / "search" / "oracle.json").write_text("{}")
    text = json.dumps(other.model_dump())
    (searched / "configuration.json").write_text(text)
    on({"amx_bf16"})
    for prepare, folder in ((comparison.prepare, compared), (search.prepare, searched)):
        with pytest.raises(ValueError, match="What differs: model.precision$"):
            prepare(configuration, folder)


def test_the_results_name_the_precision(toml, tmp_path, monkeypatch):
    path = tmp_path / "small.toml"
    path.write_text(toml)
    monkeypatch.setattr(machine, "cpu_flags", lambda cpuinfo: {"amx_bf16"})
    prepared = comparison.prepare(config.load(path), tmp_path / "run")
    assert prepared.trainer.encoder.precision == "bfloat16"
    prepared.save_results([])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["configuration"]["model"]["precision"] == "bfloat16"


def test_a_precision_that_there_is_not(toml, tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(toml)
    with pytest.raises(ValueError, match="model.precision.*'float16'"):
        config.load(path, ["model.precision=float16"])


# The same loss in float64, by Keras's own model and without our programs.
IN_FLOAT64 = """
import os, sys
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_ENABLE_X64"] = "1"
import jax, jax.numpy as jnp, keras, keras_hub, numpy as np
preset, folder = sys.argv[1:]
backbone = keras_hub.models.Backbone.from_preset(preset, dropout=0.0, dtype="float64")
model = keras.Model(backbone.input, backbone.output["sequence_output"])
names = ("token_ids", "padding_mask", "segment_ids")

@jax.jit
@jax.grad
def gradient(weights, batch):
    *backbone_weights, kernel, bias = weights
    inputs = {name: batch[name] for name in names}
    output, _ = model.stateless_call(backbone_weights, [], inputs, training=True)
    scores = jax.nn.log_softmax(output[:, 0] @ kernel + bias)
    rows = jnp.arange(len(scores))
    return -jnp.mean(scores[rows, batch["labels"]])

weights = [jnp.asarray(v.value) for v in model.trainable_variables]
for name in ("sst2", "mrpc"):
    batch = dict(np.load(f"{folder}/{name}.npz"))
    head = [jnp.asarray(batch[n], "float64") for n in ("kernel", "bias")]
    assert {str(w.dtype) for w in weights + head} == {"float64"}
    np.savez(f"{folder}/{name}_gradient.npz", *gradient(weights + head, batch))
"""


def test_gradients_of_real_weights_and_data_against_float64(minilm, shared, tmp_path):
    encoder = load_encoder(str(minilm), precision="bfloat16")
    step = SequentialTrainer(encoder, TrainingSettings()).step
    tokenizer = load_tokenizer(str(minilm))
    kernel, bias = new_head(2, encoder.width, np.random.default_rng(0))
    values = [*encoder.weights, kernel, bias]

    def loss(values, batch):
        model = values[:-2], [values[-2:]]
        return step.loss(model, encoder.state, batch, Terms())[0]

    gradient = jax.jit(in_precision(jax.grad(loss), "bfloat16"))
    found = {}
    for name in ("sst2", "mrpc"):
        task = TaskSettings(name=name, source=f"glue/{name}")
        texts = load_task(task, DataSettings(dir=str(shared / "tfds")))
        rows = texts.splits["validation"].take(np.arange(8))
        data = encode(rows, tokenizer, 64, tmp_path / "cache", name)
        batch = data.arrays(np.arange(8), 64)
        found[name] = gradient(values, batch)
        np.savez(tmp_path / f"{name}.npz", kernel=kernel, bias=bias, **batch)
    subprocess.run(
        [sys.executable, "-c", IN_FLOAT64, str(minilm), str(tmp_path)],
        check=True,
        capture_output=True,
        env=os.environ | {"XLA_FLAGS": ""},  # much to compute, little to compile
    )
    paths = [v.path for v in encoder.model.trainable_variables] + ["kernel", "bias"]
    for name, gradients in found.items():
        exact = list(np.load(tmp_path / f"{name}_gradient.npz").values())
        errors = {
            path: np.linalg.norm(a - b) / np.linalg.norm(b)
            for path, a, b in zip(paths, gradients, exact, strict=True)
            if not path.endswith("key/bias")  # zero but for rounding
        }
        assert len(errors) == len(paths) - 6
        worst = max(errors, key=errors.__getitem__)
        middle = np.median(list(errors.values()))
        print(f"{name}: worst {worst} {errors[worst]:.4f}, median {middle:.4f}")
        assert errors[worst] < 0.02, worst
        assert middle > 1e-4  # they are bfloat16's
