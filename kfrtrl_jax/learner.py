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

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kfrtrl_jax.base import Array, Cell, CreditEstimator, InfluenceEstimator, Key
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.linearization import Linearizer, make_linearizer
from kfrtrl_jax.readouts import Readout
from kfrtrl_jax.tasks.base import Batch

Loss = Callable[[Array, Any], Array]


class LearnerState(NamedTuple):
    """Everything that learning carries from one segment to the next.

    Attributes:
      parameters: {"cell": ..., "readout": ...}.
      optimizer_state: optax's.
      carry: the cell's, [B, ...].
      influence: the estimator's state.
      key: a PRNG key.
      credit: the credit estimator's state; empty without one.
    """

    parameters: dict[str, Any]
    optimizer_state: Any
    carry: Any
    influence: Any
    key: Key
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


def initial_lanes(cell: Cell, batch_size: int) -> Any:
    """The carry of B lanes before their first step; PRNG keys differ from lane to lane."""

    def lanes(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            fold = jnp.vectorize(jax.random.fold_in, signature="(),()->()")
            return fold(leaf, jnp.arange(batch_size).reshape(-1, *[1] * leaf.ndim))
        return jnp.broadcast_to(leaf, (batch_size, *leaf.shape))

    return jax.tree.map(lanes, cell.initial_carry())


def restarted(cell: Cell, carry: Any, reset: Array) -> Any:
    """The carry [B, ...] with the lanes of reset [B] at the start of a sequence; PRNG keys go on."""
    fresh = cell.initial_carry() if cell.restart is None else jax.vmap(cell.restart)(carry)

    def leaf(new: Any, old: Array) -> Array:
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            return old
        where = reset.reshape(-1, *[1] * (old.ndim - 1))
        return jnp.where(where, jnp.asarray(new, old.dtype), old)

    return jax.tree.map(leaf, fresh, carry)


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

    Returns:
      The learner. The gradient is that of the mean loss over lanes and time steps.

    Raises:
      ValueError: if segment_length is less than 1, immediate unknown or "estimated" beside a credit, or
        the credit's share outside [0, 1].
      UnsupportedCellError: if the cell has no structure that the estimator can use.
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
    output_of, taps = linearizer.output_of, linearizer.taps
    if immediate == "estimated" and output_of is None:
        raise UnsupportedCellError(
            'immediate="estimated" needs a cell whose output is a function of its new carry alone; '
            'use immediate="exact"'
        )
    predictions = segment_length * batch_size

    def init(key: Key) -> LearnerState:
        cell_key, readout_key, key, *rest = jax.random.split(key, 3 if credit is None else 4)
        parameters = {"cell": cell.init(cell_key), "readout": readout.init(readout_key)}
        carry = initial_lanes(cell, batch_size)
        return LearnerState(
            parameters,
            optimizer.init(parameters),
            carry,
            estimator.init(linearizer.structure),
            key,
            () if credit is None else credit.init(linearizer.structure, *rest),
        )

    def push(parameters: Any, influence: Any, start: Any, batch: Any, key: Key) -> Any:
        keep = 1 - batch.reset.astype(linearizer.structure.dtype)
        linearization = linearizer.linearize(parameters["cell"], start, batch.inputs, keep)
        return estimator.push(influence, linearization, key)

    def influence_gradient(parameters: Any, influence: Any, cotangent: Any) -> Any:
        pulled = estimator.pull(influence, linearizer.flatten_cotangent(cotangent))
        return linearizer.gradient(parameters["cell"], pulled)

    def variables_of(parameters: Any) -> Any:
        """What the loss of a segment is differentiated by: the parameters, or taps for the cell's."""
        if taps is None:
            return parameters
        zeros = [jnp.zeros((segment_length, batch_size, *z.shape), z.dtype) for z in taps.zeros]
        return {"cell": zeros, "readout": parameters["readout"]}

    def gradient_by_parameters(parameters: Any, gradient: Any, data: Any) -> Any:
        """The gradient by the parameters, of that by the variables."""
        if taps is None:
            return gradient
        sites = taps.site_gradients(data, gradient["cell"])
        return {**gradient, "cell": linearizer.gradient(parameters["cell"], sites)}

    def unroll(
        parameters: Any, variables: Any, carry: Any, segment: Batch
    ) -> tuple[Any, Array, tuple[Any, Any]]:
        """(carry at the end, losses [K, B], (carries that the steps start from [K, B], data))."""

        def advance(carry: Any, x: Any, step_taps: Any) -> tuple[Any, Any, Any]:
            if taps is None:
                return *cell.step(variables["cell"], carry, x), ()
            return taps.step(parameters["cell"], carry, x, step_taps)

        def one(carry: Any, step: tuple[Batch, Any]) -> tuple[Any, tuple[Any, Any, Any]]:
            batch, step_taps = step
            start = restarted(cell, carry, batch.reset)
            new, output, data = jax.vmap(advance)(start, batch.inputs, step_taps)
            return new, (start, output, data)

        def loss_of(output: Any, target: Any) -> Array:
            return loss(readout.apply(variables["readout"], output), target)

        steps = segment, () if taps is None else variables["cell"]
        carry, (starts, outputs, data) = _scan(one, carry, steps, segment_length)
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
            return (losses, linearizer.flatten_cotangent(carry)), (carry, losses, seen)

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
        new = credit.update(
            state.credit,
            linearizer.flatten_cotangent(state.carry),
            linearizer.flatten_cotangent(_combine(start, rest)),
        )
        gradient = gradient_by_parameters(
            state.parameters, _scaled(gradient, 1 / predictions), data
        )
        return gradient, past, new, (carry, starts, losses)

    def exact(state: LearnerState, segment: Batch, keys: Key) -> tuple[Any, LearnerState, Array]:
        gradient, cotangent, credit_state, (carry, starts, losses) = (
            differentiate if credit is None else differentiate_with_credit
        )(state, segment)
        if cotangent is not None:
            past = influence_gradient(state.parameters, state.influence, cotangent)
            gradient["cell"] = jax.tree.map(jnp.add, gradient["cell"], past)
        influence, _ = _scan(
            lambda g, step: (push(state.parameters, g, *step), None),
            state.influence,
            (starts, segment, keys),
            segment_length,
        )
        new_state = state._replace(carry=carry, influence=influence, credit=credit_state)
        return gradient, new_state, losses

    def estimated(
        state: LearnerState, segment: Batch, keys: Key
    ) -> tuple[Any, LearnerState, Array]:
        parameters = state.parameters
        assert output_of is not None

        def one(carry: tuple[Any, Any], step: tuple[Batch, Key]) -> Any:
            old, influence = carry
            batch, key = step
            start = restarted(cell, old, batch.reset)
            influence = push(parameters, influence, start, batch, key)
            new, _ = jax.vmap(lambda c, x: cell.step(parameters["cell"], c, x))(start, batch.inputs)
            inexact, rest = _partition(new)

            def total(readout_parameters: Any, inexact: Any) -> tuple[Array, Array]:
                outputs = jax.vmap(output_of)(_combine(inexact, rest))
                logits = jax.vmap(lambda h: readout.apply(readout_parameters, h))(outputs)
                losses = jax.vmap(loss)(logits, batch.targets)
                return jnp.sum(losses) / predictions, losses

            (readout_gradient, cotangent), losses = jax.grad(total, argnums=(0, 1), has_aux=True)(
                parameters["readout"], inexact
            )
            cell_gradient = influence_gradient(parameters, influence, _combine(cotangent, rest))
            return (new, influence), ({"cell": cell_gradient, "readout": readout_gradient}, losses)

        (carry, influence), (gradients, losses) = _scan(
            one, (state.carry, state.influence), (segment, keys), segment_length
        )
        gradient = jax.tree.map(lambda g: jnp.sum(g, axis=0), gradients)
        return gradient, state._replace(carry=carry, influence=influence), losses

    def gradient_of(state: LearnerState, segment: Any) -> tuple[Any, LearnerState, Array]:
        key, *keys = jax.random.split(state.key, segment_length + 1)
        form = exact if immediate == "exact" else estimated
        gradient, new_state, losses = form(state, segment, jnp.stack(keys))
        return gradient, new_state._replace(key=key), jnp.mean(losses, axis=1)

    def step(state: LearnerState, segment: Any) -> tuple[LearnerState, StepMetrics]:
        gradient, state, losses = gradient_of(state, segment)
        updates, optimizer_state = optimizer.update(
            gradient, state.optimizer_state, state.parameters
        )
        parameters = optax.apply_updates(state.parameters, updates)
        metrics = StepMetrics(losses / math.log(2), optax.tree.norm(gradient))
        return state._replace(parameters=parameters, optimizer_state=optimizer_state), metrics

    def diagnostics(state: LearnerState) -> dict[str, Array]:
        named = {} if credit is None else credit.diagnostics(state.credit)
        return {
            **estimator.diagnostics(state.influence),
            **{f"credit/{name}": value for name, value in named.items()},
        }

    return Learner(init, step, gradient_of, diagnostics, linearizer)


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
