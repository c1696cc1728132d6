"""The types that the whole library shares.

Sizes: B lanes (independent sequences, the batch), n the size of the carry, and for every site k an
input of size m and a pre-activation of size g.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from kfrtrl_jax._src.matrices import BlockColumns, Index, Terms

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
      restart: carry -> the carry that the next sequence starts from, for a cell that keeps more than
        its state across sequences. PRNG keys are never reset.
    """

    init: Callable[[Key], Params]
    initial_carry: Callable[[], Carry]
    step: Callable[[Params, Carry, Any], tuple[Carry, Any]]
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
        """The fraction of the entries that can be non-zero."""
        return float(np.mean(self.array))


class Site(NamedTuple):
    """One place where parameters enter a step: a product z = W^T a of parameters with data.

    Attributes:
      input_size: m. It is 1 for parameters that multiply no vector (biases, element-wise weights).
      output_size: g.
      label: the parameters' paths in the user's tree.
      columns: where D = ds/dz of one step can be non-zero if it is banded: its columns [bands, n], -1
        for none (see `matrices.Banded`); None if it is dense.
      derivative_mask: where D can be non-zero if it is dense, [n, g]; None for everywhere.
      weights_mask: which entries of W can be non-zero, [m, g], whatever the parameters are: a fixed
        mask sets the others to 0, and no parameter has a gradient there. None for all of them.
      problem: why the parameter could not be put into a product with data, in which case m is 1 and g
        the size of the whole parameter; None for a product or sum.
      uses: how often a step uses the weights: the number T of terms of one step.
      parts: from left to right how many of the g columns belong to which parameters, as
        (number, label); () if all belong to those of `label`.
    """

    input_size: int
    output_size: int
    label: str
    columns: Index | None = None
    derivative_mask: Mask | None = None
    weights_mask: Mask | None = None
    problem: str | None = None
    uses: int = 1
    parts: tuple[tuple[int, str], ...] = ()


class Structure(NamedTuple):
    """The static facts about a cell that an estimator needs.

    Attributes:
      batch_size: B.
      state_size: n.
      sites: the cell's sites.
      dtype: of the carry.
      jacobian_mask: which entries of one step's J can be non-zero, [n, n]; None for all of them.
      leaf_sizes: of n, how much belongs to each leaf of the carry; () for a carry of one leaf. The
        blocks of J's columns are those of the leaves.
      leak_mask: which entries of one step's leak (see `Linearization`) can be non-zero, [n, n]; None
        for all.
      leaf_entries: the entry of the user's carry that each of these leaves is in, such as "0".
    """

    batch_size: int
    state_size: int
    sites: tuple[Site, ...]
    dtype: Any
    jacobian_mask: Mask | None = None
    leaf_sizes: tuple[int, ...] = ()
    leak_mask: Mask | None = None
    leaf_entries: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """The problems of its sites, one line each; empty for a well-structured cell."""
        return tuple(site.problem for site in self.sites if site.problem)


class SiteJacobian(NamedTuple):
    """The immediate Jacobian of one site, a sum of Kronecker products: sum_t a_t (x) D_t.

    There is a term for every use of the site's weights: one for a step that uses them once, T for T
    such steps.

    Attributes:
      inputs: a_t, [B, T, m].
      derivatives: D_t = ds/dz_t, by the state at the end, n x g each.
    """

    inputs: Float[Array, "B T m"]
    derivatives: Terms


