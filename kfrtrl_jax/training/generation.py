"""Text written by a trained network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.bounds import missed
from kfrtrl_jax._src.compositions.values import check_bounds
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.learning import predict
from kfrtrl_jax.training.loading import Loaded


def generate(
    network: Loaded, length: int, *, prompt: str = "", temperature: float = 1.0, seed: int = 0
) -> str:
    """Draws characters one after another from the network's predictions.

    Args:
      network: trained on text.
      length: how many characters to write.
      prompt: what is read first; "" for the end of a line.
      temperature: logits are divided by it; near 0 the likeliest character is taken.
      seed: of the draws.

    Returns:
      The prompt and what follows it.

    Raises:
      ConfigError: if the network does not predict characters, if the prompt has others than it knows,
        or for a temperature that is not positive and finite or a seed that is not of 32 bits.
    """
    symbols = network.task.symbols
    if not symbols:
        raise ConfigError(f"task {network.config.task.name} is not one of text")
    if allowed := missed("(0, inf)", temperature):
        raise ConfigError(f"temperature must be {allowed}, got {temperature}")
    check_bounds("seed", "seed", seed)
    read = prompt or ("\n" if "\n" in symbols else symbols[0])
    unknown = sorted(set(read) - set(symbols))
    if unknown:
        raise ConfigError(f"the network has never seen {unknown[0]!r} of the prompt")

    def after(carry: Any, token: Any) -> tuple[Any, Any]:
        return predict(network.cell, network.readout, network.parameters, carry, token)

    def write(state: Any, key: Any) -> tuple[Any, Any]:
        carry, logits = state
        # Relative to the largest: a quotient that leaves the range is -inf, and that of the largest 0.
        least = float(jnp.finfo(logits.dtype).tiny)
        scaled = (logits - jnp.max(logits)) / max(temperature, least)
        token = jax.random.categorical(key, scaled).astype(jnp.int32)
        return after(carry, token), token

    @jax.jit
    def written(tokens: Any, key: Any) -> Any:
        carry, logits = jax.lax.scan(after, network.cell.initial_carry(), tokens)
        keys = jax.random.split(key, length)
        return jax.lax.scan(write, (carry, logits[-1]), keys)[1]

    tokens = jnp.asarray([symbols.index(c) for c in read], jnp.int32)
    following = written(tokens, jax.random.key(seed))
    return prompt + "".join(symbols[token] for token in following)
