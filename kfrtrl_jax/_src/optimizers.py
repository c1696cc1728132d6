"""Optax's optimizers and schedules by their own names, as configs name them.

To optax's arguments every optimizer adds those of a learner: a schedule in the place of the learning
rate, clipping of the cell's gradient or of the whole, and an average of the parameters. Arguments that
no config can hold, such as masks, keep optax's defaults.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from kfrtrl_jax._src import bounds, xla

Scope = Literal["cell", "all"]
_Precision = Literal["bfloat16", "float32", "float64"]
# Arguments of optax that are a number or None, its default.
_NUMBERS = frozenset(
    """learning_rate momentum weight_decay weight_decay_rate adam_learning_rate consistent_rms beta3
    init_estim_sq_dist end_value""".split()
)
# Optax looks at the values of these in Python, so that they cannot vary inside one program.
_CONSTANTS = frozenset({"decay_rate", "pct_start", "pct_final", "div_factor", "final_div_factor"})
_OF_THEIR_PEAK = frozenset({"warmup_cosine_decay_schedule"})
# Of a schedule of one cycle, where its parts end, and where they do in one that has none.
_PARTS = {"pct_start": 0.5, "pct_final": 1.0}


@typing.runtime_checkable
class Schedule(typing.Protocol):
    """The learning rate of each update: from the number of updates before it to a scalar."""

    def __call__(self, count: Any, /) -> Any: ...


class ParameterAverage(NamedTuple):
    """The state of `average_parameters`.

    Attributes:
      count: the number of updates so far.
      average: of the parameters after each of them; before the first, the initial parameters.
    """

    count: Any
    average: Any


class ScheduledRate(NamedTuple):
    """The state of a schedule beside its optimizer's, so that it can be logged.

    Attributes:
      count: the number of updates so far.
      rate: the learning rate of the last one; before the first, that of the first.
    """

    count: Any
    rate: Any


def clip_cell(clip_norm: float) -> optax.GradientTransformation:
    """Scales the gradient under "cell" down to the norm `clip_norm`; 0 turns clipping off.

    Its update raises ValueError for gradients that are not a dict with "cell".
    """

    def clipped(updates: Any) -> Any:
        if not (isinstance(updates, dict) and "cell" in updates):
            raise ValueError(
                f'clip_cell needs gradients {{"cell": ..., "readout": ...}}, as a learner gives, got '
                f"{jax.tree.structure(updates)}"
            )
        return {**updates, "cell": _scaled_down(updates["cell"], clip_norm)}

    return optax.stateless(lambda updates, _: clipped(updates))


def clip_all(clip_norm: float) -> optax.GradientTransformation:
    """Scales the whole gradient down to the norm `clip_norm`; 0 turns clipping off."""
    return optax.stateless(lambda updates, _: _scaled_down(updates, clip_norm))


def average_parameters(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential average of the parameters; it stands last in a chain.

    After t updates to p_1, ..., p_t the average has the weights decay^(t - i), divided by their sum. It
    changes no update: `learning.evaluated_parameters` takes it from a learner's state.

    Args:
      decay: in [0, 1), of the weights per update.

    Raises:
      ValueError: if decay is a number outside of [0, 1). Its update raises it if it is not given the
        parameters.
    """
    # An array of single precision may be rounded to 1.
    if not isinstance(decay, jax.Array):
        bounds.require("[0, 1)", decay=decay)
    # In Python, in double precision: in single precision little is left of a number near 1.
    first_weight = 1 - decay

    def init(params: Any) -> ParameterAverage:
        return ParameterAverage(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: ParameterAverage, params: Any = None) -> Any:
        if params is None:
            raise ValueError(
                "average_parameters needs the parameters: update(updates, state, params)"
            )
        count = optax.safe_increment(state.count)
        # 1 - decay^t by its logarithm, and the mean where decay is 1 to the last digit.
        sum_of_weights = -jnp.expm1(count * jnp.log1p(-jnp.asarray(first_weight, float)))
        share = jnp.where(sum_of_weights > 0, first_weight / sum_of_weights, 1 / count)
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda a, p: (a + share * (p - a)).astype(a.dtype), state.average, new
        )
        return updates, ParameterAverage(count, average)

    return optax.GradientTransformation(init, update)


