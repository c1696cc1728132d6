"""Spiking units: leaky integrate-and-fire, with adaptive thresholds, with an adaptation current.

All of them read the spikes of the step before. With `estimators.e_prop` the eligibility trace of a
weight passes through all variables of its unit, reset included, and through no recurrent weight.
With detach_reset=True this is e-prop's (Bellec et al., 2020, Nature Communications 11:3625), with
detach_reset=False that of OSTL without the gradient through the recurrent weights (Bohnstingl et al.,
2020, arXiv:2007.12723). `estimators.snap` (order 1) adds the weight of each unit to itself: the two are
equal where these weights are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import gaussian
from kfrtrl_jax._src.cells.surrogates import Surrogate, spike_function

Reset = Literal["subtraction", "zero"]
Params = dict[str, Array]


def lif(
    *,
    input_size: int,
    hidden_size: int,
    leak: float = 0.8,
    threshold: float = 0.6,
    reset: Reset = "subtraction",
    detach_reset: bool = False,
    surrogate: Surrogate = "triangle",
    learned_dynamics: bool = False,
    init_scale: float = 0.0,
) -> Cell:
    """Leaky integrate-and-fire units with recurrent weights.

    u' = leak * u + W^T x + R^T z + b - threshold * z, and z' = 1 where u' is above the threshold, else
    0 (in this form Bellec et al., 2018, arXiv:1803.09574). With reset="zero" it is u' = leak * u *
    (1 - z) + W^T x + R^T z + b (Wozniak et al., 2020, arXiv:1812.07040). The carry is (u, z), two
    vectors of hidden_size, the output z.

    Args:
      input_size: length of x.
      hidden_size: the number of units, so that n is twice this.
      leak: of the membrane u per step, in (0, 1).
      threshold: of u.
      reset: what a spike does to its unit's membrane at the next step, see above.
      detach_reset: whether that reset is constant in all derivatives.
      surrogate: the derivative of a spike, see `spike_function`.
      learned_dynamics: whether every unit has a leak of its own, the sigmoid of a parameter (Fang et
        al., 2021, arXiv:2007.05785), that starts as the given one.
      init_scale: standard deviation of W; 0 means input_size^-1/2. That of R is hidden_size^-1/2 / 2.

    Raises:
      ValueError: if a leak is not in (0, 1), the threshold is not positive, or reset or surrogate is
        unknown.
    """
    reset_of = _reset_function(reset, detach_reset, threshold)
    spike = spike_function(surrogate)
    constants = _Constants(learned_dynamics, leaks={"leak": leak})

    init = _init_of(input_size, hidden_size, init_scale, constants)

    def step(
        params: Params, carry: tuple[Array, Array], x: Array
    ) -> tuple[tuple[Array, Array], Array]:
        u, z = carry
        leak = constants.values(params)["leak"]
        u = reset_of(leak, u, z) + _current(params, x, z)
        z = spike((u - threshold) / threshold)
        return (u, z), z

    return Cell(init, lambda: (jnp.zeros(hidden_size),) * 2, step)


def alif(
    *,
    input_size: int,
    hidden_size: int,
    leak: float = 0.8,
    adaptation_leak: float = 0.9,
    adaptation: float = 0.1,
    threshold: float = 0.6,
    reset: Reset = "subtraction",
    detach_reset: bool = False,
    surrogate: Surrogate = "triangle",
    learned_dynamics: bool = False,
    init_scale: float = 0.0,
) -> Cell:
    """Leaky integrate-and-fire units with adaptive thresholds (Bellec et al., 2018, arXiv:1803.09574).

    u' = leak * u + W^T x + R^T z + b - threshold * z, z' = 1 where u' is above threshold + adaptation *
    a, else 0, and a' = adaptation_leak * a + z': a spike lowers the membrane by the threshold, and
    raises the next thresholds. The carry is (u, a, z), three vectors of hidden_size, the output z.

    Args:
      input_size: length of x.
      hidden_size: the number of units, so that n is three times this.
      leak: of the membrane u per step, in (0, 1).
      adaptation_leak: of the adaptation a per step, in (0, 1).
      adaptation: the factor of a in the threshold.
      threshold: without adaptation.
      reset: see `lif`.
      detach_reset: see `lif`; the spikes that drive a always have a derivative.
      surrogate: the derivative of a spike by its excess over the threshold, as a multiple of the
        threshold without adaptation; see `spike_function`.
      learned_dynamics: whether every unit has leaks of its own (Yin et al., 2021, arXiv:2103.12593),
        the sigmoids of parameters, that start as the given ones.
      init_scale: see `lif`.

    Raises:
      ValueError: as `lif`, and if adaptation is negative.
    """
    reset_of = _reset_function(reset, detach_reset, threshold)
    spike = spike_function(surrogate)
    bounds.require("[0, inf)", adaptation=adaptation)
    leaks = {"leak": leak, "adaptation_leak": adaptation_leak}
    constants = _Constants(learned_dynamics, leaks)

    init = _init_of(input_size, hidden_size, init_scale, constants)

    def step(
        params: Params, carry: tuple[Array, Array, Array], x: Array
    ) -> tuple[tuple[Array, Array, Array], Array]:
        u, a, z = carry
        values = constants.values(params)
        u = reset_of(values["leak"], u, z) + _current(params, x, z)
        z = spike((u - threshold - adaptation * a) / threshold)
        a = values["adaptation_leak"] * a + z
        return (u, a, z), z

    return Cell(init, lambda: (jnp.zeros(hidden_size),) * 3, step)


def adlif(
    *,
    input_size: int,
    hidden_size: int,
    leak: float = 0.9,
    adaptation_leak: float = 0.97,
    membrane_coupling: float = 0.1,
    spike_coupling: float = 0.1,
    threshold: float = 0.2,
    reset: Reset = "subtraction",
    detach_reset: bool = False,
    surrogate: Surrogate = "triangle",
    learned_dynamics: bool = False,
    init_scale: float = 0.0,
) -> Cell:
    """Leaky integrate-and-fire units with an adaptation current w (Bittar and Garner, 2022).

    With alpha, beta, a and b for leak, adaptation_leak, membrane_coupling and spike_coupling,
    u' = alpha * u + (1 - alpha) * (W^T x + R^T z + bias - w) - threshold * z, z' = 1 where u' is above
    the threshold, else 0, and w' = beta * w + a * u' + b * z'. With reset="zero" it is alpha * u *
    (1 - z) in the place of alpha * u - threshold * z. The carry is (u, w, z), three vectors of
    hidden_size, the output z. Source: Frontiers in Neuroscience 16.

    Args:
      input_size: length of x.
      hidden_size: the number of units, so that n is three times this.
      leak: alpha, in (0, 1).
      adaptation_leak: beta, in (0, 1).
      membrane_coupling: a, in [-1, 1].
      spike_coupling: b, in [0, 2].
      threshold: of u. As the input is multiplied by 1 - alpha, it is less than for `lif`.
      reset: see `lif`.
      detach_reset: see `lif`; the spikes that drive w always have a derivative.
      surrogate: the derivative of a spike, see `spike_function`.
      learned_dynamics: whether every unit has an alpha, beta, a and b of its own, as in the paper, that
        start as the given ones: alpha and beta as sigmoids of parameters, a and b as parameters clipped
        to the intervals above.
      init_scale: see `lif`.

    Raises:
      ValueError: as `lif`, and if a coupling is out of its interval.
    """
    reset_of = _reset_function(reset, detach_reset, threshold)
    spike = spike_function(surrogate)
    leaks = {"leak": leak, "adaptation_leak": adaptation_leak}
    couplings = {"membrane_coupling": membrane_coupling, "spike_coupling": spike_coupling}
    constants = _Constants(learned_dynamics, leaks, couplings)

    init = _init_of(input_size, hidden_size, init_scale, constants)

    def step(
        params: Params, carry: tuple[Array, Array, Array], x: Array
    ) -> tuple[tuple[Array, Array, Array], Array]:
        u, w, z = carry
        values = constants.values(params)
        alpha, beta = values["leak"], values["adaptation_leak"]
        a, b = values["membrane_coupling"], values["spike_coupling"]
        u = reset_of(alpha, u, z) + (1 - alpha) * (_current(params, x, z) - w)
        z = spike((u - threshold) / threshold)
        w = beta * w + a * u + b * z
        return (u, w, z), z

    return Cell(init, lambda: (jnp.zeros(hidden_size),) * 3, step)


def _init_of(
    input_size: int, hidden_size: int, init_scale: float, constants: _Constants
) -> Callable[[Key], Params]:
    def init(key: Key) -> Params:
        input_key, recurrent_key = jax.random.split(key)
        return {
            "input": gaussian(input_key, (input_size, hidden_size), init_scale),
            "recurrent": 0.5 * gaussian(recurrent_key, (hidden_size, hidden_size), 0.0),
            "bias": jnp.zeros(hidden_size),
            **constants.init(hidden_size),
        }

    return init


def _current(params: Params, x: Array, z: Array) -> Array:
    return x @ params["input"] + z @ params["recurrent"] + params["bias"]


def _reset_function(
    reset: Reset, detach: bool, threshold: float
) -> Callable[[Array | float, Array, Array], Array]:
    """(leak, u, z) -> what is left of the membrane u at the next step, after the spikes z."""
    bounds.require("(0, inf)", threshold=threshold)
    if reset not in ("subtraction", "zero"):
        raise ValueError(f'reset must be "subtraction" or "zero", got {reset!r}')

    def left(leak: Array | float, u: Array, z: Array) -> Array:
        z = jax.lax.stop_gradient(z) if detach else z
        return leak * u - threshold * z if reset == "subtraction" else leak * (u * (1 - z))

    return left


class _Constants:
    """The constants of a unit's dynamics: the same numbers for all, or learned for each unit."""

    _INTERVALS: Mapping[str, str] = {"membrane_coupling": "[-1, 1]", "spike_coupling": "[0, 2]"}

    def __init__(
        self,
        learned: bool,
        leaks: Mapping[str, float],
        couplings: Mapping[str, float] | None = None,
    ) -> None:
        """The constants at their initial values.

        Raises:
          ValueError: if a leak is not in (0, 1) or a coupling not in its interval.
        """
        self._learned, self._leaks, self._couplings = learned, leaks, couplings or {}
        bounds.require("(0, 1)", **self._leaks)
        for name, value in self._couplings.items():
            bounds.require(self._INTERVALS[name], **{name: value})

    def init(self, size: int) -> Params:
        """The parameters, if they are learned; leaks by the names of their logits."""
        if not self._learned:
            return {}
        leaks = {name: jnp.zeros(size) + value for name, value in self._leaks.items()}
        couplings = {name: jnp.zeros(size) + value for name, value in self._couplings.items()}
        logits = {f"{name}_logit": jax.scipy.special.logit(x) for name, x in leaks.items()}
        return {**logits, **couplings}

    def values(self, params: Params) -> dict[str, Array | float]:
        """The constants by name, numbers or [units]."""
        if not self._learned:
            return {**self._leaks, **self._couplings}
        leaks = {name: jax.nn.sigmoid(params[f"{name}_logit"]) for name in self._leaks}
        clipped = {
            name: jnp.clip(params[name], *bounds.ends(self._INTERVALS[name]))
            for name in self._couplings
        }
        return {**leaks, **clipped}
