"""One run, from a config to a trained network."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from kfrtrl_jax.training import (
    checkpoints,
    display,
    events,
    loop,
    made_with,
    memory,
    metrics,
    on_wandb,
    processes,
    workdir,
)
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training.group import Group, devices_of_lanes, make_group
from kfrtrl_jax.training.program import build

CURVE = "learning_curve.png"


def train(config: Any, folder: Path, wandb: str = "") -> dict[str, Any]:
    """Runs an experiment, or continues it from its last checkpoint.

    Args:
      config: from `config.resolve`.
      folder: the workdir. It receives config.json, made_with.json, metrics.jsonl, checkpoints/,
        tensorboard/, a picture of the learning curve, summary.json, final/ and, if there is held-out
        data, best/.
      wandb: the W&B project that is told of the run; "" for none.

    Returns:
      The summary.

    Raises:
      ConfigError, DataError, WorkdirError, UnsupportedCellError: before anything is computed.
      NonFiniteError: if the loss, the gradient or the state stops being finite.
      SaveError: if the run cannot be saved.
      Interrupted: on a signal; the run is saved.
    """
    begun = processes.in_first(lambda: checkpoints.was_written(folder))
    group = processes.in_all(lambda: _group(config, begun))
    data = made_with.data_of(config, group.about)
    processes.require_same({"config": config.to_dict(), "made_with": made_with.numbers(data)})
    first = processes.is_first()
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(processes.own_folder(folder))

        def claimed() -> list[str]:
            stack.enter_context(workdir.hold(own))
            loop.require_ahead(f"the run in {own}", checkpoints.last_written(own), config.num_steps)
            notes = workdir.claim(own, config.to_dict(), loop.FREE_FIELDS, configs.completed)
            return notes + made_with.bind(own, data)

        notes = processes.in_all(claimed)
        saved = stack.enter_context(contextlib.closing(processes.checkpoints_of(own)))
        show = display.SILENT
        if first:
            show = display.make_display(config.num_steps, 0, group.about.words)
        with contextlib.closing(show):
            for note in notes:
                show.note(f"note: {note}")
            place = loop.Place(saved, folder, show)
            home = folder.absolute()
            named = on_wandb.Named(folder, str(home), home.name, config.to_dict())
            told = wandb if first else ""
            (sent,) = processes.in_all(
                lambda: on_wandb.connect(told, [named], lambda line: show.note(f"warning: {line}"))
            )
            others = (events.tensorboard(own / events.FOLDER), *sent)
            member = loop.Member(own, others=others)
            training = loop.Training(group, [member], config, place)
            (summary,) = training.run()
        if member.diverged_at is not None:
            where = checkpoints.last_good(saved.last_step())
            raise metrics.NonFiniteError(f"{member.problem} ({where})", member.diverged_at)
        if first:
            _show(config, folder, summary, training)
    return summary


def _group(config: Any, begun: bool) -> Group:
    """The run as a program, if it fits in memory; one that has begun has its own parameters."""
    if begun and config.init_from:
        config = configs.resolve(config, {"init_from": ""})
    experiment = build(config, devices=devices_of_lanes(config))
    memory.check(experiment, config)
    return make_group([config], experiment)


def _show(config: Any, folder: Path, summary: dict[str, Any], training: loop.Training) -> None:
    """Draws the picture and prints the table."""
    # matplotlib takes a second to import, which a run should not begin with.
    from kfrtrl_jax.training import plots

    words = training.group.about.words
    parts = [
        config.task.name,
        configs.shown(config, "cell"),
        configs.shown(config, "estimator"),
        *([] if config.credit.name == "none" else [configs.shown(config, "credit")]),
    ]
    title = ", ".join(parts)
    plots.plot_run(metrics.read(folder / metrics.METRICS), folder / CURVE, title, words)
    unit, judged = words.unit, words.score
    best, held_out = summary.get("best_valid_loss"), training.group.about.held_out
    validated = None if best is None else f"{best:.4f} {unit}, at step {summary['best_step']:,}"
    if best is None and "valid" in held_out:
        validated = "never finite"

    def tested(name: str, text: str) -> str | None:
        if best is None or "test" not in held_out:
            return None
        return text.format(summary[name]) if name in summary else "not finite"

    rows = {
        "steps": f"{summary['step']:,}",
        "run time": display.duration(summary["wall_time"]),
        "running loss": f"{summary['running_loss']:.4f} {unit}",
        judged or "score": judged and summary.get("score"),
        "sequence length T*": summary.get("sequence_length"),
        "segments skipped": summary.get("skipped") or None,
        "best validation loss": validated,
        "test loss": tested("test_loss", f"{{:.4f}} {unit}, with the best parameters"),
        f"test {judged}": judged and tested("test_score", "{:.4f}"),
        "learning curve": folder / CURVE,
        "final parameters": folder / "final",
    }
    display.print_table(title, rows)
