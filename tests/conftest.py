"""Everything is tested in float64 against exact gradients; each test may turn it off again."""

import jax

jax.config.update("jax_enable_x64", True)
# Most of the time goes into compiling, and what is compiled runs but once.
jax.config.update("jax_disable_most_optimizations", True)
