"""Compares runs and sweeps: python -m experiments.compare, which is `kfrtrl compare`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("compare")
