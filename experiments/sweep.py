"""Runs a sweep: python -m experiments.sweep, which is `kfrtrl sweep`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("sweep")
