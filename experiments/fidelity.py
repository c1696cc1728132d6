"""Every estimator against exact RTRL: python -m experiments.fidelity, which is `kfrtrl fidelity`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("fidelity")
