"""How far a sweep has come: what has become of its trials, and about how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kfrtrl_jax.training import choice, display, metrics, trials
from kfrtrl_jax.training.engines.jobs import Job, Outcome


def make_progress(
    jobs: Sequence[Job], runs: Mapping[str, Any], results: Mapping[str, Any]
) -> Callable[[Job, Outcome], str]:
    """What makes a line about a sweep, from a job that has ended and its outcome.

    The time left is that of all trials' steps at the mean speed so far, over all groups and with
    whatever runs at the same time. Groups that run are seen in their logs.

    Args:
      jobs: all that the engine was given, at the moment when it begins.
      runs: the resolved config of each trial, by name.
      results: those so far, by name; as they are when the line is made.
    """
    begun, failed = time.monotonic(), dict[trials.Work, Exception]()
    first = {job.work: _step_of(job) for job in jobs}
    open_jobs = dict.fromkeys(first)

    def left(work: trials.Work, step: int) -> int:
        return sum(max(0, runs[name].num_steps - step) for name in work.names)

    def tell(ended: Job, outcome: Outcome) -> str:
        open_jobs.pop(ended.work)
        if isinstance(outcome, Exception):
            failed[ended.work] = outcome
        now = {job.work: _step_of(job) for job in jobs if job.work in open_jobs}
        running = [name for work, step in now.items() if step != first[work] for name in work.names]
        broken = [name for work in failed for name in work.names]
        whole = [results[name] for name in runs if trials.is_done(runs[name], results.get(name))]
        done = sum(map(choice.is_steady, whole))
        counts = {
            "diverged": len(whole) - done,
            "failed": len(broken),
            "running": len(running),
            "waiting": len(runs) - len(whole) - len(broken) - len(running),
        }
        rest = sum(left(work, step) for work, step in now.items())
        passed = sum(left(work, step) for work, step in first.items() if work not in failed) - rest
        parts = [f"{done} of {len(runs)} trials done"]
        parts += [f"{count} {what}" for what, count in counts.items() if count]
        line = f"sweep: {', '.join(parts)}"
        if not rest or passed <= 0:
            return line
        seconds = (time.monotonic() - begun) * rest / passed
        return f"{line}; about {display.duration(seconds)} left"

    return tell


def _step_of(job: Job) -> int:
    """The last step in the logs of a job's first and last trial, as one of them may have diverged."""
    folder = job.folder / "trials"
    return max(metrics.last_step(folder / job.work.names[i]) for i in (0, -1))
