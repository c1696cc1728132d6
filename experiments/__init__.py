"""The programs of `kfrtrl_jax.programs` as modules to run: `python -m experiments.NAME`."""
