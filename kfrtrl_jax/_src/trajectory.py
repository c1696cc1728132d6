"""Cells linearized along random inputs, and exact RTRL along these trajectories."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from kfrtrl_jax._src.base import Array, Cell, InfluenceEstimator, Key, Linearization, Structure
from kfrtrl_jax._src.composition import compose
from kfrtrl_jax._src.estimators.rtrl import rtrl
from kfrtrl_jax._src.estimators.weights import weights_of
from kfrtrl_jax._src.lanes import initial_lanes, restarted
from kfrtrl_jax._src.linearization.linearizer import make_linearizer
from kfrtrl_jax._src.shapes import require_key, require_positive, require_shape

Options = Mapping[str, Any] | None


class Trajectory(NamedTuple):
    """T linearized steps of a cell.

    Attributes:
      structure: of the cell.
      linearizations: stacked, [T, B, ...].
    """

    structure: Structure
    linearizations: Linearization

    @property
    def steps(self) -> int:
        """T."""
        return len(jax.tree.leaves(self.linearizations)[0])

    def astype(self, dtype: Any) -> Trajectory:
        """The same trajectory in another precision."""
        cast = jax.tree.map(lambda x: x.astype(dtype), self.linearizations)
        return Trajectory(self.structure._replace(dtype=jnp.dtype(dtype)), cast)


class Reference(NamedTuple):
    """A trajectory and its exact gradients, by RTRL. P counts the weights of all sites.

    Attributes:
      trajectory: T steps.
      probes: fixed random cotangents, [C, B, n].
      gradients: c^T G of every probe c after every step, [T, C, P].
      influence: G after the last step, the blocks of all lanes below each other, [B n, P].
    """

    trajectory: Trajectory
    probes: Float[Array, "C B n"]
    gradients: Float[Array, "T C P"]
    influence: Float[Array, "Bn P"]


def drawn(
    cell: Cell,
    *,
    input_size: int = 0,
    example_input: Any = None,
    batch_size: int,
    steps: int,
    seed: int,
    restart: bool = True,
) -> tuple[Any, Any, Bool[np.ndarray, "T B"]]:
    """The random quantities of a trajectory; the arguments are those of `trajectory`.

    Returns:
      The cell's initial parameters, its inputs [T, B, ...], and the lanes that start anew before
      each step, [T, B].
    """
    params_key, input_key = jax.random.split(jax.random.key(seed))
    reset = np.zeros((steps, batch_size), bool)
    reset[0] = True
    reset[steps // 2, -1] |= restart
    if example_input is None:
        inputs: Any = jax.random.normal(input_key, (steps, batch_size, input_size))
    else:
        leaves, tree = jax.tree.flatten(example_input)
        keys = jax.random.split(input_key, len(leaves))
        inputs = jax.tree.unflatten(
            tree, [_like(k, x, steps, batch_size) for k, x in zip(keys, leaves)]
        )
    return cell.init(params_key), inputs, reset


def _like(key: Key, example: Any, *axes: int) -> Array:
    """Random arrays like an example with further axes: standard normal, or 0 and 1."""
    shape, dtype = (*axes, *jnp.shape(example)), jnp.result_type(example)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jax.random.normal(key, shape, dtype)
    return jax.random.bernoulli(key, 0.5, shape).astype(dtype)


def trajectory(
    cell: Cell,
    *,
    input_size: int = 0,
    example_input: Any = None,
    batch_size: int,
    steps: int,
    seed: int,
    restart: bool = True,
    compiler_options: Options = None,
) -> Trajectory:
    """Runs a cell with its own initial parameters on standard normal inputs.

    Args:
      cell: a cell that reads vectors of length `input_size`.
      input_size: length of the inputs.
      example_input: one lane's input, in place of input_size for a cell that reads something else;
        integers are drawn from 0 and 1.
      batch_size: B.
      steps: T.
      seed: of parameters and inputs.
      restart: whether the last lane starts anew in the middle.
      compiler_options: for `jax.jit`; at small sizes an optimizing compilation takes longer than the
        run.

    Raises:
      ValueError: if input_size, batch_size or steps is less than 1.
    """
    sizes = {"batch_size": batch_size, "steps": steps}
    require_positive(**sizes, **({"input_size": input_size} if example_input is None else {}))
    example = jnp.zeros(input_size) if example_input is None else example_input
    linearizer = make_linearizer(cell, example, batch_size)

    @functools.partial(jax.jit, compiler_options=compiler_options)
    def linearizations() -> Linearization:
        params, inputs, reset = drawn(
            cell,
            input_size=input_size,
            example_input=example_input,
            batch_size=batch_size,
            steps=steps,
            seed=seed,
            restart=restart,
        )

        def step(carry: Any, xs: tuple[Array, Array]) -> tuple[Any, Linearization]:
            x, starts = xs
            carry = restarted(cell, carry, starts)
            keep = 1 - starts.astype(linearizer.structure.dtype)
            linearization = linearizer.linearize(params, carry, x, keep)
            carry, _ = jax.vmap(cell.step, in_axes=(None, 0, 0))(params, carry, x)
            return carry, linearization

        return jax.lax.scan(step, initial_lanes(cell, batch_size), (inputs, jnp.asarray(reset)))[1]

    return Trajectory(linearizer.structure, linearizations())


def reference(
    along: Trajectory, *, probes: int = 8, seed: int = 0, compiler_options: Options = None
) -> Reference:
    """Runs exact RTRL along a trajectory, and pulls `probes` random cotangents after every step."""
    exact = rtrl()
    size = (along.structure.batch_size, along.structure.state_size)
    cotangents = jax.random.normal(jax.random.key(seed), (probes, *size), along.structure.dtype)

    @functools.partial(jax.jit, compiler_options=compiler_options)
    def run(linearizations: Linearization) -> tuple[Array, Array]:
        def step(state: Any, linearization: Linearization) -> tuple[Any, Array]:
            state = exact.push(state, linearization, jax.random.key(0))
            return state, gradients(exact, state, cotangents, along.structure)

        state, along_time = jax.lax.scan(step, exact.init(along.structure), linearizations)
        everything = all_cotangents(along.structure)
        return along_time, gradients(exact, state, everything, along.structure)

    return Reference(along, cotangents, *run(along.linearizations))


def all_cotangents(structure: Structure) -> Float[Array, "Bn B n"]:
    """One unit cotangent per state variable and lane, [B n, B, n]: together they pull all of G."""
    b, n = structure.batch_size, structure.state_size
    return jnp.eye(b * n, dtype=structure.dtype).reshape(-1, b, n)


def gradients(
    estimator: InfluenceEstimator,
    state: Any,
    cotangents: Float[Array, "C B n"],
    structure: Structure | None = None,
) -> Float[Array, "C P"]:
    """The gradients that an estimator pulls for cotangents [C, B, n]: [C, P].

    Args:
      estimator: any.
      state: its state.
      cotangents: at least one.
      structure: of the cell. With it the gradients are 0 by weights that a fixed mask sets to 0, where
        estimators may pull anything, as no parameter sees it: so those of different estimators can be
        compared.

    Raises:
      ValueError: if the cotangents do not have three axes.
    """
    require_shape("cotangents", cotangents, "C", "B", "n")

    def pull(cotangent: Float[Array, "B n"]) -> Float[Array, " P"]:
        pulled = estimator.pull(state, cotangent)
        if structure is not None:
            pulled = tuple(w.existing(g) for w, g in zip(weights_of(structure), pulled))
        return jnp.concatenate([g.reshape(-1) for g in pulled])

    return jax.vmap(pull)(cotangents)


def push_all(
    estimator: InfluenceEstimator,
    along: Trajectory,
    key: Key,
    segment_length: int = 1,
    observed: Float[Array, "U B n"] | None = None,
) -> Any:
    """The estimator's state after the whole trajectory, pushed once per `segment_length` steps.

    Args:
      estimator: any.
      along: the trajectory.
      key: a PRNG key.
      segment_length: K, the number of steps pushed at once.
      observed: cotangents that the estimator is told of before each push, as those it was pulled with
        (`InfluenceEstimator.observe`); None for none, so that `shrink` shrinks nothing.

    Raises:
      ValueError: if `segment_length` does not divide the number of steps, or key is not a PRNG key.
    """
    require_key("key", key)

    def push(state: Any, xs: tuple[Linearization, Array]) -> tuple[Any, None]:
        steps, key = xs
        if observed is not None:
            state = estimator.observe(state, observed)
        return estimator.push(state, compose(steps), key), None

    segments = in_segments(along, segment_length)
    keys = jax.random.split(key, along.steps // segment_length)
    return jax.lax.scan(push, estimator.init(along.structure), (segments, keys))[0]


def in_segments(along: Trajectory, segment_length: int) -> Linearization:
    """The linearizations with an axis of segments before the axis of steps.

    Raises:
      ValueError: if `segment_length` does not divide the number of steps.
    """
    if along.steps % segment_length:
        raise ValueError(f"{along.steps} steps are not a multiple of {segment_length}")
    return jax.tree.map(
        lambda x: x.reshape(len(x) // segment_length, segment_length, *x.shape[1:]),
        along.linearizations,
    )