class Linearization(NamedTuple):
    """One or more steps of a cell to first order: J, and I as a sum of Kronecker products.

    For the state s_T after T steps, by the state s_0 before them and the weights W of each site,
    ds_T = J ds_0 + sum_t a_t (x) D_t dW. `linearization.compose` makes one of many.

    A lane that starts anew in these steps has J = 0: its state does not depend on its past.

    Attributes:
      jacobian: J = ds_T/ds_0, [B, n, n].
      sites: one for each site of the structure.
      leak: the part of J that goes through no product with weights and no loop, but for element-wise
        weights: of one step [B, n, n], of several the product of theirs.
      keep: [B], 0 for a lane that starts anew in these steps.
      steps: the single steps that it is made of, in order; empty for one step.
    """

    jacobian: BlockColumns
    sites: tuple[SiteJacobian, ...]
    leak: BlockColumns
    keep: Float[Array, " B"]
    steps: tuple[Any, ...] = ()

    @property
    def singles(self) -> tuple[Linearization, ...]:
        """The single steps: itself, if it is one."""
        return self.steps or (self,)

    def scaled(self, memory: Float[Array, "*lanes"]) -> Linearization:
        """The same steps with J times a number per lane, [B], or one, []; 0 starts the lane anew."""
        memory = jnp.broadcast_to(memory, self.keep.shape)
        jacobian, leak = (m.kept(memory).scaled(memory) for m in (self.jacobian, self.leak))
        keep = jnp.where(memory == 0, 0, self.keep)
        steps = self.steps and (self.steps[0].scaled(memory), *self.steps[1:])
        return Linearization(jacobian, self.sites, leak, keep, steps)

    def with_sites(
        self, change: Callable[[tuple[SiteJacobian, ...]], tuple[SiteJacobian, ...]]
    ) -> Linearization:
        """The same steps with other sites; `change` is called for each of them and for all as one."""
        steps = tuple(step._replace(sites=change(step.sites)) for step in self.steps)
        return self._replace(sites=change(self.sites), steps=steps)

    def with_signs(self, signs: Float[Array, " T"]) -> Linearization:
        """The same steps, both factors of each term times the sign of its step; signs are [T]."""

        def flipped(site: SiteJacobian, of_terms: Array) -> SiteJacobian:
            of_lanes = jnp.broadcast_to(of_terms.astype(site.inputs.dtype), site.inputs.shape[:2])
            return SiteJacobian(
                of_lanes[..., None] * site.inputs, site.derivatives.scaled(of_lanes)
            )

        def of_terms(site: int) -> Array:
            counts = [step.sites[site].derivatives.count for step in self.singles]
            return signs[np.repeat(np.arange(len(counts)), counts)]

        sites = tuple(flipped(site, of_terms(i)) for i, site in enumerate(self.sites))
        steps = tuple(step.with_signs(signs[i : i + 1]) for i, step in enumerate(self.steps))
        return self._replace(sites=sites, steps=steps)

    def times(self, x: Float[Array, "B n k"]) -> Float[Array, "B n k"]:
        """J x, for x: [B, n, k] of few columns: step by step, without J."""
        for step in self.singles:
            x = step.jacobian.times(x)
        return x

    def vector_times(self, v: Float[Array, "B n"]) -> list[Float[Array, "B T _g"]]:
        """v^T D_t of every term of every site, [B, T, g], for v: [B, n]: step by step backward."""
        found: list[list[Array]] = [[] for _ in self.sites]
        for step in reversed(self.singles):
            for of_site, site in zip(found, step.sites):
                of_site.insert(0, site.derivatives.vector_times(v))
            v = step.jacobian.vector_times(v)
        return [jnp.concatenate(parts, axis=1) for parts in found]

    def times_each(self, x: Sequence[Float[Array, "B T _g k"]]) -> list[Float[Array, "B T n k"]]:
        """D_t x_t of every term of every site, [B, T, n, k], for [B, T, g, k]: step by step forward."""
        counts = [0] * len(self.sites)
        found: list[Array | None] = [None] * len(self.sites)
        for step in self.singles:
            for i, site in enumerate(step.sites):
                stop = counts[i] + site.derivatives.count
                new = site.derivatives.times(x[i][:, counts[i] : stop])
                counts[i], old = stop, found[i]
                if old is not None:
                    b, t, n, k = old.shape
                    flat = jnp.moveaxis(old, 1, 2).reshape(b, n, t * k)
                    carried = step.jacobian.times(flat).reshape(b, n, t, k)
                    new = jnp.concatenate([jnp.moveaxis(carried, 2, 1), new], axis=1)
                found[i] = new
        return [part for part in found if part is not None]


SiteGradients = tuple[Float[Array, "_m _g"], ...]


def _no_diagnostics(state: Any) -> dict[str, Array]:
    del state
    return {}


def _nothing_learned(state: Any, cotangents: Array) -> Any:
    del cotangents
    return state


class InfluenceEstimator(NamedTuple):
    """An approximation of the influence matrix G_t = ds_t/dW, kept for every lane.

    Attributes:
      init: structure -> state, with G_0 = 0.
      push: (state, linearization, key) -> state, with G_t ~ J_t G_{t-1} + I_t.
      pull: (state, cotangent [B, n]) -> for every site the sum over lanes of c^T G, [m, g]; it may be
        anything by weights that a fixed mask sets to 0.
      diagnostics: state -> named scalars worth logging, such as factor norms.
      observe: (state, cotangents [U, B, n]) -> state, called once between two pushes with what this
        state was pulled with, for an estimator that learns from how it is used.
    """

    init: Callable[[Structure], Any]
    push: Callable[[Any, Linearization, Key], Any]
    pull: Callable[[Any, Float[Array, "B n"]], SiteGradients]
    diagnostics: Callable[[Any], dict[str, Array]] = _no_diagnostics
    observe: Callable[[Any, Float[Array, "U B n"]], Any] = _nothing_learned


