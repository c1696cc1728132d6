from __future__ import annotations

import time

import pytest

from kfrtrl_jax._src import host_memory
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import memory, program
from kfrtrl_jax.training.config import resolve
from tests.training.small import COPY

HUGE = 3_000_000


def refusal(overrides):
    begun = time.process_time()
    with pytest.raises(ConfigError) as raised:
        program.build(resolve(COPY, overrides))
    assert time.process_time() - begun < 5
    return str(raised.value)


@pytest.fixture(autouse=True)
def _small_machine(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 8 * 2**30)


@pytest.mark.parametrize("cell", ["vanilla", "lstm", "ltc", "alif"])
def test_weights_that_do_not_fit_are_refused_from_their_shapes(cell):
    message = refusal({"cell": f"{cell}(hidden_size={HUGE})"})
    assert message.startswith("the run's state needs at least ")
    assert "TiB and 8.00 GiB are available already without its estimator" in message


def test_many_lanes_are_refused_from_their_carries():
    message = refusal({"task.batch_size": 2**31 - 1})
    assert message.endswith("choose smaller fields such as cell.hidden_size, task.batch_size")


@pytest.mark.parametrize("estimator", ["rtrl", "kf_rtrl"])
def test_the_state_of_an_estimator_is_extrapolated_from_smaller_cells(estimator, monkeypatch):
    config = {"cell": "lru(hidden_size=1000)", "estimator": estimator}
    exact = memory.size(memory.needed(program.build(resolve(COPY, config)))[0])
    monkeypatch.setattr(memory, "_LARGE_CARRY", 1000)
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    assert refusal(config).startswith(f"the run's state needs {exact} and 1.00 MiB are available; ")


@pytest.mark.parametrize("estimator", ["diagonal_rtrl", "snap", "e_prop"])
def test_patterns_that_the_host_cannot_hold_are_refused(estimator):
    message = refusal({"cell": f"lru(hidden_size={HUGE})", "estimator": estimator})
    assert "the analysis of the cell needs" in message
    assert "of the host's memory and" in message


@pytest.mark.parametrize(
    "cell", [f"s5(hidden_size={HUGE})", f"vanilla(hidden_size={HUGE}, sparsity=0.9)"]
)
def test_initial_values_that_the_host_cannot_hold_are_refused(cell):
    assert "of the host's memory and" in refusal({"cell": cell})


def test_requests_for_memory_are_recorded():
    with host_memory.recorded() as outer, host_memory.recorded() as inner:
        host_memory.require_memory("a list", 3)
    assert (outer, inner) == ([], [3])
    with pytest.raises(MemoryError, match=r"^a list needs 1,048,576\.00 GiB of the host's memory"):
        host_memory.require_memory("a list", 2**50)