def average_in(optimizer_state: Any) -> Any:
    """The average that `average_parameters` keeps in an optimizer's state; None if it keeps none."""
    part = _part_of(optimizer_state, ParameterAverage)
    return None if part is None else part.average


def rate_in(optimizer_state: Any) -> Any:
    """The learning rate of the last update, where a config gave a schedule; None elsewhere."""
    part = _part_of(optimizer_state, ScheduledRate)
    return None if part is None else part.rate


def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Schedules one after another, as `optax.join_schedules`.

    Each counts updates from its own beginning.

    Args:
      schedules: in order.
      boundaries: the numbers of updates at which the second, the third, ... begin.

    Raises:
      ValueError: unless there is one boundary less than there are schedules, and they ascend from 1.
    """
    ascending = list(boundaries) == sorted(set(boundaries)) and min(boundaries, default=1) > 0
    if len(boundaries) != len(schedules) - 1 or not ascending:
        raise ValueError(
            f"join_schedules needs one boundary between each two schedules, ascending from 1, got "
            f"{len(schedules)} schedules and the boundaries {list(boundaries)}"
        )
    return optax.join_schedules(schedules, boundaries)


def _watched(schedule: Schedule) -> optax.GradientTransformation:
    """Keeps the learning rate of the last update, and changes nothing."""

    def init(params: Any) -> ScheduledRate:
        del params
        count = jnp.zeros((), jnp.int32)
        return ScheduledRate(count, jnp.asarray(schedule(count), float))

    def update(updates: Any, state: ScheduledRate, params: Any = None) -> Any:
        del params
        rate = jnp.asarray(schedule(state.count), float)
        return updates, ScheduledRate(optax.safe_increment(state.count), rate)

    return optax.GradientTransformation(init, update)


def _part_of(optimizer_state: Any, kind: type) -> Any:
    """The first part of an optimizer's state that is of a kind; None for none."""
    parts = jax.tree.leaves(optimizer_state, is_leaf=lambda x: isinstance(x, kind))
    return next((part for part in parts if isinstance(part, kind)), None)


def _scaled_down(gradient: Any, clip_norm: float) -> Any:
    norm, limit = xla.norm_of_tree(gradient), jnp.asarray(clip_norm)
    factor = jnp.where((limit > 0) & (norm > limit), limit / norm, 1.0)
    return jax.tree.map(lambda g: (g * factor).astype(g.dtype), gradient)


def _optimizer(name: str) -> Callable[..., optax.GradientTransformation]:
    """The factory of an optimizer of optax, with the arguments of a learner."""
    of_optax = getattr(optax, name, None) or getattr(optax.contrib, name)
    others = _arguments(of_optax)
    if name == "sgd":
        # Runs that were begun with this default go on; optax's None is the same without a state.
        others["momentum"] = others["momentum"].replace(default=0.0)
    default = others.pop("learning_rate").default
    default = None if default is inspect.Parameter.empty else default

    def factory(
        learning_rate: float | None = None,
        *,
        schedule: Schedule | None = None,
        clip_norm: float = 1.0,
        clip: Scope = "cell",
        ema_decay: float | None = None,
        **arguments: Any,
    ) -> optax.GradientTransformation:
        rate = default if learning_rate is None else learning_rate
        if schedule is not None:
            rate = schedule if learning_rate is None else None
        if rate is None:
            raise ValueError(f"{name} needs a learning_rate, or else a schedule in its place")
        chosen = {key: x for key, x in arguments.items() if not (x is None and "dtype" in key)}
        parts = [
            clip_cell(clip_norm) if clip == "cell" else clip_all(clip_norm),
            of_optax(learning_rate=rate, **chosen),
            *([] if schedule is None else [_watched(schedule)]),
            *([] if ema_decay is None else [average_parameters(ema_decay)]),
        ]
        return optax.chain(*parts)

    described = """with its own arguments, and those of a learner.

        Args:
          schedule: the learning rate of each update, in the place of `learning_rate`.
          clip_norm: the norm that the gradient is scaled down to first; 0 turns clipping off.
          clip: what is scaled, the gradient of the "cell" or of "all" parameters.
          ema_decay: of `average_parameters`; None for no average.

        Raises:
          ValueError: unless it is given a learning rate or a schedule, and not both.
        """
    rate, *own = inspect.signature(factory, eval_str=True).parameters.values()
    rate = rate.replace(default=default)
    keywords = [other.replace(kind=inspect.Parameter.KEYWORD_ONLY) for other in others.values()]
    return _described(factory, name, described, [rate, *keywords, *own[:-1]])


