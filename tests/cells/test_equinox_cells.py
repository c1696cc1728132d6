"""Unmodified Equinox cells, against JAX's derivatives of their steps."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells
from kfrtrl_jax._src.lanes import initial_lanes, restarted
from kfrtrl_jax.linearization import make_linearizer
from tests.helpers.interpreter import evaluated, traced
from tests.linearization.references import assert_exact, random_point
from tests.trajectories import INPUT_SIZE

N = 4
KEY = jax.random.key(0)
ZEROS = jnp.zeros(N)


class Normalized(eqx.Module):
    """A GRU between layer normalization and dropout, with an output of its own."""

    cell: eqx.nn.GRUCell
    norm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(INPUT_SIZE, N, key=keys[0])
        self.norm = eqx.nn.LayerNorm(N)
        self.dropout = eqx.nn.Dropout(0.5)
        self.out = eqx.nn.Linear(N, 2, key=keys[1])

    def __call__(self, h, x, *, key=None):
        h = self.cell(x, self.dropout(self.norm(h), key=key))
        return h, self.out(h)


class Trace(eqx.Module):
    """A cell with a trace of its states in an `eqx.nn.State`; `stop` cuts its gradient off by hand."""

    weights: eqx.nn.Linear
    trace: eqx.nn.StateIndex
    steps: eqx.nn.StateIndex
    stop: bool

    def __init__(self, key, stop=False):
        self.weights = eqx.nn.Linear(INPUT_SIZE + 2 * N, N, key=key)
        self.trace = eqx.nn.StateIndex(jnp.zeros(N))
        self.steps = eqx.nn.StateIndex(jnp.zeros((), jnp.int32))
        self.stop = stop

    def __call__(self, h, x, state):
        cut = jax.lax.stop_gradient if self.stop else lambda a: a
        trace = cut(state.get(self.trace))
        h = jnp.tanh(self.weights(jnp.concatenate([x, h, trace])))
        state = state.set(self.trace, cut(0.8 * trace + h))
        return h, h, state.set(self.steps, state.get(self.steps) + 1)


def trace(**kwargs):
    return cells.from_equinox(eqx.nn.make_with_state(Trace)(KEY), ZEROS, **kwargs)


CELLS = {
    "lstm": lambda: cells.from_equinox(lambda key: eqx.nn.LSTMCell(INPUT_SIZE, N, key=key)),
    "dropout": lambda: cells.from_equinox(Normalized, ZEROS, key=jax.random.key(3)),
    "trace": trace,
}


def with_named_parameters(cell):
    """The same with its parameters in a dict, whatever key `init` is given."""
    leaves, structure = jax.tree.flatten(cell.init(KEY))
    names = [f"{i:02}" for i in range(len(leaves))]

    def step(params, carry, x):
        return cell.step(jax.tree.unflatten(structure, [params[n] for n in names]), carry, x)

    return cell._replace(init=lambda key: dict(zip(names, leaves)), step=step)


@pytest.mark.parametrize("name", CELLS)
def test_linearization_and_rtrl_are_exact(name):
    cell = with_named_parameters(CELLS[name]())
    linearizer = assert_exact(cell, random_point(cell, INPUT_SIZE, steps=4), at_once=True)
    assert linearizer.structure.problems == ()


def structure_of(cell):
    return make_linearizer(cell, jnp.zeros(INPUT_SIZE), 1).structure


def test_all_matrices_of_an_lstm_are_one_site_by_their_names_and_its_output_is_h():
    cell = CELLS["lstm"]()
    (site,) = structure_of(cell).sites
    assert (site.input_size, site.output_size) == (INPUT_SIZE + N + 1, 4 * N)
    assert site.label == "weight_ih + weight_hh + bias"
    carry = (jnp.ones(N), jnp.arange(4.0))
    (h, c), output = evaluated(cell.step, cell.init(KEY), carry, jnp.ones(3))
    expected = eqx.nn.LSTMCell(INPUT_SIZE, N, key=KEY)(jnp.ones(3), carry)
    np.testing.assert_allclose((h, c), expected, rtol=1e-12)
    np.testing.assert_array_equal(output, h)


def test_a_module_keeps_its_parameters_and_a_function_draws_them():
    module = eqx.nn.GRUCell(INPUT_SIZE, N, key=jax.random.key(7))
    kept = cells.from_equinox(module).init(jax.random.key(1))
    np.testing.assert_array_equal(kept.weight_hh, module.weight_hh)
    drawn = cells.from_equinox(lambda key: eqx.nn.GRUCell(INPUT_SIZE, N, key=key))
    np.testing.assert_array_equal(drawn.init(jax.random.key(7)).weight_hh, module.weight_hh)
    assert not np.any(drawn.init(jax.random.key(8)).weight_hh == module.weight_hh)


def test_arguments_come_in_the_order_that_is_asked_for():
    class Swapped(eqx.Module):
        cell: eqx.nn.GRUCell

        def __call__(self, x, h):
            return self.cell(x, h)

    module = eqx.nn.GRUCell(N, N, key=KEY)
    h, x = jnp.arange(4.0), jnp.ones(N)
    for cell in (
        cells.from_equinox(module),
        cells.from_equinox(Swapped(module), ZEROS, input_first=True),
    ):
        carry, _ = evaluated(cell.step, cell.init(KEY), h, x)
        np.testing.assert_allclose(carry, module(x, h), rtol=1e-12)
    cell = cells.from_equinox(Swapped(module), ZEROS)
    assert not np.allclose(evaluated(cell.step, cell.init(KEY), h, x)[0], module(x, h))


def after(cell, steps):
    """The carry of two lanes."""
    params, carry = cell.init(KEY), initial_lanes(cell, 2)
    step = traced(jax.vmap(cell.step, in_axes=(None, 0, None)), params, carry, jnp.ones(INPUT_SIZE))
    for _ in range(steps):
        carry, _ = step(params, carry, jnp.ones(INPUT_SIZE))
    return carry


def test_dropout_draws_other_numbers_in_each_lane_and_goes_on_over_a_restart():
    cell = CELLS["dropout"]()
    carry = h, state, keys = after(cell, 2)
    assert state == ()
    assert not np.any(h[0] == h[1])
    data = jax.random.key_data(keys)
    assert not np.any(data[0] == data[1])
    fresh, _, same = restarted(cell, carry, jnp.asarray([True, False]))
    np.testing.assert_array_equal(fresh, [np.zeros(N), h[1]])
    np.testing.assert_array_equal(data, jax.random.key_data(same))


def test_without_dropout_a_module_needs_no_key():
    module = Normalized(KEY)
    cell = cells.from_equinox(module, ZEROS, inference=True)
    h, x = jnp.arange(4.0), jnp.ones(INPUT_SIZE)
    carry, output = evaluated(cell.step, cell.init(KEY), h, x)
    expected = evaluated(eqx.nn.inference_mode(module), h, x)
    np.testing.assert_allclose(carry, expected[0], rtol=1e-12)
    np.testing.assert_allclose(output, expected[1], rtol=1e-12)


@pytest.mark.parametrize("cut", [False, True])
def test_state_starts_anew_with_the_lane_unless_cut(cut):
    cell = trace(cut=cut)
    before = after(cell, 3)
    h, state = restarted(cell, before, jnp.asarray([True, False]))
    np.testing.assert_array_equal(h[0], 0)
    for old, new in zip(before[1], state, strict=True):
        np.testing.assert_array_equal(new, [old[0] if cut else 0 * old[0], old[1]])
    (steps,) = [leaf for leaf in state if leaf.dtype == jnp.int32]
    np.testing.assert_array_equal(steps, [3 if cut else 0, 3])


def test_state_that_is_cut_has_no_gradient():
    def gradient(cell):
        def last(params):
            carry = cell.initial_carry()
            for x in jnp.eye(3):
                carry, output = cell.step(params, carry, x)
            return jnp.sum(output**2)

        return evaluated(jax.grad(last), cell.init(KEY)).weights.weight

    stopped = cells.from_equinox(eqx.nn.make_with_state(Trace)(KEY, stop=True), ZEROS)
    np.testing.assert_allclose(gradient(trace(cut=True)), gradient(stopped), rtol=1e-12)
    assert not np.allclose(gradient(trace()), gradient(stopped), rtol=1e-3)


def test_what_is_no_cell_is_refused():
    with pytest.raises(TypeError, match=r"takes an equinox\.Module"):
        cells.from_equinox(3)
    with pytest.raises(TypeError, match=r"no equinox\.Module with __call__"):
        cells.from_equinox(lambda key: 3)
    with pytest.raises(TypeError, match=r"must be an eqx\.nn\.State, got 3"):
        cells.from_equinox((Normalized(KEY), 3), ZEROS)
    with pytest.raises(ValueError, match="Normalized needs initial_carry"):
        cells.from_equinox(Normalized, inference=True)
    with pytest.raises(ValueError, match=r"cut is for stateful layers, but GRUCell has no state"):
        cells.from_equinox(eqx.nn.GRUCell(3, 4, key=KEY), cut=True)


def test_keys_that_are_missing_or_not_taken_are_refused():
    with pytest.raises(
        ValueError, match=r"dropout.*pass key=jax.random.key\(0\), or inference=True"
    ):
        cells.from_equinox(Normalized, ZEROS)
    with pytest.raises(ValueError, match="Trace cannot be called with an argument `key`"):
        trace(key=KEY)
    with pytest.raises(ValueError, match="key must be a PRNG key"):
        cells.from_equinox(Normalized, ZEROS, key=3.0)


def test_a_module_that_does_not_return_its_carry_is_refused():
    cell = cells.from_equinox(eqx.nn.Linear(N, 2, key=KEY), ZEROS, key=KEY, input_first=True)
    with pytest.raises(TypeError):
        cell.step(cell.init(KEY), cell.initial_carry(), jnp.ones(N))

    class Halved(eqx.Module):
        def __call__(self, h, x):
            return h[:2], x

    cell = cells.from_equinox(Halved(), ZEROS)
    with pytest.raises(TypeError, match=r"Halved must return the carry or \(carry, output\)"):
        cell.step(cell.init(KEY), ZEROS, jnp.ones(3))


def test_without_equinox_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(ImportError, match=r"pip install 'kfrtrl_jax\[equinox\]'"):
        cells.from_equinox(None)
