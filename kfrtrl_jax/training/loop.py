"""One run, from a config to a trained network: chunks, logs, evaluations, checkpoints."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from kfrtrl_jax._src import xla
from kfrtrl_jax.training import checkpoints, display, evaluation, memory, metrics, plots, workdir
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.program import ChunkMetrics, Experiment, build
from kfrtrl_jax.training.segments import RunState
from kfrtrl_jax.training.signals import Interrupted, catch_signals

CURVE = "learning_curve.png"
# Fields that may differ when a run is resumed, as they do not affect its steps.
FREE_FIELDS = frozenset({"num_steps"})


Evaluate = Callable[[str, Any], evaluation.Means]


class Progress(NamedTuple):
    """A run's progress beside its state, saved with every checkpoint.

    Attributes:
      wall_time: seconds of run time so far.
      best_loss: the lowest validation loss so far.
      best_step: the step of that loss.
    """

    wall_time: float = 0.0
    best_loss: float | None = None
    best_step: int = 0


def train(config: Any, folder: Path) -> dict[str, Any]:
    """Runs an experiment, or continues it from its last checkpoint.

    Args:
      config: from `config.resolve`.
      folder: the workdir. It receives config.json, metrics.jsonl, checkpoints/, tensorboard/, a picture
        of the learning curve, final/ and, if there is held-out text, best/.

    Returns:
      The summary, also written to summary.json.

    Raises:
      ConfigError, DataError, WorkdirError, UnsupportedCellError: before anything is computed.
      NonFiniteError: if the loss, the gradient or the state stops being finite.
      Interrupted: on SIGTERM or ctrl-C; the run is saved.
    """
    experiment = build(config)
    memory.check(experiment, config)
    with (
        workdir.hold(folder),
        contextlib.closing(_open_checkpoints(folder, config)) as saved,
    ):
        return _run(config, folder, experiment, saved)


def _open_checkpoints(folder: Path, config: Any) -> checkpoints.Checkpoints:
    workdir.claim(folder, config.to_dict(), free=FREE_FIELDS)
    return checkpoints.open_checkpoints(folder / "checkpoints")


def _run(
    config: Any,
    folder: Path,
    experiment: Experiment,
    saved: checkpoints.Checkpoints,
) -> dict[str, Any]:
    like = jax.eval_shape(lambda: experiment.init(config.seed))
    warnings: list[str] = []
    restored = saved.restore(like, warnings.append)
    if restored:
        step, state, progress = restored.step, restored.state, Progress(**restored.info)
    else:
        step, state, progress = 0, jax.jit(experiment.init)(config.seed), Progress()
    evaluate = _evaluator(experiment)
    show = display.make_display(config.num_steps, step, experiment.about.words)
    with metrics.open_writer(folder, step) as writer, contextlib.closing(show):
        for warning in warnings:
            show.note(f"warning: {warning}; going back to step {step}")
        if restored:
            show.note(f"continuing {folder} at step {step}")
        else:
            show.note(str(experiment.about.check()))
        if step < config.num_steps:
            run = _Run(config, folder, experiment, saved, writer, show, evaluate)
            state, progress = _advance(run, state, step, progress)
    # A run that is already past num_steps stays as it is.
    return _finish(config, folder, experiment, state, progress, evaluate)


class _Run(NamedTuple):
    """The context of a run's loop."""

    config: Any
    folder: Path
    experiment: Experiment
    saved: checkpoints.Checkpoints
    writer: metrics.Writer
    show: display.Display
    evaluate: Evaluate


