"""Noise against segment length: python -m experiments.noise, which is `kfrtrl noise`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("noise")
