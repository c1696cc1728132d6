"""The types that everything else is made of.

Sizes: B lanes (independent sequences, the batch), n the size of the carry, and for every site k an
input of size m and a pre-activation of size g.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from kfrtrl_jax._src.matrices import BlockColumns, Index, Matrix

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


class Mask(Index):
    """A static boolean array that hashes and compares by value: where a matrix can be non-zero."""

    def __init__(self, array: np.ndarray):
        self.array = np.ascontiguousarray(array, dtype=bool)
        self._key = (self.array.shape, b"mask" + np.packbits(self.array).tobytes())

    def __repr__(self) -> str:
        return f"Mask{self.array.shape}"

    @property
    def density(self) -> float:
        """The part of the entries that can be non-zero."""
        return float(np.mean(self.array))


class SiteShape(NamedTuple):
    """One place where parameters enter a step: a product z = W^T a of parameters with data.

    Attributes:
      input_size: m. It is 1 for parameters that multiply no vector (biases, element-wise weights).
      output_size: g.
      label: the parameters' paths in the user's tree.
      bands: where D = ds/dz can be non-zero if it is banded: its columns [bands, n], -1 for none (see
        `matrices.Banded`); None if it is dense.
      derivative: where D can be non-zero if it is dense, [n, g]; None for everywhere.
      weights: which entries of W can be non-zero, [m, g], whatever the parameters are: a fixed mask
        sets the others to 0, and no parameter has a gradient there. None for all of them.
      problem: why the parameter could not be put into a product with data, in which case m is 1 and g
        the size of the whole parameter; None for a product or sum.
    """

    input_size: int
    output_size: int
    label: str
    bands: Index | None = None
    derivative: Mask | None = None
    weights: Mask | None = None
    problem: str | None = None


class Structure(NamedTuple):
    """What an estimator has to know of a cell before the first step; all static.

    Attributes:
      batch_size: B.
      state_size: n.
      sites: the cell's sites.
      dtype: of the carry.
      jacobian: which entries of J can be non-zero, [n, n]; None for all of them.
      leaf_sizes: of n, how much belongs to each leaf of the carry; () for a carry of one leaf. The
        blocks of J's columns are those of the leaves.
      leak: which entries of the leak (see `Linearization`) can be non-zero, [n, n]; None for all.
    """

    batch_size: int
    state_size: int
    sites: tuple[SiteShape, ...]
    dtype: Any
    jacobian: Mask | None = None
    leaf_sizes: tuple[int, ...] = ()
    leak: Mask | None = None

    def without_masks(self) -> Structure:
        """The same, with nothing known to be zero but what the bands of D leave out."""
        sites = tuple(site._replace(derivative=None, weights=None) for site in self.sites)
        return self._replace(sites=sites, jacobian=None, leak=None)

    @property
    def problems(self) -> tuple[str, ...]:
        """Those of its sites, a line each; empty for a well-structured cell."""
        return tuple(site.problem for site in self.sites if site.problem)


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

    def scaled(self, memory: Array) -> Linearization:
        """The same step with J times a number for each lane, [B], or for all, []; 0 is a new start."""
        jacobian, leak = (m.kept(memory).scaled(memory) for m in (self.jacobian, self.leak))
        return self._replace(jacobian=jacobian, leak=leak)


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


class CreditEstimator(NamedTuple):
    """An approximation of a state's credit: its part in the losses of its lane that are yet to come.

    Credit is d(sum of those losses)/ds, in nats, whatever B and the segment.

    Attributes:
      init: (structure, key) -> state.
      predict: (state, carry [B, n]) -> credit [B, n].
      update: (state, carry [B, n], target [B, n]) -> state, the target a better credit of that carry.
      share: how much of the gradient between segments the credit gives, from 0 to 1; the influence
        estimator gives the rest.
      diagnostics: state -> named scalars worth logging.
    """

    init: Callable[[Structure, Key], Any]
    predict: Callable[[Any, Array], Array]
    update: Callable[[Any, Array, Array], Any]
    share: float | Array = 1.0
    diagnostics: Callable[[Any], dict[str, Array]] = _no_diagnostics
