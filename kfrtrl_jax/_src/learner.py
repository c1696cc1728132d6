"""A cell, a readout, a loss, an estimator and an optimizer, put together into `init` and `step`.

A step takes a segment of K time steps. With immediate="exact" its gradient is

    (backpropagation inside the segment) + (dL/ds at its start) G~ at its start,

so truncated() makes it TBPTT(K), and K = 1 updates the parameters at every time step. With
immediate="estimated", the papers' form, the loss at time t meets the estimate G~_t, which already holds
the segment: the immediate Jacobian is then part of the noise.

With a credit c, an estimate of what a state does to the losses after its segment, the gradient is

    (backpropagation inside the segment) + (1 - share) (dL/ds at its start) G~ at its start
        + share (c at its end, pulled back through the segment).

Parameters in one segment and a loss in a later one meet twice: through the influence in the later one,
through the credit in the earlier one. The shares add up to 1, so with both exact the sum over segments
is the exact gradient. With share 1 the estimator is out of use.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.base import (
    Array,
    Cell,
    CreditEstimator,
    InfluenceEstimator,
    Key,
    SiteGradients,
    Structure,
)
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.lanes import initial_lanes, restarted
from kfrtrl_jax._src.linearization import self_check
from kfrtrl_jax._src.linearization.linearizer import Linearizer, make_linearizer
from kfrtrl_jax._src.readouts import Readout
from kfrtrl_jax._src.tasks.base import Batch

Loss = Callable[[Array, Any], Array]


class LearnerState(NamedTuple):
    """Everything that learning carries from one segment to the next.

    Attributes:
      parameters: {"cell": ..., "readout": ...}.
      optimizer_state: optax's.
      carry: the cell's, [B, ...].
      influence: the estimator's state.
      key: a PRNG key.
      fresh: [B], the lanes that have not made a step since `init`: they have no past.
      credit: the credit estimator's state; empty without one.
    """

    parameters: dict[str, Any]
    optimizer_state: Any
    carry: Any
    influence: Any
    key: Key
    fresh: Array
    credit: Any = ()


class StepMetrics(NamedTuple):
    """What one step reports.

    Attributes:
      loss: [K], the mean over lanes at each time step, in bits.
      gradient_norm: of the whole gradient, before the optimizer.
    """

    loss: Array
    gradient_norm: Array


class Learner(NamedTuple):
    """Online learning as pure functions; the caller owns the loop.

    Attributes:
      init: key -> state.
      step: (state, segment) -> (state, metrics), fit for `jax.lax.scan`. A segment is a `Batch` with a
        leading axis of K time steps: inputs, targets and reset [K, B].
      gradient: (state, segment) -> (gradient, state, loss [K] in nats): step without the update.
      diagnostics: state -> named scalars of the estimator, and of the credit under "credit/".
      linearizer: the cell's.
    """

    init: Callable[[Key], LearnerState]
    step: Callable[[LearnerState, Any], tuple[LearnerState, StepMetrics]]
    gradient: Callable[[LearnerState, Any], tuple[Any, LearnerState, Array]]
    diagnostics: Callable[[LearnerState], dict[str, Array]]
    linearizer: Linearizer


def predict(
    cell: Cell, readout: Readout, parameters: dict[str, Any], carry: Any, x: Any
) -> tuple[Any, Array]:
    """One step of one lane without learning: (new carry, prediction)."""
    carry, output = cell.step(parameters["cell"], carry, x)
    return carry, readout.apply(parameters["readout"], output)


def make_learner(
    cell: Cell,
    readout: Readout,
    estimator: InfluenceEstimator,
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    example_input: Any,
    segment_length: int = 1,
    immediate: Literal["exact", "estimated"] = "exact",
    credit: CreditEstimator | None = None,
    loss: Loss = optax.softmax_cross_entropy_with_integer_labels,
    check: bool = True,
) -> Learner:
    """Makes a learner.

    Args:
      cell: the recurrent network, for one lane.
      readout: from the cell's output to predictions, for one lane.
      estimator: of the cell's influence matrix.
      optimizer: any optax transformation of {"cell": ..., "readout": ...}.
      batch_size: B, the number of lanes.
      example_input: one lane's input x, for its shape and type.
      segment_length: K, time steps for each update.
      immediate: "exact" or "estimated", see above.
      credit: of states for the losses after their segment, see above; it costs a second backward pass
        through the segment, and none where its share is the constant 1.
      loss: (prediction, target) -> scalar in nats, for one lane.
      check: whether to compare the cell's linearization with `jax.vjp` first, once, which takes a
        second or two (see `linearization.check`). Inside a function that JAX is tracing it is left out.

    Returns:
      The learner. The gradient is that of the mean loss over lanes and time steps.

    Raises:
      ValueError: if segment_length is less than 1, immediate unknown or "estimated" beside a credit, or
        the credit's share outside [0, 1].
      UnsupportedCellError: if the cell has no structure that the estimator can use, cannot be
        linearized, or does not pass the check.
    """
    if segment_length < 1:
        raise ValueError(f"segment_length must be at least 1, got {segment_length}")
    if immediate not in ("exact", "estimated"):
        raise ValueError(f'immediate must be "exact" or "estimated", got {immediate!r}')
    # A share that is an array may be a tracer, which has no value to look at.
    share = None if credit is None or isinstance(credit.share, jax.Array) else credit.share
    if credit is not None:
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"the share of a credit must be in [0, 1], got {share}")
        if immediate == "estimated":
            raise ValueError(
                'a credit is pulled back through the segment, which immediate="estimated" does not '
                'backpropagate through; use immediate="exact"'
            )
    linearizer = make_linearizer(cell, example_input, batch_size)
    # An estimator refuses a cell in its init: better now than when training starts.
    jax.eval_shape(lambda: estimator.init(linearizer.structure))
    if check and not jax_internals.is_tracing():
        # Under `jax.vmap` the cell may hold what has no value to look at.
        with contextlib.suppress(jax.errors.TracerArrayConversionError):
            self_check.check(cell, example_input)
    output_of, taps = linearizer.output_of, linearizer.taps
    if immediate == "estimated" and output_of is None:
        raise UnsupportedCellError(
            'immediate="estimated" needs a cell whose output is a function of its new carry alone; '
            'use immediate="exact"'
        )
    predictions = segment_length * batch_size
    forget = make_forget(estimator, linearizer.structure)

    def pull(influence: Any, cotangent: Array, begins: Array) -> tuple[Any, SiteGradients]:
        """(the influence as the segment goes on with it, the gradient through its start)."""
        if forget is None:
            return influence, estimator.pull(influence, cotangent)

        def without_lost_lanes() -> tuple[Any, SiteGradients]:
            first = forget(influence, begins[0])
            return forget(influence, jnp.any(begins, axis=0)), estimator.pull(first, cotangent)

        return recovered((influence, estimator.pull(influence, cotangent)), without_lost_lanes)

    def init(key: Key) -> LearnerState:
        cell_key, readout_key, key, *rest = jax.random.split(key, 3 if credit is None else 4)
        parameters = {"cell": cell.init(cell_key), "readout": readout.init(readout_key)}
        carry = initial_lanes(cell, batch_size)
        return LearnerState(
            parameters,
            optimizer.init(_partition(parameters)[0]),
            carry,
            estimator.init(linearizer.structure),
            key,
            jnp.ones(batch_size, bool),
            () if credit is None else credit.init(linearizer.structure, *rest),
        )

    def push(parameters: Any, influence: Any, start: Any, batch: Any, begins: Any, key: Key) -> Any:
        keep = 1 - begins.astype(linearizer.structure.dtype)
        linearized = linearizer.linearize(parameters["cell"], start, batch.inputs, keep)
        return estimator.push(influence, linearized, key)

    def variables_of(parameters: Any) -> Any:
        """What the loss of a segment is differentiated by: for the cell's parameters, taps."""
        return {
            "taps": [
                jnp.zeros((segment_length, batch_size, *z.shape), z.dtype) for z in taps.zeros
            ],
            "live": taps.live_leaves(parameters["cell"]),
            "readout": _partition(parameters["readout"])[0],
        }

    def gradient_by_parameters(parameters: Any, gradient: Any, data: Any) -> Any:
        """The gradient by the parameters, of that by the variables."""
        sites = taps.site_gradients(data, gradient["taps"])
        return {
            "cell": linearizer.gradient(parameters["cell"], sites, gradient["live"]),
            "readout": gradient["readout"],
        }

    def unroll(
        parameters: Any, variables: Any, carry: Any, segment: Batch
    ) -> tuple[Any, Array, tuple[Any, Any]]:
        """(carry at the end, losses [K, B], (carries that the steps start from [K, B], data))."""
        _, constants = _partition(parameters["readout"])
        readout_parameters = _combine(variables["readout"], constants)

        def advance(carry: Any, x: Any, step_taps: Any) -> tuple[Any, Any, Any]:
            return taps.step(parameters["cell"], variables["live"], carry, x, step_taps)

        def one(carry: Any, step: tuple[Batch, Any]) -> tuple[Any, tuple[Any, Any, Any]]:
            batch, step_taps = step
            start = restarted(cell, carry, batch.reset)
            new, output, data = jax.vmap(advance)(start, batch.inputs, step_taps)
            return new, (start, output, data)

        def loss_of(output: Any, target: Any) -> Array:
            return loss(readout.apply(readout_parameters, output), target)

        carry, (starts, outputs, data) = _scan(
            one, carry, (segment, variables["taps"]), segment_length
        )
        # The readout of all steps at once, outside of the loop.
        losses = jax.vmap(jax.vmap(loss_of))(outputs, segment.targets)
        return carry, losses, (starts, data)

    def differentiate(state: LearnerState, segment: Batch) -> tuple[Any, Any, Any, Any]:
        """(gradient inside the segment, cotangent at its start, credit, (carry, starts, losses))."""

        def total(variables: Any, carry: Any) -> tuple[Array, Any]:
            carry, losses, seen = unroll(state.parameters, variables, carry, segment)
            return jnp.sum(losses) / predictions, (carry, losses, seen)

        # The carry may hold integers, which have no derivative: they are given as constants.
        inexact, rest = _partition(state.carry)
        (gradient, cotangent), (carry, losses, (starts, data)) = jax.grad(
            lambda v, c: total(v, _combine(c, rest)), argnums=(0, 1), has_aux=True
        )(variables_of(state.parameters), inexact)
        gradient = gradient_by_parameters(state.parameters, gradient, data)
        return gradient, _combine(cotangent, rest), (), (carry, starts, losses)

    def differentiate_with_credit(state: LearnerState, segment: Batch) -> tuple[Any, Any, Any, Any]:
        """The same, the gradient going on into the future by the credit's share."""
        assert credit is not None
        inexact, rest = _partition(state.carry)

        def ends(variables: Any, carry: Any) -> tuple[tuple[Array, Array], Any]:
            carry, losses, seen = unroll(
                state.parameters, variables, _combine(carry, rest), segment
            )
            return (losses, linearizer.flatten(carry)), (carry, losses, seen)

        (losses, end), pullback, (carry, _, (starts, data)) = jax.vjp(
            ends, variables_of(state.parameters), inexact, has_aux=True
        )
        future = credit.predict(state.credit, end).astype(end.dtype)
        add = functools.partial(jax.tree.map, jnp.add)
        past = None
        if share == 1:
            gradient, start = pullback((jnp.ones_like(losses), future))
        else:
            gradient, past = pullback((jnp.ones_like(losses), jnp.zeros_like(end)))
            late, start = pullback((jnp.zeros_like(losses), future))
            gradient, start = add(gradient, _scaled(late, credit.share)), add(past, start)
            past = _combine(_scaled(past, (1 - credit.share) / predictions), rest)
        target = linearizer.flatten_cotangent(_combine(start, rest))
        # At the very start of a sequence it may be infinite; nobody asks for the credit there.
        target = jnp.where(state.fresh[:, None] & ~jnp.isfinite(target), 0, target)
        new = credit.update(state.credit, linearizer.flatten(state.carry), target)
        gradient = gradient_by_parameters(
            state.parameters, _scaled(gradient, 1 / predictions), data
        )
        return gradient, past, new, (carry, starts, losses)

    def exact(state: LearnerState, segment: Batch, keys: Key) -> tuple[Any, LearnerState, Array]:
        gradient, cotangent, credit_state, (carry, starts, losses) = (
            differentiate if credit is None else differentiate_with_credit
        )(state, segment)
        begins = segment.reset.at[0].set(segment.reset[0] | state.fresh)
        influence = state.influence
        if cotangent is not None:
            cotangent = linearizer.flatten_cotangent(cotangent)
            # What came before the start does not exist, however infinite the derivative there.
            cotangent = jnp.where(state.fresh[:, None], 0, cotangent)
            influence, pulled = pull(influence, cotangent, begins)
            past = linearizer.gradient(state.parameters["cell"], pulled)
            gradient["cell"] = jax.tree.map(jnp.add, gradient["cell"], past)
        influence, _ = _scan(
            lambda g, step: (push(state.parameters, g, *step), None),
            influence,
            (starts, segment, begins, keys),
            segment_length,
        )
        new_state = state._replace(
            carry=carry,
            influence=influence,
            fresh=jnp.zeros_like(state.fresh),
            credit=credit_state,
        )
        return gradient, new_state, losses

    def estimated(
        state: LearnerState, segment: Batch, keys: Key
    ) -> tuple[Any, LearnerState, Array]:
        parameters = state.parameters
        assert output_of is not None

        readout_floats, readout_rest = _partition(parameters["readout"])
        begins = segment.reset.at[0].set(segment.reset[0] | state.fresh)

        def one(carry: tuple[Any, Any], step: tuple[Batch, Array, Key]) -> Any:
            old, influence = carry
            batch, begin, key = step
            start = restarted(cell, old, batch.reset)
            new, _ = jax.vmap(lambda c, x: cell.step(parameters["cell"], c, x))(start, batch.inputs)
            inexact, rest = _partition(new)

            def total(readout_floats: Any, inexact: Any) -> tuple[Array, Array]:
                outputs = jax.vmap(output_of)(_combine(inexact, rest))
                readout_parameters = _combine(readout_floats, readout_rest)
                logits = jax.vmap(lambda h: readout.apply(readout_parameters, h))(outputs)
                losses = jax.vmap(loss)(logits, batch.targets)
                return jnp.sum(losses) / predictions, losses

            (readout_gradient, cotangent), losses = jax.grad(total, argnums=(0, 1), has_aux=True)(
                readout_floats, inexact
            )
            c = linearizer.flatten_cotangent(_combine(cotangent, rest))

            def advance(influence: Any) -> tuple[Any, SiteGradients]:
                influence = push(parameters, influence, start, batch, begin, key)
                return influence, estimator.pull(influence, c)

            influence, pulled = recovered(
                advance(influence),
                lambda: advance(influence if forget is None else forget(influence, begin)),
            )
            cell_gradient = linearizer.gradient(parameters["cell"], pulled)
            return (new, influence), ({"cell": cell_gradient, "readout": readout_gradient}, losses)

        (carry, influence), (gradients, losses) = _scan(
            one, (state.carry, state.influence), (segment, begins, keys), segment_length
        )
        gradient = jax.tree.map(lambda g: jnp.sum(g, axis=0), gradients)
        fresh = jnp.zeros_like(state.fresh)
        return gradient, state._replace(carry=carry, influence=influence, fresh=fresh), losses

    def gradient_of(state: LearnerState, segment: Any) -> tuple[Any, LearnerState, Array]:
        key, *keys = jax.random.split(state.key, segment_length + 1)
        form = exact if immediate == "exact" else estimated
        gradient, new_state, losses = form(state, segment, jnp.stack(keys))
        return gradient, new_state._replace(key=key), jnp.mean(losses, axis=1)

    def step(state: LearnerState, segment: Any) -> tuple[LearnerState, StepMetrics]:
        gradient, state, losses = gradient_of(state, segment)
        floats, constants = _partition(state.parameters)
        # JAX's gradient by a complex number points the wrong way along its imaginary part.
        descending = jax.tree.map(jnp.conj, gradient)
        updates, optimizer_state = optimizer.update(descending, state.optimizer_state, floats)
        parameters = _combine(optax.apply_updates(floats, updates), constants)
        metrics = StepMetrics(losses / math.log(2), optax.tree.norm(gradient))
        return state._replace(parameters=parameters, optimizer_state=optimizer_state), metrics

    def diagnostics(state: LearnerState) -> dict[str, Array]:
        named = {} if credit is None else credit.diagnostics(state.credit)
        return {
            **estimator.diagnostics(state.influence),
            **{f"credit/{name}": value for name, value in named.items()},
        }

    return Learner(init, step, gradient_of, diagnostics, linearizer)


