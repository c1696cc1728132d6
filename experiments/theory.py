"""Noise against width and over time: python -m experiments.theory, which is `kfrtrl theory`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("theory")
