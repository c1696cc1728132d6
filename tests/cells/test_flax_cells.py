import functools
import re
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from kfrtrl_jax import cells, estimators, readouts, tasks
from kfrtrl_jax._src.lanes import initial_lanes, restarted
from kfrtrl_jax._src.matrices import Banded
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.learning import make_learner
from kfrtrl_jax.linearization import explain
from tests.helpers.flax_cells import CELLS, F64, LayerNormLSTM, X
from tests.helpers.jacobians import assert_linearization_is_the_jacobian, inputs
from tests.helpers.nights import some
from tests.trajectories import INPUT_SIZE


@pytest.mark.parametrize("name", CELLS)
def test_linearization_of_an_unmodified_cell_is_its_jacobian(name):
    linearizer, linearization = assert_linearization_is_the_jacobian(CELLS[name](), inputs())
    assert linearizer.structure.problems == ()
    assert all(isinstance(site.derivatives.groups[0], Banded) for site in linearization.sites)


@pytest.mark.parametrize("name", ["linen_lstm", "linen_optimized_lstm", "nnx_lstm"])
def test_all_matrices_of_an_lstm_are_one_site(name):
    linearizer, _ = assert_linearization_is_the_jacobian(CELLS[name](), inputs())
    (site,) = linearizer.structure.sites
    assert (site.input_size, site.output_size) == (INPUT_SIZE + 4 + 1, 16)


def test_a_stack_with_layer_normalization_and_a_readout_inside():
    cell = cells.from_flax(LayerNormLSTM(3), X)
    linearizer, _ = assert_linearization_is_the_jacobian(cell, inputs())
    assert linearizer.structure.problems == ()
    assert linearizer.direct == ("Dense_0/bias", "Dense_0/kernel")


def test_a_convolutional_lstm_has_one_site_and_a_term_for_each_position():
    shape = jax.ShapeDtypeStruct((3, 2, 1), jnp.float64)
    cell = cells.from_flax(nn.ConvLSTMCell(features=1, kernel_size=(2, 2), **F64), shape)
    images = jax.random.normal(jax.random.key(5), (2, *shape.shape))
    linearizer, _ = assert_linearization_is_the_jacobian(cell, images)
    (site,) = linearizer.structure.sites
    assert (site.input_size, site.output_size, site.uses) == (4 + 4 + 1, 4, 6)
    estimators.kf_rtrl().init(linearizer.structure)


class GroupedConvolution(nn.RNNCellBase):
    """A kernel for each feature: a product of no known structure."""

    @nn.compact
    def __call__(self, carry, x):
        z = nn.Conv(2, (3, 3), feature_group_count=2, **F64)(carry)
        return (jnp.tanh(z + x),) * 2

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((4, 4, 2))

    @property
    def num_feature_axes(self):
        return 3


def test_a_grouped_convolution_is_refused_with_operation_parameter_line_and_what_works():
    shape = jax.ShapeDtypeStruct((4, 4, 1), jnp.float64)
    cell = cells.from_flax(GroupedConvolution(), shape)
    with pytest.raises(UnsupportedCellError, match="conv_general_dilated at") as error:
        make_learner(
            cell,
            readouts.linear(input_size=2, output_size=3),
            estimators.kf_rtrl(),
            optax.adam(1e-3),
            batch_size=2,
            example_input=shape,
        )
    message = str(error.value)
    assert "kernel" in message
    assert ".py:" in message
    assert "rtrl, uoro" in message
    assert "\n" not in message


def learner_of(cell, batch_size, estimator=None):
    return make_learner(
        cell,
        readouts.linear(input_size=4, output_size=3),
        estimator or estimators.kf_rtrl(),
        optax.adam(1e-2),
        batch_size=batch_size,
        example_input=X,
    )


def constant_batch(batch_size):
    inputs = jnp.ones((1, batch_size, INPUT_SIZE))
    return tasks.Batch(inputs, jnp.zeros((1, batch_size), int), jnp.zeros((1, batch_size), bool))