class CreditEstimator(NamedTuple):
    """An approximation of a state's credit: its effect on the future losses of its lane.

    Credit is d(sum of those losses)/ds, in nats, whatever B and the segment. Where losses have weights,
    each counts by its weight over the mean weight of all that are in its segment, of all lanes.

    Attributes:
      init: (structure, key) -> state.
      predict: (state, carry [B, n]) -> credit [B, n].
      update: (state, carry [B, n], target [B, n]) -> state, the target a better credit of that carry.
      share: the fraction of the gradient between segments that the credit gives; the influence
        estimator gives the rest.
      diagnostics: state -> named scalars worth logging.
    """

    init: Callable[[Structure, Key], Any]
    predict: Callable[[Any, Float[Array, "B n"]], Float[Array, "B n"]]
    update: Callable[[Any, Float[Array, "B n"], Float[Array, "B n"]], Any]
    share: float | Array = 1.0
    diagnostics: Callable[[Any], dict[str, Array]] = _no_diagnostics


class Batch(NamedTuple):
    """One time step of B lanes; a segment is the same with a leading time axis [K, B].

    Attributes:
      inputs: a pytree of arrays [B, ...], such as int32 tokens [B].
      targets: a pytree of arrays [B, ...].
      reset: [B] bool, whether the lane starts anew before this step: carry and influence; for a learner
        None if no lane does.
      weight: [B], how much the lane's loss counts; None if every loss counts the same. The target of a
        loss of weight 0 has no effect, even if it is not finite.
    """

    inputs: Any
    targets: Any
    reset: Any = None
    weight: Any = None


class Loss(NamedTuple):
    """The loss of one lane at one time step.

    Attributes:
      function: (prediction, target) -> scalar, which is differentiated.
      unit: of the loss as it is reported, such as "bits/char".
      scale: the reported loss is this times the function's value.
    """

    function: Callable[[Any, Any], Array]
    unit: str = ""
    scale: float = 1.0


class Score(NamedTuple):
    """What a task is judged by, if it is not the loss.

    Attributes:
      name: such as "accuracy".
      function: (prediction, target) -> scalar of one lane at one time step; the score is its mean over
        the steps and lanes whose loss counts, weighted as the loss is.
      higher_is_better: False for a score that is an error.
    """

    name: str
    function: Callable[[Any, Any], Array]
    higher_is_better: bool = True


class Readout(NamedTuple):
    """A function of a cell's output with parameters of its own, for one lane.

    Attributes:
      init: key -> params.
      apply: (params, output [n]) -> prediction.
    """

    init: Callable[[Key], Params]
    apply: Callable[[Any, Any], Any]


def _unchanged(cell: Cell, readout: Readout) -> tuple[Cell, Readout]:
    return cell, readout


def _no_metrics(state: Any) -> dict[str, Array]:
    del state
    return {}


class Task(NamedTuple):
    """A stream of batches as pure functions, and what is to be predicted of it.

    Attributes:
      batch_size: B.
      example_input: one lane's input, for its shapes and types.
      input_size: the length of the vector that the cell is made for: features, or the number of tokens.
      output_size: the length of a prediction.
      loss: of a prediction.
      chance_loss: about the loss of predictions that know nothing of the input, as it is reported.
      init: key -> state, a pytree on the device.
      sample: (state, key) -> (state, batch).
      observe: (state, loss) -> state, called before `sample` with the reported mean loss of the step
        before, if any of its losses counts, for a task that depends on success, such as a curriculum;
        None for all others. In a segment of K steps the step before is that of K steps ago.
      score: what the task is judged by; None for its loss.
      around: (cell, readout) -> (cell, readout), what the task puts around them: a cell that reads
        tokens, for example.
      metrics: state -> named scalars, such as the sequence length of a curriculum.
      held_out: named streams of one lane to evaluate on, batches of NumPy arrays without the axis B:
        [N, ...].
      symbols: the character of each token, for tasks of text.
      data: the SHA-256 digest, in hexadecimal, of the data that was read, held-out parts included;
        "" for a task that generates its data.
    """

    batch_size: int
    example_input: Any
    input_size: int
    output_size: int
    loss: Loss
    chance_loss: float
    init: Callable[[Array], Any]
    sample: Callable[[Any, Array], tuple[Any, Batch]]
    observe: Callable[[Any, Array], Any] | None = None
    score: Score | None = None
    around: Callable[[Cell, Readout], tuple[Cell, Readout]] = _unchanged
    metrics: Callable[[Any], dict[str, Array]] = _no_metrics
    held_out: Mapping[str, Batch] = MappingProxyType({})
    symbols: str = ""
    data: str = ""
