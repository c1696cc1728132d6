"""Trains one network: python -m experiments.train, which is `kfrtrl train`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("train")
