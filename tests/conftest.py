"""Tests run in float64, to compare with exact gradients; a test may turn it off."""

import jax
import pytest

from kfrtrl_jax import linearization
from kfrtrl_jax._src.linearization import self_check

jax.config.update("jax_enable_x64", True)
# Most of the time is spent compiling programs that run only once.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "self_check: make_learner checks the cell, as it does by default"
    )


@pytest.fixture(autouse=True)
def _no_self_check(request, monkeypatch):
    """Skips the self-check of cells, as tests compare with exact gradients, except in marked tests."""
    if "self_check" not in request.keywords:
        nothing = linearization.Check("float64", 0.0, {}, 0.0, 0.0, 0, 0.0)
        monkeypatch.setattr(self_check, "check", lambda *_, **__: nothing)
