"""Workarounds for the compiler change no result."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kfrtrl_jax as kf
from kfrtrl_jax._src import xla
from kfrtrl_jax._src.optimizers import clip_cell
from tests.helpers.interpreter import evaluated

LENGTHS = {"K = 1": {}, "K = 4": {"segment_length": 4, "update_every": 1}}
ESTIMATORS = {"kf_rtrl": kf.estimators.kf_rtrl(), "ok": kf.estimators.ok(2)}


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def learner_of(estimator, **lengths):
    cell = kf.cells.on_tokens(kf.cells.lstm(input_size=4, hidden_size=5, init_scale=0.5), 4)
    return kf.make_learner(
        cell,
        kf.readouts.linear(input_size=5, output_size=4),
        estimator,
        optax.adam(1e-2),
        batch_size=3,
        example_input=jnp.int32(0),
        **lengths,
    )


def chunk(learner, length, segments=6):
    """(a training chunk, its first state, its batches)."""
    tokens = jax.random.randint(jax.random.key(1), (segments, length, 3), 0, 4, jnp.int32)
    reset = jax.random.bernoulli(jax.random.key(2), 0.1, tokens.shape)
    batches = kf.Batch(tokens, jnp.roll(tokens, -1, axis=1), reset)
    return (
        lambda state, batches: jax.lax.scan(learner.step, state, batches),
        jax.tree.map(jnp.asarray, evaluated(learner.init, jax.random.key(0))),
        batches,
    )


@pytest.mark.parametrize(("estimator", "lengths"), [("kf_rtrl", "K = 4"), ("ok", "K = 4")])
def test_a_chunk_under_the_fast_options_and_donation_is_that_of_single_operations(
    estimator, lengths
):
    learner = learner_of(ESTIMATORS[estimator], **LENGTHS[lengths])
    run, state, batches = chunk(learner, LENGTHS[lengths].get("segment_length", 1))
    want = evaluated(run, state, batches)
    got = kf.jit(run, donate_argnums=0)(state, batches)

    def close(a, b):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)

    jax.tree.map(close, got, want)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_step_lowers_for_accelerators_without_a_call_of_the_cpu(platform, lengths):
    learner = learner_of(kf.estimators.kf_rtrl(), **LENGTHS[lengths])
    run, state, batches = chunk(learner, LENGTHS[lengths].get("segment_length", 1))
    text = jax.jit(run).trace(state, batches).lower(lowering_platforms=(platform,)).as_text()
    assert "stablehlo.while" in text
    assert "lapack" not in text
    assert "cpu" not in text.lower().replace("cpus", "")


def test_norms_and_sums():
    x, y = random(2, 16, 5), random(2, 16, 3, seed=1)
    np.testing.assert_allclose(xla.norm(x), np.sqrt((np.asarray(x) ** 2).sum((1, 2))))
    for rows in (16, 13):
        np.testing.assert_allclose(xla.sum_of_rows(x[:, :rows]), np.asarray(x)[:, :rows].sum(1))
    many = random(70, 3)
    for first in (many, many[:5]):
        np.testing.assert_allclose(xla.sum_of_first(first), np.asarray(first).sum(0), atol=1e-12)
    for terms in (16, 1):
        np.testing.assert_allclose(
            xla.outer_sum(x[:, :terms], y[:, :terms]),
            np.einsum("btm,btg->bmg", x[:, :terms], y[:, :terms]),
            atol=1e-12,
        )
    assert xla.at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
    np.testing.assert_array_equal(xla.materialized(x), x)
    assert np.isnan(xla.materialized(jnp.asarray([jnp.nan])))


def test_a_change_in_place_is_made_where_its_condition_holds():
    x = {"a": random(3), "b": jnp.arange(2)}
    for condition in (True, False):
        got = jax.jit(
            lambda c, x: xla.in_place_if(c, lambda t: jax.tree.map(lambda v: v + 1, t), x)
        )(condition, x)
        jax.tree.map(lambda g, v, c=condition: np.testing.assert_array_equal(g, v + c), got, x)


@pytest.mark.parametrize(("limit", "scale"), [(0.0, 1), (100.0, 1), (2.5, 0.5)])
def test_clipping_scales_the_cells_gradient_alone(limit, scale):
    """A norm of 5; no limit is 0."""
    gradient = {"cell": {"w": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}, "readout": jnp.ones(9)}
    clipped, _ = clip_cell(limit).update(gradient, optax.EmptyState())
    jax.tree.map(
        lambda got, was: np.testing.assert_allclose(got, scale * was),
        clipped["cell"],
        gradient["cell"],
    )
    np.testing.assert_array_equal(clipped["readout"], gradient["readout"])