def sum_and_unrolled(cell, steps=5, restart_at=0):
    """The cell's gradient, rtrl's summed over single steps and `jax.grad`'s of the unrolled loss."""
    resets = (jnp.arange(steps) == restart_at)[:, None]
    learner = learner_of(cell, 1, estimators.rtrl())
    readout = readouts.linear(input_size=4, output_size=3)
    xs = jax.random.normal(jax.random.key(2), (steps, 1, INPUT_SIZE))
    state = learner.init(jax.random.key(1))
    start, parameters = state.carry, state.parameters
    summed = jax.tree.map(jnp.zeros_like, parameters["cell"])
    step = jax.jit(learner.gradient)
    for x, reset in zip(xs, resets):
        batch = constant_batch(1)._replace(inputs=x[None], reset=reset[None])
        gradient, state, _ = step(state, batch)
        summed = jax.tree.map(jnp.add, summed, gradient["cell"])

    def unrolled(params):
        carry, total = start, 0.0
        for x, reset in zip(xs, resets):
            carry = restarted(cell, carry, reset)
            carry, output = jax.vmap(cell.step, in_axes=(None, 0, 0))(params, carry, x)
            logits = readout.apply(parameters["readout"], output[0])
            total += optax.softmax_cross_entropy_with_integer_labels(logits, 0)
        return total

    return summed, jax.jit(jax.grad(unrolled))(parameters["cell"])


assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-7, atol=1e-10)


def differ(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.allclose(x, y, atol=1e-4) for x, y in pairs)


def carry_after(cell, steps, batch_size=2):
    params = cell.init(jax.random.key(0))
    carry = initial_lanes(cell, batch_size)
    x = jnp.ones((batch_size, INPUT_SIZE))
    step = jax.jit(jax.vmap(cell.step, in_axes=(None, 0, 0)))
    for _ in range(steps):
        carry, _ = step(params, carry, x)
    return carry


def key_data(keys):
    return np.asarray(jax.random.key_data(keys))


class Carry4(nn.RNNCellBase):
    """What the Linen cells below have in common."""

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros(4)

    @property
    def num_feature_axes(self):
        return 1


class LinenNoisy(Carry4):
    streams: Any = ("noise",)

    @nn.compact
    def __call__(self, h, x):
        h = nn.Dense(4, **F64)(jnp.concatenate([x, h]))
        for stream in self.streams:
            h += 0.1 * jax.random.normal(self.make_rng(stream), h.shape)
        h = jnp.tanh(h)
        return h, h


def test_random_linen_cell_draws_other_numbers_in_each_lane_and_trains():
    cell = cells.from_flax(LinenNoisy(), X)
    learner = learner_of(cell, 4)
    state = learner.init(jax.random.key(0))
    batches = jax.tree.map(lambda x: jnp.broadcast_to(x, (30, *x.shape)), constant_batch(4))
    state, metrics = jax.jit(lambda s: jax.lax.scan(learner.step, s, batches))(state)
    losses = metrics.loss[:, 0]
    # The lanes read the same inputs: only their random streams tell them apart.
    h, collections, keys = state.carry
    assert collections == {}
    assert len(np.unique(h, axis=0)) == 4
    assert len(np.unique(key_data(keys["params"]), axis=0)) == 4
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1


def test_rtrl_of_a_random_linen_cell_is_the_unrolled_gradient_of_the_same_draws():
    assert_close(*sum_and_unrolled(cells.from_flax(LinenNoisy(), X)))


def test_random_streams_of_a_linen_cell_go_on_over_a_restart():
    cell = cells.from_flax(LinenNoisy(), X)
    carry = carry_after(cell, 2)
    h, _, keys = restarted(cell, carry, jnp.asarray([True, False]))
    np.testing.assert_array_equal(h[0], 0)
    np.testing.assert_array_equal(h[1], carry[0][1])
    np.testing.assert_array_equal(key_data(keys["params"]), key_data(carry[2]["params"]))
    assert not np.array_equal(key_data(keys["params"]), key_data(carry_after(cell, 1)[2]["params"]))


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_random_streams_start_from_the_given_keys(make_key):
    def after_one_step(**seeds):
        rngs = {name: make_key(seed) for name, seed in seeds.items()}
        cell = cells.from_flax(LinenNoisy(("noise", "other")), X, rngs=rngs)
        keys = cell.initial_carry()[2]
        assert sorted(keys) == sorted(seeds)
        for name, seed in seeds.items():
            assert jnp.issubdtype(keys[name].dtype, jax.dtypes.prng_key)
            np.testing.assert_array_equal(key_data(keys[name]), jax.random.PRNGKey(seed))
        return carry_after(cell, 1)[0]

    first = after_one_step(noise=1, other=2)
    np.testing.assert_array_equal(first, after_one_step(noise=1, other=2))
    assert differ(first, after_one_step(noise=1, other=3))
    # "params" stands in for the streams without a key.
    assert differ(first, after_one_step(noise=1, params=3))


