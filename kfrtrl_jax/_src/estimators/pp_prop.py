"""pp-prop (Wang et al., 2026, Nature Communications 17:1745): two traces in place of the influence."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Float

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import (
    Array,
    InfluenceEstimator,
    Key,
    Linearization,
    SiteGradients,
    SiteJacobian,
    Structure,
)
from kfrtrl_jax._src.composition import compose
from kfrtrl_jax._src.estimators.local_traces import require_local
from kfrtrl_jax._src.estimators.on_pattern import OnBands


class PpPropState(NamedTuple):
    """The product x (x) f / w in place of every site's influence, one for each of a step's T uses.

    Attributes:
      input_trace: x, for every site [B, T, m].
      output_trace: f, for every site the matrix of each use, n x g, on the bands of D: values
        [B, T, bands, n].
      weight: w, the sum of the weights of f's averages since the lane began, [B].
    """

    input_trace: tuple[Float[Array, "B T _m"], ...]
    output_trace: tuple[OnBands, ...]
    weight: Float[Array, " B"]


def pp_prop(decay: float = 0.9) -> InfluenceEstimator:
    """x <- decay x + a, f <- decay L f + (1 - decay) D, and G = x (x) f / w.

    L is the leak, J without paths through products with weights. The weights of f's average sum up to
    w = 1 - decay^t after t steps. Without smoothing, `e_prop` keeps sum_s a_s (x) L^(t - s) D_s, a
    matrix for each unit; here the product of two sums takes the place of the sum of products, which is
    right where a or D changes slowly.

    The algorithm of Wang, Dong, Ji, Xiao, Jiang, Liu, Huan and Wu (2026), "Model-agnostic linear-memory
    online learning in spiking neural networks", Nature Communications 17:1745, there called ES-D-RTRL
    at first. A bias is here a weight whose input is 1, and is smoothed as all others.

    Biased, without noise; the immediate influence of the first step is exact. With decay 0 it is I
    alone. O(m + n) memory and work per lane and site, for each band and use of its weights.

    Args:
      decay: of both traces, 1 - 1 / (the number of steps that they average over).

    Raises:
      ValueError: if decay is not in [0, 1).

    Its init raises UnsupportedCellError where that of `e_prop` does.
    """
    bounds.require("[0, 1)", decay=decay)

    def init(structure: Structure) -> PpPropState:
        require_local(structure)
        b, dtype = structure.batch_size, structure.dtype
        inputs, outputs = [], []
        for site in structure.sites:
            assert site.columns is not None
            values = jnp.zeros((b, site.uses, *site.columns.array.shape), dtype)
            inputs.append(jnp.zeros((b, site.uses, site.input_size), dtype))
            outputs.append(OnBands(values, site.columns, site.output_size))
        return PpPropState(tuple(inputs), tuple(outputs), jnp.zeros(b, dtype))

    def push(state: PpPropState, linearization: Linearization, key: Key) -> PpPropState:
        del key
        smoothing = jnp.asarray(decay, state.weight.dtype)
        inputs, weight = state.input_trace, state.weight
        for step in linearization.singles:
            goes_on = jnp.where(step.keep == 0, 0, smoothing)
            inputs = tuple(
                goes_on[:, None, None] * x + site.inputs for x, site in zip(inputs, step.sites)
            )
            weight = goes_on * weight + (1 - smoothing)
        averaged = compose([_averaged(step, smoothing) for step in linearization.singles])
        outputs = tuple(f.push(averaged, site) for site, f in enumerate(state.output_trace))
        return PpPropState(inputs, outputs, weight)

    def pull(state: PpPropState, cotangent: Float[Array, "B n"]) -> SiteGradients:
        weight = jnp.where(state.weight > 0, state.weight, 1)
        scaled = (cotangent / weight[:, None])[:, None]
        return tuple(
            jnp.einsum("btm,btg->mg", x, f.vector_times(scaled))
            for x, f in zip(state.input_trace, state.output_trace)
        )

    return InfluenceEstimator(init, push, pull)


def _averaged(step: Linearization, decay: Array) -> Linearization:
    """A step over which f is pushed as if it were the influence of one weight for each use."""
    leak = step.leak.scaled(jnp.broadcast_to(decay, step.keep.shape))

    def of_site(site: SiteJacobian) -> SiteJacobian:
        lanes, uses, _ = site.inputs.shape
        one_each = (1 - decay) * jnp.eye(uses, dtype=site.inputs.dtype)
        return SiteJacobian(jnp.broadcast_to(one_each, (lanes, uses, uses)), site.derivatives)

    return step._replace(jacobian=leak, sites=tuple(of_site(site) for site in step.sites))
