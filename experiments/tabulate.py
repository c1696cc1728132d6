"""Tables of a sweep: python -m experiments.tabulate, which is `kfrtrl tabulate`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("tabulate")