def test_a_random_stream_without_a_key_is_refused_by_name():
    module = LinenNoisy(("noise", "dropout"))
    with pytest.raises(ValueError, match='stream "dropout"') as error:
        cells.from_flax(module, X, rngs={"noise": jax.random.key(0)})
    assert 'rngs={"noise": ..., "dropout": jax.random.key(0)}' in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match='stream "noise"'):
        cells.from_flax(module, X, rngs={})
    with pytest.raises(ValueError, match="must be a PRNG key"):
        cells.from_flax(module, X, rngs={"params": 3.0})


def test_a_cell_that_draws_nothing_has_the_carry_of_its_module():
    assert cells.from_flax(nn.GRUCell(4, **F64), X).initial_carry().shape == (4,)


class LinenTrace(Carry4):
    """A cell with a trace of its states in a collection; `stop` cuts its gradient off by hand."""

    stop: bool = False

    @nn.compact
    def __call__(self, h, x):
        cut = jax.lax.stop_gradient if self.stop else lambda a: a
        trace = self.variable("state", "trace", jnp.zeros, 4)
        steps = self.variable("state", "steps", jnp.zeros, (), jnp.int32)
        h = jnp.tanh(nn.Dense(4, **F64)(jnp.concatenate([x, h, cut(trace.value)])))
        if not self.is_initializing():
            trace.value = cut(0.8 * trace.value + h)
            steps.value += 1
        return h, h


class NNXTrace(nnx.Module):
    """The same in NNX; the trace is a variable of the given kind."""

    def __init__(self, rngs, kind=nnx.Variable, stop=False):
        self.dense = nnx.Linear(INPUT_SIZE + 8, 4, rngs=rngs, **F64)
        self.trace, self.steps = kind(jnp.zeros(4)), kind(jnp.zeros((), jnp.int32))
        self.in_features, self.stop = INPUT_SIZE, stop

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros(4)

    def __call__(self, h, x):
        cut = jax.lax.stop_gradient if self.stop else lambda a: a
        h = jnp.tanh(self.dense(jnp.concatenate([x, h, cut(self.trace[...])])))
        self.trace[...] = cut(0.8 * self.trace[...] + h)
        self.steps[...] += 1
        return h, h


def nnx_trace(kind=nnx.Variable, stop=False, cut=()):
    return cells.from_flax(lambda rngs: NNXTrace(rngs, kind, stop), cut=cut)


# With the gradient, cut off by hand, and by name.
TRACES = {
    "linen": (
        lambda: cells.from_flax(LinenTrace(), X),
        lambda: cells.from_flax(LinenTrace(stop=True), X),
        lambda: cells.from_flax(LinenTrace(), X, cut=["state"]),
        lambda carry: carry[1]["state"],
    ),
    "nnx_variable": (
        nnx_trace,
        lambda: nnx_trace(stop=True),
        lambda: nnx_trace(cut=["Variable"]),
        lambda carry: {name: carry[1][name][...] for name in ("trace", "steps")},
    ),
    "nnx_batch_stat": (
        lambda: nnx_trace(nnx.BatchStat),
        lambda: nnx_trace(nnx.BatchStat, stop=True),
        lambda: nnx_trace(nnx.BatchStat, cut=["BatchStat"]),
        lambda carry: {name: carry[1][name][...] for name in ("trace", "steps")},
    ),
}


@pytest.mark.parametrize("name", some(TRACES))
def test_state_in_flax_variables_has_a_gradient_through_time_unless_cut(name):
    whole, by_hand, cut, _ = TRACES[name]
    summed, unrolled = sum_and_unrolled(whole())
    assert_close(summed, unrolled)
    _, without = sum_and_unrolled(by_hand())
    assert differ(unrolled, without)
    summed, unrolled = sum_and_unrolled(cut())
    assert_close(summed, without)
    assert_close(unrolled, without)


