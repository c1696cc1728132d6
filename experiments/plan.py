"""What a run on a cluster would need: python -m experiments.plan, which is `kfrtrl plan`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("plan")
