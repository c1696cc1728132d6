"""The cells of the certificate: those of the library, and some that are difficult to linearize.

The latter are written in plain JAX, as users would write them: in complex numbers, with an output that
reads more than the new state, and with a loop that uses every weight several times per step.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.cells.initializers import gaussian
from kfrtrl_jax.base import Array, Cell, Key
from kfrtrl_jax.cells import CELLS, conv_lstm, lru, lstm_columns, stack_of


def complex_lru(*, input_size: int, hidden_size: int) -> Cell:
    """The linear recurrent unit in complex numbers (Orvieto et al., 2023, arXiv:2303.06349).

    z' = lambda * z + (gamma * B)^T x with lambda = exp(-exp(nu) + i exp(theta)); the output is
    Re(C^T z') + D^T x. The carry z is a complex vector of hidden_size, so that n is twice this; B
    [input_size, hidden_size] and C [hidden_size, hidden_size] are complex too, and nu, theta, log gamma
    and D [input_size, hidden_size] real. Initially gamma^2 = 1 - |lambda|^2. The same recurrence in
    real numbers is `cells.lru`.

    Args:
      input_size: length of x.
      hidden_size: the number of complex units, and the length of the output.
    """

    def init(key: Key) -> dict[str, Array]:
        radius_key, phase_key, input_key, output_key, skip_key = jax.random.split(key, 5)
        squared = jax.random.uniform(radius_key, (hidden_size,), minval=0.25, maxval=0.95)
        phase = jax.random.uniform(phase_key, (hidden_size,), minval=0.1, maxval=jnp.pi)
        into = jax.random.normal(input_key, (input_size, hidden_size), complex)
        out = jax.random.normal(output_key, (hidden_size, hidden_size), complex)
        return {
            "nu": jnp.log(-0.5 * jnp.log(squared)),
            "theta": jnp.log(phase),
            "log_gamma": 0.5 * jnp.log(1 - squared),
            "input": input_size**-0.5 * into,
            "output": hidden_size**-0.5 * out,
            "skip": gaussian(skip_key, (input_size, hidden_size), 0.0),
        }

    def step(params: dict[str, Array], z: Array, x: Array) -> tuple[Array, Array]:
        eigenvalues = jnp.exp(-jnp.exp(params["nu"]) + 1j * jnp.exp(params["theta"]))
        z = eigenvalues * z + x @ (jnp.exp(params["log_gamma"]) * params["input"])
        return z, (z @ params["output"]).real + x @ params["skip"]

    return Cell(init, lambda: jnp.zeros(hidden_size, complex), step)


def output_skip(*, input_size: int, hidden_size: int, gated: bool = True) -> Cell:
    """A tanh network (Elman, 1990) whose output reads more than the new state.

    u = W^T x, h' = tanh(u + R^T h + b), and the output is sigmoid(G^T [x; h']) * h' + u. So u is both a
    summand of the pre-activation and an input of the output, and G reaches the output alone. The carry
    h and the output have length hidden_size.

    Args:
      input_size: length of x.
      hidden_size: n, length of h.
      gated: whether to use G; without it the output is h' + u.
    """

    def init(key: Key) -> dict[str, Array]:
        input_key, recurrent_key, bias_key, gate_key = jax.random.split(key, 4)
        params = {
            "input": gaussian(input_key, (input_size, hidden_size), 0.0),
            "recurrent": gaussian(recurrent_key, (hidden_size, hidden_size), 0.0),
            "bias": 0.1 * jax.random.normal(bias_key, (hidden_size,)),
        }
        if gated:
            params["gate"] = gaussian(gate_key, (input_size + hidden_size, hidden_size), 0.0)
        return params

    def step(params: dict[str, Array], h: Array, x: Array) -> tuple[Array, Array]:
        u = x @ params["input"]
        h = jnp.tanh(u + h @ params["recurrent"] + params["bias"])
        if not gated:
            return h, h + u
        gate = jax.nn.sigmoid(jnp.concatenate([x, h]) @ params["gate"])
        return h, gate * h + u

    return Cell(init, lambda: jnp.zeros(hidden_size), step)


def ode(
    *,
    input_size: int,
    hidden_size: int,
    time_constant: float = 1.0,
    step_size: float = 0.5,
    substeps: int = 2,
) -> Cell:
    """A continuous-time recurrent network (Funahashi and Nakamura, 1993).

    time_constant * dh/dt = -h + tanh(W^T h + U^T x + b) with x held over the step, integrated by the
    classical Runge-Kutta method of four stages: a step uses every weight 4 * substeps times. The carry
    and the output are h.

    Args:
      input_size: length of x.
      hidden_size: n, length of h.
      time_constant: of the leak.
      step_size: the duration of a substep.
      substeps: substeps per step, in a loop.
    """

    def init(key: Key) -> dict[str, Array]:
        input_key, recurrent_key, bias_key = jax.random.split(key, 3)
        return {
            "input": gaussian(input_key, (input_size, hidden_size), 0.0),
            "recurrent": 1.5 * gaussian(recurrent_key, (hidden_size, hidden_size), 0.0),
            "bias": 0.1 * jax.random.normal(bias_key, (hidden_size,)),
        }

    def step(params: dict[str, Array], h: Array, x: Array) -> tuple[Array, Array]:
        def slope(h: Array) -> Array:
            drive = h @ params["recurrent"] + x @ params["input"] + params["bias"]
            return (jnp.tanh(drive) - h) / time_constant

        def substep(_: int, h: Array) -> Array:
            k1 = slope(h)
            k2 = slope(h + step_size / 2 * k1)
            k3 = slope(h + step_size / 2 * k2)
            k4 = slope(h + step_size * k3)
            return h + step_size / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

        h = jax.lax.fori_loop(0, substeps, substep, h)
        return h, h

    return Cell(init, lambda: jnp.zeros(hidden_size), step)


def single_lstms(*, input_size: int, hidden_size: int) -> Cell:
    """`cells.lstm_columns` with hidden_size columns of one unit each."""
    return lstm_columns(input_size=input_size, num_columns=hidden_size)


def stack_lru(*, input_size: int, hidden_size: int, layers: int = 2) -> Cell:
    """A deep network of linear recurrent units, each with a gated linear unit, a skip and a norm.

    As in Zucchet et al. (2023, arXiv:2305.15947).

    Args:
      input_size: length of x.
      hidden_size: the number of complex units of a layer, and the length of its output; n is
        2 * layers * hidden_size.
      layers: how many.
    """
    return stack_of(
        lambda size: lru(input_size=size, hidden_size=hidden_size),
        layers,
        input_size=input_size,
        skip=True,
        norm="layer",
        mix="glu",
        width=hidden_size,
    )


CERTIFIED_CELLS: dict[str, Callable[..., Cell]] = {
    # Those of which the number of units is an argument.
    **{name: make for name, make in CELLS.items() if make is not conv_lstm},
    "lstm_columns": single_lstms,
    "complex_lru": complex_lru,
    "output_skip": output_skip,
    "ode": ode,
    "stack_lru": stack_lru,
}
