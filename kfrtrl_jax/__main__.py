"""`python -m kfrtrl_jax NAME ...` is `kfrtrl NAME ...`."""

from kfrtrl_jax.programs import console

if __name__ == "__main__":
    console.main()
