"""Runs a study of the papers: python -m experiments.reproduce, which is `kfrtrl reproduce`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("reproduce")
