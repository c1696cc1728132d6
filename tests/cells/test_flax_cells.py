from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from kfrtrl_jax import cells, estimators, readouts, tasks
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.learner import make_learner
from kfrtrl_jax.linearization import explain
from kfrtrl_jax.matrices import Banded
from tests.linearization.test_linearizer import assert_linearization_is_the_jacobian, inputs
from tests.trajectories import INPUT_SIZE

X = jax.ShapeDtypeStruct((INPUT_SIZE,), jnp.float64)
F64 = {"param_dtype": jnp.float64, "dtype": jnp.float64}


def nnx_cell(kind, **kwargs):
    return cells.from_flax(lambda rngs: kind(INPUT_SIZE, 4, rngs=rngs, **F64, **kwargs))


CELLS = {
    "linen_simple": lambda: cells.from_flax(nn.SimpleCell(4, **F64), X),
    "linen_lstm": lambda: cells.from_flax(nn.LSTMCell(4, **F64), X),
    "linen_optimized_lstm": lambda: cells.from_flax(nn.OptimizedLSTMCell(4, **F64), X),
    "linen_gru": lambda: cells.from_flax(nn.GRUCell(4, **F64), X),
    "linen_mgu": lambda: cells.from_flax(nn.MGUCell(4, **F64), X),
    "nnx_simple": lambda: nnx_cell(nnx.SimpleCell),
    "nnx_lstm": lambda: nnx_cell(nnx.LSTMCell),
    "nnx_optimized_lstm": lambda: nnx_cell(nnx.OptimizedLSTMCell),
    "nnx_gru": lambda: nnx_cell(nnx.GRUCell),
}


@pytest.mark.parametrize("name", CELLS)
def test_linearization_of_an_unmodified_cell_is_its_jacobian(name):
    linearizer, linearization = assert_linearization_is_the_jacobian(CELLS[name](), inputs())
    assert linearizer.structure.problems == ()
    assert all(isinstance(site.derivative, Banded) for site in linearization.sites)


@pytest.mark.parametrize("name", ["linen_lstm", "linen_optimized_lstm", "nnx_lstm"])
def test_all_matrices_of_an_lstm_are_one_site(name):
    linearizer, _ = assert_linearization_is_the_jacobian(CELLS[name](), inputs())
    (site,) = linearizer.structure.sites
    assert (site.input_size, site.output_size) == (INPUT_SIZE + 4 + 1, 16)


class LayerNormLSTM(nn.RNNCellBase):
    """A stack of two cells with layer normalization and a skip connection."""

    features: int
    type: Any = jnp.float64

    @nn.compact
    def __call__(self, carry, x):
        kinds = {"param_dtype": self.type, "dtype": self.type}
        first, second = carry
        first, y = nn.GRUCell(self.features, **kinds)(first, x)
        y = nn.LayerNorm(**kinds)(y)
        second, z = nn.OptimizedLSTMCell(self.features, **kinds)(second, jnp.concatenate([x, y]))
        return (first, second), nn.Dense(self.features, **kinds)(y + z)

    def initialize_carry(self, rng, input_shape):
        zeros = jnp.zeros(self.features, self.type)
        return zeros, (zeros, zeros)

    @property
    def num_feature_axes(self):
        return 1


def test_a_stack_with_layer_normalization_and_a_readout_inside():
    cell = cells.from_flax(LayerNormLSTM(3), X)
    linearizer, _ = assert_linearization_is_the_jacobian(cell, inputs())
    assert linearizer.structure.problems == ()
    assert linearizer.direct == ("Dense_0/bias", "Dense_0/kernel")


def test_a_convolution_is_refused_with_operation_parameter_line_and_what_works():
    shape = jax.ShapeDtypeStruct((4, 4, 1), jnp.float64)
    cell = cells.from_flax(nn.ConvLSTMCell(features=2, kernel_size=(3, 3), **F64), shape)
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


def test_random_streams_are_part_of_the_carry_and_differ_between_lanes():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.cell = nnx.SimpleCell(INPUT_SIZE, 4, rngs=rngs, **F64)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.in_features = INPUT_SIZE

        def initialize_carry(self, input_shape, rngs=None):
            return self.cell.initialize_carry(input_shape, rngs)

        def __call__(self, carry, x):
            carry, output = self.cell(self.dropout(carry), x)
            return carry, output

    cell = cells.from_flax(lambda rngs: Noisy(rngs))
    learner = make_learner(
        cell,
        readouts.linear(input_size=4, output_size=3),
        estimators.kf_rtrl(),
        optax.adam(1e-3),
        batch_size=4,
        example_input=X,
    )
    state = learner.init(jax.random.key(0))
    reset = jnp.ones((1, 4), bool)
    batch = tasks.Batch(jnp.ones((1, 4, INPUT_SIZE)), jnp.zeros((1, 4), int), reset)
    for _ in range(3):
        state, metrics = learner.step(state, batch)
        batch = batch._replace(reset=jnp.zeros((1, 4), bool))
    # The lanes read the same inputs: only their random streams tell them apart.
    h, _ = state.carry
    assert not np.allclose(h[0], h[1])
    assert jnp.isfinite(metrics.loss).all()


def test_explain_tells_sites_derivatives_and_costs(capsys):
    explanation = explain(CELLS["linen_gru"](), X, batch_size=2)
    printed = capsys.readouterr().out
    assert printed.strip() == str(explanation)
    assert "hn/kernel" in printed
    assert "D diagonal" in printed
    assert f"J and D: {explanation.linearization_flops:.3g}" in printed
    assert explanation.linearization_flops > 0
    assert explanation.costs["rtrl"].state_bytes > explanation.costs["kf_rtrl"].state_bytes > 0


def test_what_is_no_cell_is_refused():
    with pytest.raises(TypeError, match="takes a Linen module"):
        cells.from_flax(3)
    with pytest.raises(TypeError, match="no recurrent cell"):
        cells.from_flax(nn.Dense(4), X)
    with pytest.raises(ValueError, match="example_input"):
        cells.from_flax(nn.LSTMCell(4))


def test_a_step_that_changes_its_carry_is_refused():
    cell = cells.from_function(
        lambda params, h, x: (h[:2], h), lambda key: {"w": jnp.zeros(3)}, jnp.zeros(4)
    )
    with pytest.raises(TypeError, match="must keep the carry"):
        cell.step(cell.init(jax.random.key(0)), cell.initial_carry(), None)


def test_complex_carries_are_refused_clearly():
    cell = cells.from_function(
        lambda params, h, x: (params * h + x, h.real),
        lambda key: jnp.ones(3),
        jnp.zeros(3, complex),
    )
    with pytest.raises(UnsupportedCellError, match="complex numbers are not supported"):
        explain(cell, jnp.zeros(3))
