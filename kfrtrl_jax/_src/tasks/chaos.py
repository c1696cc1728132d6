"""Chaotic series: the value some steps ahead is predicted from one value per step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, Batch, Key, Task
from kfrtrl_jax._src.lanes import along
from kfrtrl_jax._src.losses import normalized_square, squared_error
from kfrtrl_jax._src.shapes import require_key, require_positive
from kfrtrl_jax._src.tasks.common import vectors

HENON_A, HENON_B = 1.4, 0.3
LORENZ_SIGMA, LORENZ_RHO, LORENZ_BETA = 10.0, 28.0, 8 / 3
LORENZ_INTERVAL, LORENZ_SUBSTEPS = 0.05, 5
MACKEY_GLASS_BETA, MACKEY_GLASS_GAMMA, MACKEY_GLASS_POWER = 0.2, 0.1, 10
MACKEY_GLASS_SUBSTEPS = 10
# A series of less standard deviation is at rest, or comes to it.
_AT_REST = 0.01
# Where the held-out trajectories start, as points of the unit cube.
_HELD_OUT_STARTS = {"valid": (0.31, 0.62, 0.17), "test": (0.83, 0.24, 0.71)}


class ChaosState(NamedTuple):
    """Where every lane is on its trajectory.

    Attributes:
      system: the dynamical system's state, a tuple of arrays [B, ...], at the last known time step.
      ahead: [B, horizon], the standardized values of this step and those after it.
      started: whether a step has been made.
    """

    system: tuple[Array, ...]
    ahead: Array
    started: Array


class _System(NamedTuple):
    """A dynamical system that is observed through one value per step.

    States are tuples of numbers, or of arrays with any leading axes: the same functions run on
    Python's numbers, NumPy and JAX.

    Attributes:
      start: three numbers in [0, 1) -> a state in the basin of the attractor.
      step: (state, relative) -> the state one step later, its newest value multiplied by relative.
      value: state -> what is observed.
      mean: of the observed value on the attractor.
      std: its standard deviation.
      burn_in: steps after which a start is on the attractor.
    """

    start: Callable[[Any, Any, Any], tuple[Any, ...]]
    step: Callable[[tuple[Any, ...], Any], tuple[Any, ...]]
    value: Callable[[tuple[Any, ...]], Any]
    mean: float
    std: float
    burn_in: int


def henon(
    *, batch_size: int, horizon: int = 1, valid_length: int = 2000, test_length: int = 2000
) -> Task:
    """Predicts x of the Henon map: x' = 1 - a x^2 + y, y' = b x, with a = 1.4 and b = 0.3.

    The input is x_t and the target x_{t + horizon}, both [1] and standardized. x_{t + 1} is a
    function of x_t and x_{t - 1}. The loss is the mean square, the score the mean square divided by
    the targets' variance (NMSE); predicting the mean has 1 for both. Each lane is a trajectory of
    its own and never starts anew.

    In single precision the rounded map runs into a cycle after some ten thousand steps. Each new x
    is therefore multiplied by 1 + u with u uniform within two units of the last place of 1, so that
    no trajectory repeats itself. All start inside the quadrilateral that the map takes into itself
    (Henon, 1976), which they cannot leave.

    Args:
      batch_size: B.
      horizon: steps between an input and its target.
      valid_length: steps of the held-out stream "valid", in double precision from another start.
      test_length: of "test".

    Raises:
      ValueError: if an argument is less than 1.

    Source: Henon, "A two-dimensional mapping with a strange attractor", 1976.
    """
    return _task(_HENON, batch_size, horizon, valid_length, test_length)


def mackey_glass(
    *,
    batch_size: int,
    horizon: int = 1,
    delay: float = 17.0,
    valid_length: int = 2000,
    test_length: int = 2000,
) -> Task:
    """Predicts the Mackey-Glass series, the delay equation of a blood cell count.

    dx/dt = beta y / (1 + y^n) - gamma x with y = x(t - delay), beta = 0.2, gamma = 0.1, n = 10. A step
    is one unit of time, ten Euler steps of 0.1 as in Jaeger and Haas (2004). The input is x(t) and the
    target x(t + horizon), both [1] and standardized. Horizons of the literature are 1, 6 and 84. The
    loss is the mean square, the score the mean square divided by the targets' variance (NMSE);
    predicting the mean has 1 for both. Each lane is a trajectory of its own and never starts anew.

    Args:
      batch_size: B.
      horizon: steps between an input and its target.
      delay: in units of time, a multiple of 0.1 and at least 1; 17 and 30 in the literature. The series
        is chaotic above 16.8 (Farmer, 1982).
      valid_length: steps of the held-out stream "valid", in double precision from another start.
      test_length: of "test".

    Raises:
      ValueError: if an argument is less than 1, or delay is no multiple of 0.1 or so short that the
        series comes to rest.

    Source: Mackey and Glass, "Oscillation and chaos in physiological control systems", 1977; Jaeger
    and Haas, "Harnessing nonlinearity", 2004.
    """
    require_positive(delay=delay)
    substeps = round(delay * MACKEY_GLASS_SUBSTEPS)
    if not math.isclose(substeps, delay * MACKEY_GLASS_SUBSTEPS):
        raise ValueError(f"delay must be a multiple of 0.1, got {delay}")
    return _task(_mackey_glass(substeps), batch_size, horizon, valid_length, test_length)


# It is how many values a lane remembers.
mackey_glass.constants = frozenset({"delay"})  # type: ignore[attr-defined]


def lorenz(
    *, batch_size: int, horizon: int = 1, valid_length: int = 2000, test_length: int = 2000
) -> Task:
    """Predicts x of the Lorenz system, with sigma = 10, rho = 28 and beta = 8/3.

    A step is 0.05 units of time, five steps of the classical Runge-Kutta method. The input is x of
    this step and the target x `horizon` steps later, both [1] and standardized. The loss is the
    mean square, the score the mean square divided by the targets' variance (NMSE); predicting the
    mean has 1 for both. Each lane is a trajectory of its own and never starts anew.

    Args:
      batch_size: B.
      horizon: steps between an input and its target.
      valid_length: steps of the held-out stream "valid", in double precision from another start.
      test_length: of "test".

    Raises:
      ValueError: if an argument is less than 1.

    Source: Lorenz, "Deterministic nonperiodic flow", 1963.
    """
    return _task(_LORENZ, batch_size, horizon, valid_length, test_length)


def _henon_start(u: Any, v: Any, w: Any) -> tuple[Any, ...]:
    del w
    return (0.2 * u - 0.1, 0.2 * v - 0.1)


def _henon_step(state: tuple[Any, ...], relative: Any) -> tuple[Any, ...]:
    x, y = state
    return ((1 - HENON_A * x * x + y) * relative, HENON_B * x)


def _lorenz_start(u: Any, v: Any, w: Any) -> tuple[Any, ...]:
    return (20 * u - 10, 20 * v - 10, 20 * w + 15)


def _lorenz_velocity(x: Any, y: Any, z: Any) -> tuple[Any, ...]:
    return (LORENZ_SIGMA * (y - x), x * (LORENZ_RHO - z) - y, x * y - LORENZ_BETA * z)


def _lorenz_step(state: tuple[Any, ...], relative: Any) -> tuple[Any, ...]:
    h = LORENZ_INTERVAL / LORENZ_SUBSTEPS

    def along(velocity: tuple[Any, ...], time: float) -> tuple[Any, ...]:
        return tuple(s + time * v for s, v in zip(state, velocity, strict=True))

    for _ in range(LORENZ_SUBSTEPS):
        k1 = _lorenz_velocity(*state)
        k2 = _lorenz_velocity(*along(k1, h / 2))
        k3 = _lorenz_velocity(*along(k2, h / 2))
        k4 = _lorenz_velocity(*along(k3, h))
        mean = tuple((a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(k1, k2, k3, k4, strict=True))
        state = along(mean, h)
    return (state[0] * relative, *state[1:])


@functools.lru_cache(maxsize=8)
def _mackey_glass(substeps: int) -> _System:
    """The system of a delay; the same object for the same delay, by which held-out streams are kept."""

    def start(u: Any, v: Any, w: Any) -> tuple[Any, ...]:
        """A constant history, below the fixed point at 1."""
        del v, w
        history = 0.2 + 0.5 * (np.asarray(u) if isinstance(u, float) else u)
        return (history[..., None] * np.ones(substeps + 1, history.dtype),)

    system = _System(start, _mackey_glass_step, lambda state: state[0][..., -1], 0.93, 0.2262, 1000)
    # Those are the mean and the deviation of the usual delay; to find others takes a second.
    if substeps == 17 * MACKEY_GLASS_SUBSTEPS:
        return system
    mean, std = _scale(system)
    if std < _AT_REST:
        raise ValueError(
            f"delay must be longer: at {substeps / MACKEY_GLASS_SUBSTEPS:g} the series comes to rest "
            f"and nothing is left to predict; it moves from about 5 on, and is chaotic above 16.8"
        )
    return system._replace(mean=mean, std=std)


def _scale(system: _System) -> tuple[float, float]:
    """The mean and the standard deviation of its values, of many trajectories side by side."""
    state, values = system.start(*np.random.default_rng(0).uniform(size=(3, 200))), []
    for time in range(2 * system.burn_in):
        state = system.step(state, 1.0)
        if time >= system.burn_in:
            values.append(system.value(state))
    return float(np.mean(values)), float(np.std(values))


def _mackey_glass_step(state: tuple[Any, ...], relative: Any) -> tuple[Any, ...]:
    """The state is the values from `delay` ago until now, the newest last."""
    (history,) = state
    xp = history.__array_namespace__()
    delayed = history[..., :MACKEY_GLASS_SUBSTEPS]
    growth = MACKEY_GLASS_BETA * delayed / (1 + delayed**MACKEY_GLASS_POWER)
    x, values = history[..., -1], []
    for i in range(MACKEY_GLASS_SUBSTEPS):
        x = x + (growth[..., i] - MACKEY_GLASS_GAMMA * x) / MACKEY_GLASS_SUBSTEPS
        values.append(x)
    values[-1] = x * relative
    kept = history[..., MACKEY_GLASS_SUBSTEPS:]
    return (xp.concatenate([kept, xp.stack(values, -1)], -1),)


# Means and standard deviations of long trajectories, see tests/tasks/test_chaos.py.
_HENON = _System(_henon_start, _henon_step, lambda state: state[0], 0.257, 0.721, 100)
_LORENZ = _System(_lorenz_start, _lorenz_step, lambda state: state[0], 0.0, 7.925, 400)


def _task(
    system: _System, batch_size: int, horizon: int, valid_length: int, test_length: int
) -> Task:
    require_positive(
        batch_size=batch_size, horizon=horizon, valid_length=valid_length, test_length=test_length
    )

    def standardized(state: tuple[Any, ...]) -> Any:
        return (system.value(state) - system.mean) / system.std

    def init(key: Key) -> ChaosState:
        require_key("key", key)
        uniform = jax.random.uniform(key, (4, batch_size))
        # Each lane runs for another while, so that they do not keep in step with one another.
        burn_in = system.burn_in * (1 + uniform[3])

        def burn(state: tuple[Array, ...], time: Array) -> tuple[tuple[Array, ...], None]:
            new = system.step(state, 1.0)
            on = time < burn_in
            return jax.tree.map(lambda a, b: jnp.where(along(on, a), a, b), new, state), None

        def look(state: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], Array]:
            state = system.step(state, 1.0)
            return state, standardized(state)

        state = system.start(*uniform[:3])
        state, _ = jax.lax.scan(burn, state, jnp.arange(2 * system.burn_in))
        state, ahead = jax.lax.scan(look, state, length=horizon)
        return ChaosState(state, ahead.T, jnp.zeros((), bool))

    def sample(state: ChaosState, key: Key) -> tuple[ChaosState, Batch]:
        ahead = state.ahead
        last_places = jax.random.uniform(key, (batch_size,), ahead.dtype, -2.0, 2.0)
        moved = system.step(state.system, 1 + jnp.finfo(ahead.dtype).eps * last_places)
        value = standardized(moved)[:, None]
        batch = Batch(ahead[:, :1], value, jnp.full(batch_size, ~state.started))
        ahead = jnp.concatenate([ahead[:, 1:], value], axis=1)
        return ChaosState(moved, ahead, jnp.ones((), bool)), batch

    return Task(
        batch_size=batch_size,
        **vectors(1, 1),
        loss=squared_error(),
        chance_loss=1.0,
        init=init,
        sample=sample,
        score=normalized_square(),
        held_out={
            "valid": _held_out(system, "valid", horizon, valid_length),
            "test": _held_out(system, "test", horizon, test_length),
        },
    )


@functools.lru_cache(maxsize=16)
def _held_out(system: _System, part: str, horizon: int, length: int) -> Batch:
    """A trajectory of its own, in double precision."""
    state, values = system.start(*_HELD_OUT_STARTS[part]), []
    for time in range(system.burn_in + length + horizon):
        state = system.step(state, 1.0)
        if time >= system.burn_in:
            values.append(float(system.value(state)))
    series = ((np.array(values) - system.mean) / system.std)[:, None]
    reset = np.zeros(length, bool)
    return Batch(series[:-horizon], series[horizon:], reset)
