"""Renders what the studies have come to: python -m experiments.report, which is `kfrtrl report`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("report")
