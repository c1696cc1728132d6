"""Everything is tested in float64 against exact gradients; each test may turn it off again."""

import jax
import pytest

from kfrtrl_jax import linearization
from kfrtrl_jax._src.linearization import self_check

jax.config.update("jax_enable_x64", True)
# Most of the time goes into compiling, and what is compiled runs but once.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "self_check: make_learner checks the cell, as it does by default"
    )


@pytest.fixture(autouse=True)
def _no_self_check(request, monkeypatch):
    """Tests compare with exact gradients themselves: the check of every cell is for those marked."""
    if "self_check" not in request.keywords:
        nothing = linearization.Check("float64", 0.0, {}, 0.0, 0.0, 0, 0.0)
        monkeypatch.setattr(self_check, "check", lambda *_, **__: nothing)
