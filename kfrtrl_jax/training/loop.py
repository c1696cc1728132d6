"""The loop of all training: chunks of steps, logs, evaluations, checkpoints, for one run or many.

A run of `kfrtrl train` and a group of a sweep's trials are the same loop. It can be left at any
moment, by a signal or a failure of the machine, and continued from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kfrtrl_jax._src import xla
from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import (
    checkpoints,
    display,
    evaluation,
    metrics,
    processes,
    sharding,
    sinks,
    stopwatch,
    workdir,
)
from kfrtrl_jax.training.group import Group
from kfrtrl_jax.training.signals import SIGNALS, Interrupted, catch_signals

# Fields that may differ when a run is continued, as they do not affect its steps.
FREE_FIELDS = frozenset({"num_steps", "devices"})
# Where checkpoint_every is 0.
SECONDS_BETWEEN_CHECKPOINTS = 600.0


@dataclasses.dataclass
class Member:
    """One of the runs of a group, and what it has come to; saved with every checkpoint.

    Attributes:
      folder: of its log.
      title: what it is called in messages; "" for a run alone, whose problem ends the command.
      others: what is told of its records beside its log.
      record: its last record.
      best_loss: the lowest validation loss so far.
      best_step: the step of that loss.
      diverged_at: the step at which it stopped being finite.
      problem: what was not finite, in words.
    """

    folder: Path
    title: str = ""
    others: tuple[sinks.Opener, ...] = ()
    record: metrics.Record | None = None
    best_loss: float | None = None
    best_step: int = 0
    diverged_at: int | None = None
    problem: str = ""

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {k: v for k, v in vars(self).items() if k not in ("folder", "title", "others")}


def require_ahead(what: str, reached: int | None, num_steps: int) -> None:
    """Refuses to end a run at a step that it has passed: its figures would be those of more steps.

    Args:
      what: the run, in words.
      reached: the step that it has come to; None for none.
      num_steps: of its config.

    Raises:
      WorkdirError: if it has come to a later step.
    """
    if reached is not None and reached > num_steps:
        raise WorkdirError(
            f"{what} has come to step {reached:,} already, past num_steps = {num_steps:,}; num_steps "
            f"may only be raised: choose another --workdir for a shorter run"
        )


class Place(NamedTuple):
    """Where a group's state is kept, and who watches.

    Attributes:
      saved: the checkpoints.
      command_workdir: what --workdir was, for messages.
      show: the display.
      stop_on: the signals that stop the runs with their state saved.
    """

    saved: checkpoints.Checkpoints | processes.FirstCheckpoints
    command_workdir: Path
    show: display.Display
    stop_on: Sequence[int] = SIGNALS


class _Chunk(NamedTuple):
    """A chunk that has been handed to the device.

    Attributes:
      report: its metrics.
      step: its last.
      lap: its time.
    """

    report: Any
    step: int
    lap: stopwatch.Lap


class Training:
    """A group of runs, from its last checkpoint to its last step.

    Attributes:
      group: the runs as a program.
      members: each of them.
      step: time steps so far.
      state: of the group.
      best: the parameters of the lowest validation loss; () without a held-out stream.
      wall_time: seconds of run time so far.
    """

    def __init__(self, group: Group, members: Sequence[Member], config: Any, place: Place):
        """Restores the newest whole checkpoint, or starts anew.

        Args:
          group: the runs as a program.
          members: one for each run.
          config: the resolved config of the first of them.
          place: where they are kept.

        Raises:
          WorkdirError: if there are checkpoints and none can be used.
          ConfigError: if two arrays have the same name, so that no checkpoint could hold them.
        """
        self.group, self.members, self._config, self._place = group, members, config, place
        self.step, self.wall_time = 0, 0.0
        self._evaluates = "valid" in group.about.held_out
        self._totals = jax.jit(group.evaluate)
        self._better = jax.jit(group.better)
        self._streams: dict[str, Any] = {}
        self._pending: _Chunk | None = None
        like = jax.eval_shape(self._initial)
        checkpoints.names_of(like)
        restored = place.saved.restore(like, self._warn)
        lie = self.group.placed(like)
        if restored is None:
            tree = jax.jit(self._initial, out_shardings=lie)()
        else:
            tree, self.step = sharding.placed(restored.state, lie), restored.step
            self.wall_time = restored.info["wall_time"]
            for member, saved in zip(members, restored.info["members"], strict=True):
                vars(member).update(saved)
            place.show.note(f"continuing {members[0].folder} at step {self.step}")
        self.state, self.best = tree["state"], tree["best"]
        self._saved_at = time.monotonic()
        self._stopwatch = stopwatch.Stopwatch()

    def run(self) -> list[dict[str, Any]]:
        """Runs chunks until the last step, until no run is finite, or until a signal.

        Returns:
          The summaries, see `summarize`.

        Raises:
          Interrupted: on a signal; the state is saved.
          SaveError: if it cannot be saved.
        """
        with contextlib.ExitStack() as stack:
            self._sinks = [self._opened(member, stack) for member in self.members]
            for member in self.members:
                last = (member.record or {}).get("step", 0)
                metrics.read_for(member.folder, last, self._config.log_every, self._warn)
            if self.step < self._config.num_steps and self._alive:
                self._to_the_end()
            summaries = summarize(self)
            for sink, summary in zip(self._sinks, summaries, strict=True):
                sink.conclude(summary)
        return summaries

    def _opened(self, member: Member, stack: contextlib.ExitStack) -> sinks.Sink:
        """What takes the records of a run, until the stack is closed."""
        log, records = metrics.open_log(member.folder, self.step, self._warn)
        return sinks.together(stack, [log, *(opener(records) for opener in member.others)])

    def _to_the_end(self) -> None:
        if self.step == 0:
            self._place.show.note(str(self.group.about.check()))
        chunk = self._compiled()
        self._begun = time.monotonic() - self.wall_time
        with catch_signals(self._place.stop_on) as received:
            signals = processes.agreed(received)
            while self.step < self._config.num_steps and not signals and self._alive:
                self._advance(chunk)
                signals = processes.agreed(received)
            self._log_pending()
            if signals and self._alive:
                self._save()
        if signals and self._alive:
            raise self._interrupted(signals[0])

    def evaluate(self, name: str, parameters: Any) -> evaluation.Means:
        """The means over a held-out stream, [runs] each."""
        if name not in self._streams:
            self._streams[name] = evaluation.on_device(self.group.about.held_out[name])
        loss, score = evaluation.means(self._totals(parameters, self._streams[name]))
        return evaluation.Means(np.reshape(loss, (-1,)), np.reshape(score, (-1,)))

    @property
    def _alive(self) -> bool:
        return any(member.diverged_at is None for member in self.members)

    def _initial(self) -> dict[str, Any]:
        state = self.group.init()
        best = self.group.learned(state) if self._evaluates else ()
        return {"state": state, "best": best}

    def _compiled(self) -> Callable[[Any], tuple[Any, Any]]:
        lie = self.group.placed(self.state)
        shapes = jax.eval_shape(lambda: self.state)
        if lie is not None:
            shapes = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, lie
            )
        # A state lies after a chunk where it did before.
        jitted = xla.jit(self._run_chunk, donate_argnums=0)
        with display.during(self._place.show, "compiling the first chunk"):
            return jitted.lower(shapes).compile()

    def _run_chunk(self, state: Any) -> tuple[Any, Any]:
        new, report = self.group.run_chunk(state)
        lie = self.group.placed(new)
        return new if lie is None else jax.lax.with_sharding_constraint(new, lie), report

    def _advance(self, chunk: Callable[[Any], tuple[Any, Any]]) -> None:
        """One chunk, and what is due after it."""
        config, started = self._config, time.monotonic()
        self.state, report = chunk(self.state)
        lap = self._stopwatch.lap(started, report)
        self.step += config.log_every
        # The previous chunk's metrics are logged while the device computes this one.
        self._log_pending()
        self._pending = _Chunk(report, self.step, lap)
        evaluating = self._evaluates and self._due(config.eval_every)
        saving = self._due(config.checkpoint_every) or self._overdue()
        if evaluating or saving:
            self._log_pending(evaluating)
            if saving and self._alive:
                self._save()

    def _due(self, every: int) -> bool:
        return self.step == self._config.num_steps or (every > 0 and self.step % every == 0)

    def _overdue(self) -> bool:
        waited = time.monotonic() - self._saved_at
        if self._config.checkpoint_every:
            return False
        return processes.in_first(lambda: waited > SECONDS_BETWEEN_CHECKPOINTS)

    def _log_pending(self, evaluating: bool = False) -> None:
        """Waits for the last chunk and writes its records, with an evaluation if it is time for one."""
        if self._pending is None:
            return
        chunk, self._pending = self._pending, None
        fetched = jax.device_get(chunk.report)
        seconds, ended = self._stopwatch.stop(chunk.lap)
        rate = self._config.log_every / max(seconds, 1e-9)
        self.wall_time = ended - self._begun
        times = {"wall_time": round(self.wall_time, 3), "steps_per_second": round(rate, 2)}
        found = self.evaluate("valid", self.group.learned(self.state)) if evaluating else None
        improved = []
        for i, (member, sink) in enumerate(zip(self.members, self._sinks, strict=True)):
            own = None if found is None else evaluation.Means(found.loss[i], found.score[i])
            before = member.best_step
            if member.diverged_at is None:
                self._log(member, sink, self.group.part(fetched, i), own, chunk.step, times)
            improved.append(member.best_step != before)
        if any(improved):
            self.best = self._better(improved, self.group.learned(self.state), self.best)
        records = [m.record for m in self.members if m.diverged_at is None and m.record]
        if records:
            self._place.show.update({**records[0], **_means(records)})

    def _log(
        self,
        member: Member,
        sink: sinks.Sink,
        chunk: Any,
        held_out: evaluation.Means | None,
        at: int,
        times: dict[str, float],
    ) -> None:
        """Writes a run's record, or says what was not finite."""
        try:
            metrics.check_finite(chunk, self.group.runs(self.state))
            record = metrics.make_record(chunk, step=at, **times)
            if held_out is not None:
                if self._config.on_nonfinite == "stop":
                    metrics.check_held_out(held_out, at)
                loss, score = (metrics.number(value) for value in held_out)
                record.update(valid_loss=loss, valid_score=score)
        except metrics.NonFiniteError as error:
            member.diverged_at, member.problem = error.step, str(error)
            if member.title:
                self._place.show.note(f"{member.title} diverged: {member.problem}")
            return
        loss = record.get("valid_loss")
        if loss is not None and (member.best_loss is None or loss < member.best_loss):
            member.best_loss, member.best_step = loss, at
        sink.write(record)
        member.record = record

    def _save(self) -> None:
        for sink in self._sinks:
            sink.sync()
        self.wall_time = time.monotonic() - self._begun
        info = {"wall_time": self.wall_time, "members": [m.saved() for m in self.members]}
        tree = {"state": self.state, "best": self.best}
        self._place.saved.save(self.step, tree, info)
        self._saved_at = time.monotonic()

    def _interrupted(self, number: int) -> Interrupted:
        return Interrupted(
            f"stopped by {signal.Signals(number).name} at step {self.step}, all saved; "
            f"the same command with --workdir={self._place.command_workdir} continues",
            number,
        )

    def _warn(self, message: str) -> None:
        self._place.show.note(f"warning: {message}")


