import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax._src.composition import compose
from tests.estimators import stacked

DECAY = 0.7


def by_its_recursion(steps):
    """x (x) f / w of every site after the last step, [B, n, m, g], by dense matrices."""
    leaks, derivatives = jax.jit(
        lambda: (
            steps.linearizations.leak.dense(),
            [site.derivatives.groups[0].dense()[:, 0] for site in steps.linearizations.sites],
        )
    )()
    keep = np.asarray(steps.linearizations.keep)
    found = []
    for site, d in zip(steps.linearizations.sites, np.asarray(derivatives), strict=True):
        x, f, w = 0, np.zeros_like(d[0]), np.zeros(keep.shape[1])
        for t, k in enumerate(keep):
            x = DECAY * k[:, None] * x + site.inputs[t, :, 0]
            f = DECAY * np.asarray(leaks[t]) @ f + (1 - DECAY) * d[t]
            w = DECAY * k * w + 1 - DECAY
        found.append(np.einsum("bm,bng->bnmg", x, f) / w[:, None, None, None])
    return found


def test_pp_prop_is_the_product_of_its_two_traces_whatever_is_pushed_at_once():
    steps = stacked.part(stacked.along("lstm"), slice(2, 6))
    estimator = estimators.pp_prop(DECAY)
    b, n = steps.structure.batch_size, steps.structure.state_size
    cotangent = jnp.asarray(np.random.default_rng(0).normal(size=(b, n)))

    @jax.jit
    def pulled():
        one_by_one, after = stacked.states(estimator, steps, jnp.zeros(4))
        # Lane 1 starts anew in the middle of the other three.
        others = compose(stacked.part(steps, slice(1, 4)).linearizations)
        at_once = estimator.push(jax.tree.map(lambda x: x[0], after), others, None)
        return [estimator.pull(state, cotangent) for state in (one_by_one, at_once)]

    for gradients in pulled():
        for gradient, influence in zip(gradients, by_its_recursion(steps), strict=True):
            expected = np.einsum("bn,bnmg->mg", cotangent, influence)
            np.testing.assert_allclose(gradient, expected, atol=1e-12)
            assert np.linalg.norm(expected) > 1e-3


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_pp_prop_refuses_what_is_no_decay(decay):
    with pytest.raises(ValueError, match="decay must be in"):
        estimators.pp_prop(decay)
