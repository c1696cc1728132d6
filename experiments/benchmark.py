"""Measures speeds and memory: python -m experiments.benchmark, which is `kfrtrl benchmark`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("benchmark")