def summarize(training: Training) -> list[dict[str, Any]]:
    """Writes the final and the best parameters of every run and its summary.json; the summaries."""
    group, members = training.group, training.members
    words = group.about.words
    final = jax.device_get(group.learned(training.state))
    best = jax.device_get(training.best)
    tested = None
    if "test" in group.about.held_out and any(member.best_loss is not None for member in members):
        tested = training.evaluate("test", training.best)
    summaries = []
    for i, member in enumerate(members):
        record = member.record or {}
        summary: dict[str, Any] = {
            **record,
            "loss_unit": words.unit,
            "score_name": words.score,
            "higher_is_better": words.higher_is_better if words.score else None,
            "best_valid_loss": member.best_loss,
            "best_step": None if member.best_loss is None else member.best_step,
            "diverged_at": member.diverged_at,
            "problem": member.problem or None,
        }
        if member.best_loss is not None and tested is not None:
            numbers = {"test_loss": tested.loss[i], "test_score": tested.score[i]}
            summary.update({name: metrics.number(value) for name, value in numbers.items()})
        if member.diverged_at is None:
            checkpoints.save_parameters(member.folder / "final", group.part(final, i))
        if member.best_loss is not None:
            checkpoints.save_parameters(member.folder / "best", group.part(best, i))
        summary = {name: value for name, value in summary.items() if value is not None}
        workdir.write_document(member.folder / workdir.SUMMARY, summary)
        summaries.append(summary)
    return summaries


def _means(records: Sequence[metrics.Record]) -> metrics.Record:
    """The means of the figures that a display shows, over runs."""
    if len(records) == 1:
        return {}
    return {
        key: round(float(np.mean([record[key] for record in records])), 4)
        for key in metrics.OUTCOMES
        if all(record.get(key) is not None for record in records)
    }