@pytest.mark.parametrize("name", TRACES)
def test_state_in_flax_variables_starts_anew_with_the_lane_unless_cut(name):
    whole, _, cut, state_of = TRACES[name]
    for cell, outlives in ((whole(), False), (cut(), True)):
        carry = carry_after(cell, 3)
        before = state_of(carry)
        assert (before["steps"] == 3).all()
        carry = restarted(cell, carry, jnp.asarray([True, False]))
        after = state_of(carry)
        np.testing.assert_array_equal(carry[0][0], 0)
        np.testing.assert_array_equal(after["steps"], [3 if outlives else 0, 3])
        np.testing.assert_array_equal(after["trace"][0], outlives * before["trace"][0])
        np.testing.assert_array_equal(after["trace"][1], before["trace"][1])


def test_names_in_cut_that_the_cell_does_not_have_are_refused_with_those_it_has():
    with pytest.raises(ValueError, match=r'"batch_stats".*it has state') as error:
        cells.from_flax(LinenTrace(), X, cut=["batch_stats"])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r'"params".*it has none'):
        cells.from_flax(nn.GRUCell(4), X, cut=["params"])
    with pytest.raises(ValueError, match=r'"BatchStat".*it has Variable'):
        nnx_trace(cut=["BatchStat"])


class LinenNoisyTrace(Carry4):
    @nn.compact
    def __call__(self, h, x):
        h, y = LinenTrace()(h, x)
        return LinenNoisy()(h, y)


@pytest.mark.parametrize("cut", some([("state",), ()]))
def test_random_streams_and_state_in_collections_go_together(cut):
    cell = cells.from_flax(LinenNoisyTrace(), X, cut=cut)
    assert_close(*sum_and_unrolled(cell, restart_at=2))
    carry = carry_after(cell, 2)
    _, collections, keys = restarted(cell, carry, jnp.asarray([True, True]))
    (state,) = collections["state"].values()
    np.testing.assert_array_equal(state["steps"], 2 if cut else 0)
    np.testing.assert_array_equal(key_data(keys["params"]), key_data(carry[2]["params"]))


class NNXNoisy(nnx.Module):
    """Dropout, a stream of its own, and a raw key."""

    def __init__(self, rngs):
        self.cell = nnx.SimpleCell(INPUT_SIZE, 4, rngs=rngs, **F64)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.rngs = nnx.Rngs(noise=7)
        self.raw = nnx.Variable(jax.random.PRNGKey(3))
        self.in_features = INPUT_SIZE

    def initialize_carry(self, input_shape, rngs=None):
        return self.cell.initialize_carry(input_shape, rngs)

    def __call__(self, carry, x):
        key, self.raw[...] = jax.random.split(self.raw[...])
        x += 0.1 * jax.random.normal(self.rngs.noise(), x.shape)
        x += 0.1 * jax.random.normal(key, x.shape)
        return self.cell(self.dropout(carry), x)


def test_random_nnx_cell_draws_other_numbers_in_each_lane():
    learner = learner_of(cells.from_flax(NNXNoisy), 4)
    state, step = learner.init(jax.random.key(0)), jax.jit(learner.step)
    for _ in range(3):
        state, metrics = step(state, constant_batch(4))
    # The lanes read the same inputs: only their random streams tell them apart.
    h, variables = state.carry
    assert len(np.unique(h, axis=0)) == 4
    assert jnp.isfinite(metrics.loss).all()
    for keys in (variables["dropout"]["rngs"]["key"], variables["rngs"]["noise"]["key"]):
        assert len(np.unique(key_data(keys[...]), axis=0)) == 4
    assert len(np.unique(variables["raw"][...], axis=0)) == 4


def test_random_streams_of_an_nnx_cell_go_on_over_a_restart():
    cell = cells.from_flax(NNXNoisy)
    carry = carry_after(cell, 2)
    h, variables = restarted(cell, carry, jnp.asarray([True, False]))
    np.testing.assert_array_equal(h[0], 0)
    for stream in (variables["dropout"]["rngs"], variables["rngs"]["noise"]):
        np.testing.assert_array_equal(stream["count"][...], [2, 2])
    chex.assert_trees_all_equal(carry[1], variables)