def make_forget(
    estimator: InfluenceEstimator, structure: Structure
) -> Callable[[Any, Array], Any] | None:
    """A function (estimator's state, lanes [B]) -> the state with these lanes as at the start.

    None for a state without lanes. Which axis of an array the lanes are on is told by how its shape
    grows with B.
    """
    one_more = structure._replace(batch_size=structure.batch_size + 1)
    shapes, larger = (jax.eval_shape(lambda s=s: estimator.init(s)) for s in (structure, one_more))

    def axis_of(a: Any, b: Any) -> int:
        return next((i for i, (x, y) in enumerate(zip(a.shape, b.shape)) if x != y), -1)

    axes = jax.tree.map(axis_of, shapes, larger)
    if all(axis < 0 for axis in jax.tree.leaves(axes)):
        return None

    def forget(state: Any, lanes: Array) -> Any:
        def leaf(axis: int, new: Array, old: Array) -> Array:
            if axis < 0:
                return old
            return jnp.where(
                jnp.expand_dims(lanes, [i for i in range(old.ndim) if i != axis]), new, old
            )

        return jax.tree.map(leaf, axes, estimator.init(structure), state)

    return forget


def recovered(found: tuple[Any, SiteGradients], again: Callable[[], Any]) -> Any:
    """What was found, (influence, gradient), or where the gradient is not finite what `again` finds.

    A lane whose influence is infinite, after an infinite derivative, is lost until it starts anew. Then
    J = 0 is no help, as 0 times infinity is no number; `again` is.
    """
    gradients = [jnp.all(jnp.isfinite(g)) for g in found[1]]
    if not gradients:
        return found
    lost = _anywhere(~jnp.all(jnp.stack(gradients)))
    return jax.lax.cond(lost, again, lambda: found)


@jax.custom_batching.custom_vmap
def _anywhere(x: Array) -> Array:
    """Whether x is true, in any of the runs that `jax.vmap` makes one: a conditional stays one."""
    return jnp.any(x)


@_anywhere.def_vmap
def _anywhere_in_batch(axis_size: int, in_batched: Any, x: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return _anywhere(x), False


def _scan(f: Callable[..., Any], init: Any, xs: Any, length: int) -> Any:
    """`jax.lax.scan`, without a loop where there is but one step."""
    if length > 1:
        return jax.lax.scan(f, init, xs)
    carry, y = f(init, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda leaf: leaf[None], y)


def _scaled(tree: Any, factor: float | Array) -> Any:
    return jax.tree.map(lambda x: (x * factor).astype(x.dtype), tree)


def _partition(tree: Any) -> tuple[Any, Any]:
    """The leaves that have derivatives and the others, each with None in the other's places."""
    inexact = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else None, tree)
    rest = jax.tree.map(lambda x: None if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree)
    return inexact, rest


def _combine(inexact: Any, rest: Any) -> Any:
    return jax.tree.map(
        lambda a, b: b if a is None else a, inexact, rest, is_leaf=lambda x: x is None
    )
