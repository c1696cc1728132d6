"""Text from a trained network: python -m experiments.generate, which is `kfrtrl generate`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("generate")