def _advance(
    run: _Run, state: RunState, step: int, progress: Progress
) -> tuple[RunState, Progress]:
    """Runs chunks until the last step or a signal."""
    config = run.config
    begun = time.monotonic() - progress.wall_time
    abstract = jax.eval_shape(lambda: state)
    jitted = xla.jit(run.experiment.run_chunk, donate_argnums=0)
    with display.during(run.show, "compiling the first chunk"):
        chunk = jitted.lower(abstract).compile()
    lap = time.monotonic()
    pending: tuple[ChunkMetrics, int] | None = None

    def fetch(results: ChunkMetrics, at: int) -> metrics.Record:
        """Waits for the chunk that ends at step `at`; returns its record."""
        nonlocal lap
        fetched = jax.device_get(results)
        metrics.check_finite(fetched)
        now = time.monotonic()
        rate, lap = config.log_every / max(now - lap, 1e-9), now
        times = {"wall_time": round(now - begun, 3), "steps_per_second": round(rate, 2)}
        return metrics.make_record(fetched, step=at, **times)

    def log(record: metrics.Record) -> None:
        run.writer.write(record)
        run.show.update(record)

    def due(every: int) -> bool:
        return step == config.num_steps or (every > 0 and step % every == 0)

    try:
        with catch_signals() as signals:
            while step < config.num_steps and not signals:
                state, results = chunk(state)
                step += config.log_every
                if pending is not None:
                    # The previous chunk's metrics are logged while the device computes this one.
                    log(fetch(*pending))
                pending = (results, step)
                evaluating = "valid" in run.experiment.about.held_out and due(config.eval_every)
                if evaluating or due(config.checkpoint_every):
                    record, pending = fetch(*pending), None
                    if evaluating:
                        loss, score = run.evaluate("valid", state.learner.parameters)
                        record.update(valid_loss=loss, valid_score=score)
                        if progress.best_loss is None or loss < progress.best_loss:
                            progress = progress._replace(best_loss=loss, best_step=step)
                            checkpoints.save_parameters(
                                run.folder / "best", state.learner.parameters
                            )
                    log(record)
                    progress = progress._replace(wall_time=time.monotonic() - begun)
                    if due(config.checkpoint_every):
                        run.writer.sync()
                        run.saved.save(step, state, progress._asdict())
                    lap = time.monotonic()
            if pending is not None:
                log(fetch(*pending))
            if signals and step < config.num_steps:
                progress = progress._replace(wall_time=time.monotonic() - begun)
                run.writer.sync()
                run.saved.save(step, state, progress._asdict())
    except metrics.NonFiniteError as error:
        last = run.saved.last_step()
        where = (
            "no checkpoint yet" if last is None else f"the last good checkpoint is of step {last}"
        )
        raise metrics.NonFiniteError(f"{error} ({where})") from None
    if signals:
        raise Interrupted(
            f"stopped by {signal.Signals(signals[0]).name} at step {step}, all saved; "
            f"the same command with --workdir={run.folder} continues",
            signals[0],
        )
    return state, progress


def _evaluator(experiment: Experiment) -> Evaluate:
    held_out = experiment.about.held_out
    streams = {name: evaluation.on_device(stream) for name, stream in held_out.items()}
    totals = jax.jit(experiment.about.evaluate)

    def evaluate(name: str, parameters: Any) -> evaluation.Means:
        loss, score = evaluation.means(totals(parameters, streams[name]))
        return evaluation.Means(float(loss), float(score))

    return evaluate


def _finish(
    config: Any,
    folder: Path,
    experiment: Experiment,
    state: RunState,
    progress: Progress,
    evaluate: Evaluate,
) -> dict[str, Any]:
    """Writes the final parameters, the summary with the test loss, and the picture."""
    parameters = state.learner.parameters
    checkpoints.save_parameters(folder / "final", parameters)
    best = progress.best_loss
    test: dict[str, float] = {}
    if best is not None:
        parameters = checkpoints.load_parameters(folder / "best", parameters)
        if "test" in experiment.about.held_out:
            loss, score = evaluate("test", parameters)
            test = {"test_loss": loss, "test_score": score}
    records = metrics.read(folder / metrics.METRICS)
    unit, judged = experiment.about.words
    summary = {
        "step": int(state.step),
        "wall_time": round(progress.wall_time, 3),
        "loss_unit": unit,
        "running_loss": records[-1]["running_loss"],
        "score_name": judged,
        "score": records[-1].get("score"),
        "sequence_length": records[-1].get("sequence_length"),
        "best_valid_loss": best,
        "best_step": None if best is None else progress.best_step,
        **test,
    }
    summary = {name: value for name, value in summary.items() if value is not None}
    workdir.write_json(folder / "summary.json", summary)
    parts = [
        config.task.name,
        configs.shown(config, "cell"),
        configs.shown(config, "estimator"),
        *([] if config.credit.name == "none" else [configs.shown(config, "credit")]),
    ]
    title = ", ".join(parts)
    plots.plot_run(records, folder / CURVE, title, experiment.about.words)
    rows = {
        "steps": f"{summary['step']:,}",
        "run time": display.duration(progress.wall_time),
        "running loss": f"{summary['running_loss']:.4f} {unit}",
        judged or "score": judged and summary.get("score"),
        "sequence length T*": summary.get("sequence_length"),
        "best validation loss": best and f"{best:.4f} {unit}, at step {progress.best_step:,}",
        "test loss": f"{test['test_loss']:.4f} {unit}, with the best parameters" if test else None,
        f"test {judged}": f"{test['test_score']:.4f}" if test and judged else None,
        "learning curve": folder / CURVE,
        "final parameters": folder / "final",
    }
    display.print_table(title, rows)
    return summary
