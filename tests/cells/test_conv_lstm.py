import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from kfrtrl_jax import cells
from kfrtrl_jax.training.program import build
from tests.helpers.interpreter import evaluated
from tests.linearization.references import assert_exact, random_point, with_fixed_parameters
from tests.training.small import small


def test_linearization_and_rtrl_are_exact():
    cell = cells.conv_lstm(input_size=4, size=(2, 1), channels=1)
    cell = with_fixed_parameters(cell)
    linearizer = assert_exact(cell, random_point(cell, 4, steps=4), at_once=True)
    (site,) = linearizer.structure.sites
    assert (site.input_size, site.output_size, site.uses) == (9 * (2 + 1) + 1, 4, 2)


def test_a_step_is_that_of_flax():
    size, features, channels = (3, 4), 2, 3
    cell = cells.conv_lstm(input_size=24, size=size, channels=channels)
    params = cell.init(jax.random.key(0))
    carry = tuple(jax.random.normal(jax.random.key(1), (2, *size, channels)))
    x = jax.random.normal(jax.random.key(2), (*size, features))
    (c, h), output = evaluated(cell.step, params, carry, x.reshape(-1))

    # Flax has the gates in the order i, g, f, o, and adds 1 to f.
    def in_its_order(leaf):
        i, f, g, o = jnp.split(leaf, 4, axis=-1)
        return jnp.concatenate([i, g, f, o], axis=-1)

    ours = jax.tree.map(in_its_order, params)
    added = jnp.repeat(jnp.asarray([0.0, 0, 1, 0]), channels)
    theirs = {
        "ih": {"kernel": ours["input"], "bias": ours["bias"] - added},
        "hh": {"kernel": ours["recurrent"], "bias": jnp.zeros(4 * channels)},
    }
    flax = linen.ConvLSTMCell(channels, (3, 3))
    (its_c, its_h), _ = evaluated(flax.apply, {"params": theirs}, carry, x)
    np.testing.assert_allclose(c, its_c, rtol=1e-12)
    np.testing.assert_allclose(h, its_h, rtol=1e-12)
    np.testing.assert_array_equal(output, h.reshape(-1))


def test_a_config_takes_it():
    tokens = {"cell": {"name": "conv_lstm", "size": (2, 2), "channels": 3}}
    structure = build(small(tokens)).about.structure
    assert structure.state_size == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (2,)}, r"size must be \(height, width\), both at least 1, got \(2,\)"),
        ({"size": (0, 2)}, "size must be"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"kernel_size": 0}, "kernel_size must be at least 1, got 0"),
        ({"input_size": 6}, r"input_size must be a multiple of height \* width \(4\), got 6"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cells.conv_lstm(**{"input_size": 8, "size": (2, 2), "channels": 1, **options})
