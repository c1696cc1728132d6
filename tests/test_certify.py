"""The certificate of a user's own cell, in one call."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import kfrtrl_jax as kf
from kfrtrl_jax import trajectories
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.fidelity import own_cell
from kfrtrl_jax.studies.fidelity.names import Named

SMALL = {"steps": 4, "draws": 64, "rounds": 0}


def test_a_cell_of_flax_in_single_precision_is_certified_in_double():
    cell = nnx.SimpleCell(2, 3, rngs=nnx.Rngs(0), dtype=None)
    texts = ("kf_rtrl", "truncated", "diagonal_rtrl")
    found = kf.certify(cell, jnp.zeros(2, jnp.float32), texts, steps=4, draws=64, rounds=1)
    noisy, none = found.rows
    assert noisy.unbiased
    assert 0 < noisy.bias_z < 4
    assert 0 < noisy.cosine < 1
    assert none.relative_bias == pytest.approx(1)
    assert min(row.seconds_per_step for row in found.rows) > 0
    # In the default precision: u of 6 numbers, and A of 9, for each lane.
    assert noisy.state_bytes == 2 * 8 * (6 + 9)
    head, names, first, *_, last = str(found).splitlines()
    assert head == "against exact RTRL: state n = 3, 2 lanes, 4 steps, 64 draws"
    assert names.split()[0] == "estimator"
    assert first.split()[:2] == ["kf_rtrl", "yes"]
    assert last.startswith("diagonal_rtrl: diagonal_rtrl cannot use this cell: a weight of ")


def test_a_shrunk_estimate_has_less_noise_and_more_bias_than_the_mean_of_its_copies():
    cell = kf.cells.vanilla(input_size=2, hidden_size=4)
    texts = ("average(uoro, copies=2)", "shrink(uoro, copies=2)")
    mean, shrunk = kf.certify(cell, jnp.zeros(2), texts, steps=8, draws=256, rounds=0).rows
    assert shrunk.relative_noise < 0.7 * mean.relative_noise
    assert shrunk.relative_bias > 2 * mean.relative_bias
    # To learn from its use it pulls a second time.
    assert shrunk.flops_per_step > mean.flops_per_step


def test_estimators_by_name_claim_nothing():
    own = kf.estimators.rtrl()
    assert list(own_cell._named({"mine": own})) == [Named("mine", own, False)]
    (text,) = own_cell._named("rtrl")
    assert text.claims_unbiased


def test_inputs_are_drawn_like_the_example():
    cell = kf.cells.vanilla(input_size=2, hidden_size=3)
    example = {"token": jnp.int32(0), "x": jnp.zeros((2, 3), jnp.float32)}
    _, inputs, reset = trajectories.drawn(
        cell, example_input=example, batch_size=4, steps=50, seed=0
    )
    assert reset.shape == (50, 4)
    assert (inputs["token"].dtype, inputs["x"].dtype) == (jnp.int32, jnp.float32)
    assert set(np.unique(inputs["token"])) == {0, 1}
    assert inputs["x"].shape == (50, 4, 2, 3)
    assert abs(np.std(inputs["x"]) - 1) < 0.1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"steps": 5, "segment_length": 2},
            ValueError,
            "steps must be a multiple of segment_length",
        ),
        ({"draws": 0}, ValueError, "draws must be at least 1"),
        ({"estimators": ["kf_rtl"]}, ConfigError, "there is no estimator 'kf_rtl'"),
        ({"estimators": [kf.estimators.rtrl()]}, ValueError, "or a dict of estimators by name"),
        (
            {"cell": kf.cells.vanilla(input_size=2, hidden_size=200)},
            ValueError,
            "exact RTRL keeps .* more than 2,000,000: certify a smaller cell",
        ),
    ],
)
def test_what_cannot_be_certified_is_refused(changes, error, message):
    given = {"cell": kf.cells.vanilla(input_size=2, hidden_size=3), "estimators": ["rtrl"], **SMALL}
    with pytest.raises(error, match=message):
        kf.certify(example_input=jnp.zeros(2), **{**given, **changes})
