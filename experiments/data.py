"""Fetches the Penn Treebank: python -m experiments.data, which is `kfrtrl data`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("data")