def _schedule(name: str) -> Callable[..., Schedule]:
    """The factory of a schedule of optax."""
    of_optax = getattr(optax, name)

    def factory(*positional: Any, **arguments: Any) -> Schedule:
        given = inspect.signature(of_optax).bind(*positional, **arguments)
        given.apply_defaults()
        start, final = (given.arguments.get(part, end) for part, end in _PARTS.items())
        if not 0 < start < final <= 1:
            raise ValueError(f"{name} needs 0 < pct_start < pct_final, got {start} and {final}")
        return of_optax(*positional, **arguments)

    text = "with its own arguments; steps are updates of the parameters."
    described = _described(factory, name, text, list(_arguments(of_optax).values()))
    described.constants = _CONSTANTS | ({"peak_value"} if name in _OF_THEIR_PEAK else set())
    return described


def _described(factory: Any, name: str, text: str, parameters: list[inspect.Parameter]) -> Any:
    """The factory under a name, with the signature that configs read as its schema."""
    factory.__name__ = factory.__qualname__ = name
    factory.__doc__ = f"`optax.{name}` {inspect.cleandoc(text)}"
    factory.__signature__ = inspect.Signature(parameters)
    factory.__annotations__ = {p.name: p.annotation for p in parameters}
    factory.constants = _CONSTANTS
    return factory


def _arguments(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a function of optax that a config can hold, with plain types."""
    found = {}
    for name, argument in inspect.signature(function).parameters.items():
        kind = _plain_type(name, argument.annotation, argument.default)
        if kind is not None:
            default = None if "dtype" in name else argument.default
            found[name] = argument.replace(annotation=kind, default=default)
    return found


def _plain_type(name: str, annotation: Any, default: Any) -> Any:
    """The type of an argument as a config has it; None if no config can hold its values."""
    if "dtype" in name:
        return _Precision | None
    if typing.get_origin(annotation) is Literal:
        return annotation
    if default is inspect.Parameter.empty:
        return int if name.endswith("_steps") else float
    if default is None:
        return float | None if name in _NUMBERS else None
    if isinstance(default, tuple):
        return tuple[tuple(type(item) for item in default)]  # type: ignore[misc]
    return type(default) if isinstance(default, (bool, int, float, str)) else None


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    name: _optimizer(name)
    for name in """adam adamw sgd rmsprop lion muon adabelief adadelta adafactor adagrad adamax adamaxw
    adan amsgrad fromage lamb lars nadam nadamw novograd optimistic_adam_v2
    optimistic_gradient_descent radam rprop sign_sgd signum yogi acprop ademamix adopt cocob
    dadapt_adamw dog dowg galore madgrad prodigy simplified_ademamix""".split()
    if hasattr(optax, name) or hasattr(optax.contrib, name)
}

SCHEDULES: dict[str, Callable[..., Schedule]] = {
    name: _schedule(name)
    for name in """constant_schedule linear_schedule cosine_decay_schedule exponential_decay
    polynomial_schedule warmup_constant_schedule warmup_cosine_decay_schedule
    warmup_exponential_decay_schedule cosine_onecycle_schedule linear_onecycle_schedule""".split()
} | {"join_schedules": join_schedules}

_VALUE = "asks for the loss as a function or a value, which no gradient of online learning has"
_OTHER_PARAMETERS = "is evaluated at other parameters than it trains: use ema_decay for an average"
_DICT = (
    "takes a dict or a list of them, which no text can hold: write "
    "join_schedules([constant_schedule(0.1), constant_schedule(0.01)], [1000])"
)
# Names of optax that configs do not take, and why.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("lbfgs", "polyak_sgd", "momo", "momo_adam", "sophia"), _VALUE),
    **dict.fromkeys(
        ("schedule_free", "schedule_free_adamw", "schedule_free_sgd"), _OTHER_PARAMETERS
    ),
    **dict.fromkeys(("noisy_sgd", "dpsgd"), "draws noise from a key of its own"),
    "sm3": "takes no parameters that are single numbers, as cells may have",
    "optimistic_adam": "is optimistic_adam_v2 in optax now",
    "piecewise_constant_schedule": _DICT,
    "piecewise_interpolate_schedule": _DICT,
    "sgdr_schedule": _DICT,
}
