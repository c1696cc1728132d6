"""The types that everything else is made of.

Sizes: B lanes (independent sequences, the batch), n the size of the carry, and for every site k an
input of size m and a pre-activation of size g.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from kfrtrl_jax.matrices import BlockColumns, Index, Matrix

Array = jax.Array
Key = jax.Array
Params = Any
Carry = Any


class Cell(NamedTuple):
    """A recurrent network as three pure functions, written for one lane: no batch axis anywhere.

    Attributes:
      init: key -> params, a pytree of float arrays.
      initial_carry: () -> carry, a pytree of arrays: the state at the start of a sequence.
      step: (params, carry, x) -> (carry, output): one time step.
      restart: carry -> the carry that the next sequence starts from, if that is more than the initial
        one: what a cell keeps beside its state. PRNG keys in the carry go on in any case.
    """

    init: Callable[[Key], Params]
    initial_carry: Callable[[], Carry]
    step: Callable[[Params, Carry, Any], tuple[Carry, Array]]
    restart: Callable[[Carry], Carry] | None = None


class SiteShape(NamedTuple):
    """One place where parameters enter a step: a product z = W^T a of parameters with data.

    Attributes:
      input_size: m. It is 1 for parameters that multiply no vector (biases, element-wise weights).
      output_size: g.
      label: the parameters' paths in the user's tree.
      bands: where D = ds/dz can be non-zero if it is banded: its columns [bands, n], -1 for none (see
        `matrices.Banded`); None if it is dense.
    """

    input_size: int
    output_size: int
    label: str
    bands: Index | None = None


class Structure(NamedTuple):
    """What an estimator has to know of a cell before the first step; all static.

    Attributes:
      batch_size: B.
      state_size: n.
      sites: the cell's sites.
      dtype: of the carry.
      problems: why parameters could not be put into products with data, a line each; they are then
        sites with input_size 1 as wide as the whole parameter. Empty for a well-structured cell.
    """

    batch_size: int
    state_size: int
    sites: tuple[SiteShape, ...]
    dtype: Any
    problems: tuple[str, ...] = ()


class Site(NamedTuple):
    """The immediate Jacobian of one site at one time step, the Kronecker product a (x) D.

    Attributes:
      input: a, [B, m].
      derivative: D = ds_t/dz, [B, n, g], dense or banded.
    """

    input: Array
    derivative: Matrix


class Linearization(NamedTuple):
    """A cell's step to first order: J_t, and I_t as a sum of Kronecker products.

    A lane that starts anew at this step has J = 0: its state owes nothing to its past.

    Attributes:
      jacobian: J = ds_t/ds_{t-1}, [B, n, n].
      sites: one for each site of the structure.
      leak: the part of J that goes through no pre-activation, ds_t/ds_{t-1} at fixed z, [B, n, n].
    """

    jacobian: BlockColumns
    sites: tuple[Site, ...]
    leak: BlockColumns


SiteGradients = tuple[Array, ...]


def _no_diagnostics(state: Any) -> dict[str, Array]:
    del state
    return {}


class InfluenceEstimator(NamedTuple):
    """An approximation of the influence matrix G_t = ds_t/dW, kept for every lane.

    Attributes:
      init: structure -> state, with G_0 = 0.
      push: (state, linearization, key) -> state, with G_t ~ J_t G_{t-1} + I_t.
      pull: (state, cotangent [B, n]) -> for every site the sum over lanes of c^T G, [m, g].
      diagnostics: state -> named scalars worth logging, such as factor norms.
    """

    init: Callable[[Structure], Any]
    push: Callable[[Any, Linearization, Key], Any]
    pull: Callable[[Any, Array], SiteGradients]
    diagnostics: Callable[[Any], dict[str, Array]] = _no_diagnostics
