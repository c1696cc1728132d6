"""The scalar memory cell of xLSTM."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.base import Array, Cell, Key
from kfrtrl_jax._src.cells.initializers import gaussian

State = tuple[Array, Array, Array, Array]


def slstm(
    *,
    input_size: int,
    hidden_size: int,
    num_heads: int = 1,
    forget_gate: Literal["sigmoid", "exp"] = "sigmoid",
    forget_bias: float = 1.0,
    init_scale: float = 0.0,
) -> Cell:
    """The sLSTM, with exponential gates and a normalizer (Beck et al., 2024, arXiv:2405.04517).

    [i; f; g; o] = W^T x + R^T h + b, C' = phi(f) C + exp(i) tanh(g), N' = phi(f) N + exp(i) and
    h' = sigmoid(o) C' / N', where phi is the sigmoid or exp. R connects only the units of a head: each
    gate has one matrix for every head. As heads do not meet, `estimators.snap` of a high order is exact
    and keeps the entries within each head alone; `estimators.per_head(ok(r))` has r products for each.
    The paper's group norm of h is left out.

    Kept are c = C exp(-m) and n = N exp(-m), with the stabilizer m' = max(log phi(f) + m, i), or i
    while N is 0. As h' does not depend on m, m is constant in all derivatives: then those of c and n
    have the same factor exp(-m), and every gradient is the one without a stabilizer. The carry is
    (c, n, m, h), four vectors of hidden_size, the output h.

    Args:
      input_size: length of x.
      hidden_size: length of c, n, m and h, so that the state is four times this.
      num_heads: a divisor of hidden_size.
      forget_gate: phi.
      forget_bias: the initial bias of f.
      init_scale: standard deviation of W; 0 means input_size^-1/2. That of R is the size of a head to
        the power of -1/2.

    Raises:
      ValueError: if num_heads does not divide hidden_size or forget_gate is unknown.
    """
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(
            f"num_heads must be a divisor of hidden_size ({hidden_size}), got {num_heads}"
        )
    if forget_gate not in ("sigmoid", "exp"):
        raise ValueError(f'forget_gate must be "sigmoid" or "exp", got {forget_gate!r}')
    head_size = hidden_size // num_heads

    def init(key: Key) -> dict[str, Array]:
        input_key, recurrent_key = jax.random.split(key)
        recurrent = gaussian(recurrent_key, (head_size, 4 * hidden_size), 0.0)
        bias = jnp.zeros((4, hidden_size), recurrent.dtype)
        return {
            "input": gaussian(input_key, (input_size, 4 * hidden_size), init_scale),
            # [gate, head, from, to]
            "recurrent": jnp.moveaxis(recurrent.reshape(head_size, 4, num_heads, head_size), 0, 2),
            "bias": bias.at[1].set(forget_bias).reshape(-1),
        }

    def initial_carry() -> State:
        zeros = jnp.zeros(hidden_size)
        return zeros, zeros, zeros, zeros

    def step(params: dict[str, Array], carry: State, x: Array) -> tuple[State, Array]:
        c, n, m, h = carry
        heads = h.reshape(num_heads, head_size)
        recurrent = jnp.einsum("hm,khmg->khg", heads, params["recurrent"]).reshape(-1)
        i, f, g, o = jnp.split(x @ params["input"] + recurrent + params["bias"], 4)
        log_forget = jax.nn.log_sigmoid(f) if forget_gate == "sigmoid" else f
        # Of a unit without a past nothing is left, whatever its gates.
        log_past = jnp.where(n > 0, log_forget + jax.lax.stop_gradient(m), -jnp.inf)
        m = jax.lax.stop_gradient(jnp.maximum(log_past, i))
        past, new = jnp.exp(log_past - m), jnp.exp(i - m)
        c = past * c + new * jnp.tanh(g)
        n = past * n + new
        h = jax.nn.sigmoid(o) * c / n
        return (c, n, m, h), h

    return Cell(init, initial_carry, step)
