"""Memory of an estimator's state and of a run's peak, relative to the factors themselves."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from kfrtrl_jax._src import xla
from kfrtrl_jax._src.sizes import bytes_of
from kfrtrl_jax.studies.benchmarking import steps
from kfrtrl_jax.studies.benchmarking.steps import Case
from kfrtrl_jax.studies.benchmarking.timing import Measurement, median
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import program as programs

MEMORY_SUITE = (
    Case("recurrent_highway", "kf_rtrl", 256, 32),
    Case("recurrent_highway", "kf_rtrl", 512, 16),
)
STATE_TARGET, PEAK_TARGET = 1.1, 2.2
_STEPS = 20
# The same program at a size with negligible arrays: the rest is Python, JAX and the compiler.
_TINY = {"n": 4, "batch": 1}


def measure_memory(case: Case, config: Any, *, suite: str, rounds: int = 3) -> list[Measurement]:
    """Three measurements of KF-RTRL: memory of its state, of the compiled program and of the process.

    Args:
      case: what to measure.
      config: a config of the copy task to start from.
      suite: the suite's name.
      rounds: the number of processes started at each size.
    """
    resolved = steps.resolve(config, case, _STEPS)
    structure = programs.build(resolved).about.structure
    item = jax.numpy.dtype(structure.dtype).itemsize
    n, sites = structure.state_size, structure.sites
    factors = item * sum(site.input_size + n * site.output_size for site in sites)
    old_and_new = 2 * structure.batch_size * item * sum(n * site.output_size for site in sites)
    state = state_bytes(resolved) / structure.batch_size
    pair = "one old and one new A of all lanes"
    compiled = compiled_bytes(resolved)
    grown = [_growth(resolved) for _ in range(rounds)]
    return [
        _row(case, suite, "state per lane", state, factors, "the factors u and A", STATE_TARGET),
        _row(case, suite, "peak, compiled", compiled, old_and_new, pair, PEAK_TARGET),
        _row(case, suite, "peak, process", median(grown), old_and_new, pair, PEAK_TARGET, grown),
    ]


def state_bytes(resolved: Any) -> int:
    """Bytes of the estimator's state, for all lanes."""
    experiment = programs.build(resolved)
    return bytes_of(jax.eval_shape(lambda: experiment.init(0).learner.influence))


def compiled_bytes(resolved: Any) -> int:
    """Peak bytes of a chunk by XLA's own analysis, including the state it receives and returns."""
    experiment = programs.build(resolved)
    state = jax.eval_shape(lambda: experiment.init(0))
    chunk = xla.jit(experiment.run_chunk, donate_argnums=0)
    compiled = chunk.lower(state).compile()
    analysis: Any = compiled.memory_analysis()
    return int(
        analysis.temp_size_in_bytes
        + analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def _growth(resolved: Any) -> float:
    """Bytes that a separate process needs for the run beyond those for a tiny run."""
    tiny = resolved.to_dict()
    tiny["cell"]["hidden_size"], tiny["task"]["batch_size"] = _TINY["n"], _TINY["batch"]
    return process_growth(resolved.to_dict()) - process_growth(tiny)


def process_growth(config: dict[str, Any]) -> int:
    """Bytes by which three chunks raise a process's peak in RAM, after everything is compiled.

    Raises:
      RuntimeError: with the end of its standard error, if the process fails.
    """
    process = subprocess.run(
        [sys.executable, "-m", "kfrtrl_jax.studies.benchmarking.memory"],
        input=json.dumps(config),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"},
        check=False,
    )
    if process.returncode:
        raise RuntimeError(f"the process under test failed: {process.stderr.strip()[-500:]}")
    return int(process.stdout.split()[-1])


def _run_in_process(config: dict[str, Any]) -> int:
    experiment = programs.build(configs.resolve(config))
    abstract = jax.eval_shape(lambda: experiment.init(0))
    jitted = xla.jit(experiment.run_chunk, donate_argnums=0)
    chunk = jitted.lower(abstract).compile()
    init = jax.jit(experiment.init).lower(0).compile()
    before = _reset_peak_rss()
    state = init(0)
    for _ in range(3):
        state, metrics = chunk(state)
        jax.block_until_ready(metrics)
    return _peak() - before


def _reset_peak_rss() -> int:
    """Resets the peak to the present memory if the system allows it, as compiling needs a lot."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):
        # The peak since the start of the process; on Linux it may even be that of its parent.
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def _row(
    case: Case,
    suite: str,
    what: str,
    measured: float,
    floor: float,
    words: str,
    target: float,
    samples: list[float] | None = None,
) -> Measurement:
    samples = samples or [measured]
    ratio = measured / floor
    return Measurement(
        suite,
        f"{case.name}, {what}",
        case.n,
        case.batch,
        ratio,
        min(samples) / floor,
        max(samples) / floor,
        None,
        None,
        target,
        ratio <= target,
        words,
        [(sample, floor) for sample in samples],
        measured,
        floor,
    )


if __name__ == "__main__":
    print(_run_in_process(json.load(sys.stdin)))
