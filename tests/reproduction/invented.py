"""Invented records of studies: several seeds, a run that diverged and one that is not finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from kfrtrl_jax.studies.reproduction import records

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
MALICIOUS = "</script><img src=x onerror=alert(1)>"
PLANNED = 100_000
STEP = 10_000
CHAINS = tuple(f"memory_chain(batch_size=16, length={length})" for length in (16, 64))


def trial(method: str, seed: int, last: int = PLANNED, status: str = "done", **fields: Any) -> Any:
    """A trial whose T* is steps / 10,000 plus its seed, with a step that takes 2 + seed seconds."""
    steps = list(range(STEP, last + 1, STEP))
    return {
        "method": method,
        "task": "copy",
        "cell": "recurrent_highway",
        "overrides": {"estimator": "kf_rtrl", "segment_length": 1, "seed": seed},
        "lanes": 16,
        "bytes_per_lane": 2048,
        "status": status,
        "steps": last,
        "planned_steps": PLANNED,
        "seconds": 1.0,
        "ms_per_step": 2.0 + seed,
        "made_with": 0,
        "curve": {
            "step": steps,
            "wall_time": [(2.0 + seed) * step / 1000 for step in steps],
            "running_loss": [1000 / step for step in steps],
            "sequence_length": [step // STEP + seed for step in steps],
        },
        **fields,
    }


def copy_trials() -> list[Any]:
    """Trials of five methods of the copy task."""
    uoro = {"estimator": "uoro", "segment_length": 1}
    window = {"estimator": "truncated", "segment_length": 1, "window": 25}
    return [
        *(trial("KF-RTRL", seed) for seed in range(3)),
        trial("UORO", 0, overrides={**uoro, "seed": 0}),
        trial("UORO", 1, 20_000, "diverged", overrides={**uoro, "seed": 1}),
        trial("16-OK", 0, 30_000, "running"),
        *(trial("TBPTT(25)", seed, overrides={**window, "seed": seed}) for seed in (1, 2, 3)),
        trial(MALICIOUS, 8),
    ]


def ptb_trial() -> Any:
    """A trial of the Penn Treebank, with a validation every second line."""
    steps = [STEP, 2 * STEP, 3 * STEP, 4 * STEP]
    curve = {
        "step": steps,
        "wall_time": [1.0, 2.0, 3.0, 4.0],
        "running_loss": [3.0, 2.5, 2.25, 2.0],
        "valid_loss": [None, 2.6, None, 2.1],
    }
    tested = {"best_valid_loss": 2.1, "test_loss": 2.0}
    return trial("KF-RTRL", 0, 4 * STEP, "done", task="penn_treebank", curve=curve, **tested)


def long_trials() -> list[Any]:
    """A method on two tasks, with the accuracies 0.5 and 1."""
    return [
        trial(
            "KF-RTRL, blocks of 8",
            0,
            STEP,
            task=task,
            overrides={"task": task, "estimator": "kf_rtrl", "segment_length": 8, "seed": 0},
            curve={"step": [STEP], "wall_time": [2.0], "score": [score]},
        )
        for task, score in zip(CHAINS, (0.5, 1.0), strict=True)
    ]


def budget_trials() -> list[Any]:
    """Two methods at two rates each, with an error of 0.4 at the better one of KF-RTRL."""
    task = "adding(batch_size=8, length=20)"
    return [
        trial(
            method,
            seed,
            2 * STEP,
            task=task,
            overrides={"task": task, "optimizer.learning_rate": rate, "seed": seed},
            planned_steps=2 * STEP,
            curve={"step": [STEP, 2 * STEP], "score": [0.9, error + 0.1 * seed]},
        )
        for method, rate, error in (
            ("TBPTT(1)", 1e-3, 0.8),
            ("TBPTT(1)", 1e-2, 0.7),
            ("KF-RTRL", 1e-3, 0.4),
            ("KF-RTRL", 1e-2, 0.6),
        )
        for seed in range(2)
    ]


def noise() -> dict[str, Any]:
    """A record of `experiments.noise`, of a trained network."""
    measured = {"relative_noise": 4.0, "standard_error": 0.5, "cosine": 0.25, "cosine_error": 0.01}
    given = {"cell": "gru", "trained": "runs/one", "stream": "", "num_steps": 8, "draws": 3}
    return {
        "config": {**given, "estimators": ["kf_rtrl"], "segment_lengths": [8], "estimated": True},
        "made_with": {"versions": {"jax": "1.2.3"}, "commit": "abc"},
        "rows": [
            {"estimator": "kf_rtrl", "segment_length": 8, "immediate": "exact", **measured},
            {"estimator": "kf_rtrl", "segment_length": 1, "immediate": "estimated", **measured},
        ],
    }


def made_with(device: str = "cpu") -> dict[str, Any]:
    """What the trials of a record were made with."""
    return {
        "settings": {"precision": "float32"},
        "data": {},
        "versions": {"jax": "1.2.3"},
        "device": device,
        "sittings": [{"commit": "abc", "processor": "<b>processor</b>", "cores": 2}],
    }


def record(study: str, trials: list[Any]) -> dict[str, Any]:
    """A record of a study."""
    return {
        "study": study,
        "config": f"configs/reproduce_{study}.py",
        "made_with": [made_with()],
        "trials": trials,
    }


def results(folder: Path) -> Path:
    """A folder of results with all studies, the public logs and the cosines."""
    shutil.copytree(RESULTS / "reference", folder / "reference")
    shutil.copy(RESULTS / "fidelity_segments.json", folder)
    made = {
        "copy": copy_trials(),
        "ptb": [ptb_trial()],
        "long": long_trials(),
        "budget": budget_trials(),
    }
    for study, trials in made.items():
        records.write(folder / "reproduction" / f"{study}.json", record(study, trials))
    (folder / "reproduction" / "noise").mkdir()
    (folder / "reproduction" / "noise" / "copy.json").write_text(json.dumps(noise()))
    return folder