def test_rngs_of_an_nnx_cell_are_refused():
    with pytest.raises(ValueError, match="rngs is for Linen cells"):
        cells.from_flax(NNXNoisy, rngs={"noise": jax.random.key(0)})


def test_a_step_of_an_nnx_cell_leaves_its_arguments_and_the_module_as_they_are():
    module = NNXTrace(nnx.Rngs(0))
    cell = cells.from_flax(module)
    params, carry = cell.init(jax.random.key(0)), cell.initial_carry()
    new, _ = cell.step(params, carry, jnp.ones(INPUT_SIZE))
    assert new[1]["steps"][...] == 1
    module(carry[0], jnp.ones(INPUT_SIZE))
    assert module.steps[...] == 1
    for start in (carry, cell.initial_carry()):
        assert start[1]["steps"][...] == 0
        np.testing.assert_array_equal(start[1]["trace"][...], 0)


def test_nnx_cells_whose_call_changes_what_is_not_carried_are_refused():
    class ChangesParameters(NNXTrace):
        def __call__(self, h, x):
            self.dense.bias[...] *= 0.9
            return super().__call__(h, x)

    class Counts(NNXTrace):
        def __call__(self, h, x):
            self.count = getattr(self, "count", 0) + 1
            return super().__call__(h, x)

    for kind, match in ((ChangesParameters, "changes an nnx.Param"), (Counts, "not an array")):
        cell = cells.from_flax(kind)
        params = cell.init(jax.random.key(0))
        before = jax.tree.leaves(params)
        with pytest.raises(TypeError, match=match):
            cell.step(params, cell.initial_carry(), jnp.ones(INPUT_SIZE))
        assert_close(before, jax.tree.leaves(params))
        with pytest.raises(TypeError, match=match):
            jax.eval_shape(cell.step, params, cell.initial_carry(), X)


def test_explain_tells_sites_derivatives_and_costs(capsys):
    explanation = explain(CELLS["linen_gru"](), X, batch_size=2)
    printed = capsys.readouterr().out
    assert printed.strip() == str(explanation)
    assert "hn/kernel" in printed
    assert "D diagonal" in printed
    assert f"J and D: {explanation.linearization_flops:.3g}" in printed
    assert explanation.linearization_flops > 0
    # Why an estimator does not take the cell, and what would.
    assert re.search(r"diagonal_rtrl: cannot use this cell: a weight of .*; use rtrl\(\)", printed)
    assert explanation.costs["rtrl"].state_bytes > explanation.costs["kf_rtrl"].state_bytes > 0


def test_what_is_no_cell_is_refused():
    with pytest.raises(TypeError, match="takes a Linen module"):
        cells.from_flax(3)
    with pytest.raises(TypeError, match="not a recurrent cell"):
        cells.from_flax(nn.Dense(4), X)
    with pytest.raises(ValueError, match="example_input"):
        cells.from_flax(nn.LSTMCell(4))


def test_a_step_that_changes_its_carry_is_refused():
    cell = cells.from_function(
        lambda params, h, x: (h[:2], h), lambda key: {"w": jnp.zeros(3)}, jnp.zeros(4)
    )
    with pytest.raises(ValueError, match="must keep the carry"):
        cell.step(cell.init(jax.random.key(0)), cell.initial_carry(), None)


class NNXBare(nnx.Module):
    """A cell that does not say the length of its input."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(INPUT_SIZE + 2, 2, rngs=rngs, **F64)

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros((*input_shape[:-1], 2))

    def __call__(self, carry, x):
        carry = jnp.tanh(self.dense(jnp.concatenate([x, carry], axis=-1)))
        return carry, carry


def test_an_nnx_cell_that_does_not_say_its_length_needs_an_example():
    with pytest.raises(ValueError, match=r"NNXBare has no in_features .*: give example_input"):
        cells.from_flax(lambda rngs: NNXBare(rngs))
    cell = cells.from_flax(lambda rngs: NNXBare(rngs), jnp.zeros(INPUT_SIZE))
    assert cell.initial_carry().shape == (2,)
