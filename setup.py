"""What pyproject.toml cannot say: the configs at the top of the repository are part of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["kfrtrl_jax", "kfrtrl_jax.*"]), "kfrtrl_jax.configs"],
    package_dir={"kfrtrl_jax.configs": "configs"},
)
