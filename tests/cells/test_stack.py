"""Cells on top of each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kfrtrl_jax import cells, estimators
from kfrtrl_jax._src.lanes import initial_lanes, restarted
from kfrtrl_jax.base import Batch, Cell
from tests.helpers.interpreter import evaluated
from tests.helpers.learners import learner_of, segments
from tests.learning.test_learner import loss_of_sequence
from tests.trajectories import INPUT_SIZE, flat, sequence


def mixed():
    """Three kinds of cells, of which only the last has an output as long as its input."""
    return cells.stack(
        [
            cells.vanilla(input_size=INPUT_SIZE, hidden_size=2, init_scale=0.7),
            cells.lstm(input_size=2, hidden_size=4, init_scale=0.7),
            cells.lru(input_size=4, hidden_size=2),
        ],
        input_size=INPUT_SIZE,
        skip=True,
        norm="layer",
    )


def test_rtrl_on_a_stack_of_mixed_cells_is_backpropagation_through_time():
    cell, batches = mixed(), Batch(*sequence(4))
    learner = learner_of(cell, estimators.rtrl())
    state = learner.init(jax.random.key(0))

    def accumulate(state, batches):
        def one(state, segment):
            gradient, state, _ = learner.gradient(state, segment)
            return state, gradient

        gradients = jax.lax.scan(one, state, segments(batches, 1))[1]
        return jax.tree.map(lambda g: jnp.sum(g, axis=0), gradients)

    gradient = evaluated(accumulate, state, batches)
    exact = evaluated(jax.grad(lambda p: loss_of_sequence(cell, p, batches)), state.parameters)
    assert all(jnp.linalg.norm(flat(layer)) > 0.01 for layer in exact["cell"])
    chex.assert_trees_all_close(gradient, exact, rtol=1e-7, atol=1e-10)


def test_a_layer_is_norm_of_skip_and_mix_of_its_cell():
    lru = cells.lru(input_size=3, hidden_size=2)
    options = {"input_size": 3, "skip": True, "norm": "rms", "mix": "glu", "width": 5}
    cell = cells.stack_of(lambda size: cells.lru(input_size=size, hidden_size=2), 2, **options)
    params = cell.init(jax.random.key(0))
    assert [set(layer) for layer in params] == [
        {"cell", "mix", "skip", "norm"},
        {"cell", "mix", "norm"},
    ]
    first, x = params[0], jnp.array([1.0, -2.0, 0.5])
    carry, y = lru.step(first["cell"], lru.initial_carry(), x)
    value, gate = jnp.split(y @ first["mix"]["weights"] + first["mix"]["bias"], 2)
    middle = value / (1 + jnp.exp(-gate)) + x @ first["skip"]
    middle = middle / jnp.sqrt(jnp.mean(middle**2) + 1e-5) * first["norm"]["scale"]
    one = cells.stack([lru], **options)
    state, output = one.step(params[:1], one.initial_carry(), x)
    chex.assert_trees_all_close((state, output), ((carry,), middle), rtol=1e-12)
    states, _ = cell.step(params, cell.initial_carry(), x)
    second = cells.lru(input_size=5, hidden_size=2)
    above, _ = second.step(params[1]["cell"], second.initial_carry(), middle)
    chex.assert_trees_all_close(states, (carry, above), rtol=1e-12)


def test_layer_normalization_leaves_mean_zero_and_variance_one():
    options = {"input_size": 3, "norm": "layer", "mix": "linear", "width": 50}
    cell = cells.stack([cells.vanilla(input_size=3, hidden_size=4)], **options)
    _, output = cell.step(cell.init(jax.random.key(0)), cell.initial_carry(), jnp.ones(3))
    np.testing.assert_allclose([jnp.mean(output), jnp.var(output)], [0, 1], atol=1e-3)


def noisy(key, keeps):
    """A cell with a key in its carry, that keeps a counter when a lane starts anew, or not."""

    def step(params, carry, x):
        key, draw = jax.random.split(carry["key"])
        h = params["w"] * carry["h"] + x + jax.random.normal(draw, (2,))
        return {"count": carry["count"] + 1, "h": h, "key": key}, h

    def initial_carry():
        return {"count": jnp.zeros(()), "h": jnp.zeros(2), "key": key}

    def restart(carry):
        return {**initial_carry(), "count": carry["count"]}

    return Cell(lambda key: {"w": jnp.ones(2)}, initial_carry, step, restart if keeps else None)


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0)])
def test_layers_and_lanes_draw_different_numbers_and_restart_by_their_own_rules(key):
    cell = cells.stack([noisy(key, keeps=False), noisy(key, keeps=True)], input_size=2)
    params = cell.init(jax.random.key(0))

    def step(carry):
        return jax.vmap(cell.step, in_axes=(None, 0, None))(params, carry, jnp.zeros(2))[0]

    after = step(step(initial_lanes(cell, 2)))
    drawn = np.concatenate([after[0]["h"], after[1]["h"] - after[0]["h"]])
    assert len(np.unique(drawn)) == drawn.size
    again = restarted(cell, after, jnp.array([True, False]))
    np.testing.assert_array_equal(again[0]["count"], [0, 2])
    np.testing.assert_array_equal(again[1]["count"], [2, 2])
    for old, new in zip(after, again):
        np.testing.assert_array_equal(new["h"], old["h"] * np.array([[0.0], [1.0]]))
        data = jax.random.key_data if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jnp.array
        np.testing.assert_array_equal(data(new["key"]), data(old["key"]))
    assert cells.stack([noisy(key, keeps=False)], input_size=2).restart is None


def test_flax_cells_and_others_make_a_stack_on_tokens():
    kinds = {"param_dtype": jnp.float64, "dtype": jnp.float64}
    gru = cells.from_flax(nn.GRUCell(4, **kinds), jax.ShapeDtypeStruct((5,), jnp.float64))
    cell = cells.stack([gru, cells.vanilla(input_size=4, hidden_size=3)], input_size=5)
    params = cell.init(jax.random.key(0))
    carry, output = cells.on_tokens(cell, 5).step(params, cell.initial_carry(), jnp.int32(2))
    chex.assert_shape([carry[0], carry[1], output], [(4,), (3,), (3,)])
    assert len(params) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, 'norm must be "layer", "rms" or None'),
        ({"mix": "mlp"}, 'mix must be "linear", "glu" or None'),
        ({"width": 3}, "width=3 is the length of the output of a mix"),
        ({"input_size": 7}, "the cell of layer 0 cannot read its input, a vector of length 7"),
        ({"mix": "glu", "width": 9}, "the cell of layer 1 cannot read its input.* length 9"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    two = [cells.vanilla(input_size=3, hidden_size=3)] * 2
    with pytest.raises(ValueError, match=message):
        cells.stack(two, **{"input_size": 3, **options})


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="at least one cell"):
        cells.stack([], input_size=3)
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        cells.stack_of(lambda size: cells.vanilla(input_size=size, hidden_size=2), 0, input_size=3)
