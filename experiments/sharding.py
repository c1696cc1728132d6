"""Lanes spread over devices: python -m experiments.sharding, which is `kfrtrl sharding`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.run("sharding")
