"""The display of a run: a progress bar on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kfrtrl_jax.training import faults
from kfrtrl_jax.training.metrics import Record
from kfrtrl_jax.training.segments import Words

SECONDS_BETWEEN_LINES = 10.0


class Display(NamedTuple):
    """A running display.

    Attributes:
      update: record -> None, at every log.
      note: text -> None, a line that stays, shown with control characters escaped.
      close: () -> None.
    """

    update: Callable[[Record], None]
    note: Callable[[str], None]
    close: Callable[[], None]


# Shows nothing.
SILENT = Display(lambda record: None, lambda text: None, lambda: None)
NAMELESS = Words()
_LABELS = {
    "running_loss": "running loss",
    "sequence_length": "sequence length T*",
    "valid_loss": "validation loss",
    "best_valid_loss": "lowest validation loss",
    "valid_score": "validation score",
}


def label_of(field: str, words: Words = NAMELESS) -> str:
    """The name of a record's field in words, with the unit of losses and the name of scores."""
    name = _LABELS.get(field, field.replace("_", " "))
    if words.score and field.endswith("score"):
        return name.replace("score", words.score)
    return f"{name} ({words.unit})" if words.unit and field.endswith("loss") else name


def common_words(results: Sequence[Mapping[str, Any]]) -> Words:
    """The unit of losses and the name of scores in runs' summaries, where they agree."""
    units, scores = ({result.get(key) for result in results} for key in ("loss_unit", "score_name"))
    return Words(
        str(units.pop() or "") if len(units) == 1 else "",
        scores.pop() if len(scores) == 1 else None,
    )


def make_display(
    num_steps: int, start: int, words: Words = NAMELESS, console: Console | None = None
) -> Display:
    """A display of a run from step `start` to `num_steps`."""
    console = console or Console()
    if console.is_terminal:
        return _bar(num_steps, start, words, console)
    return _lines(num_steps, words, console)


def status(record: Record, words: Words = NAMELESS) -> str:
    """The main numbers of a record."""
    parts = [f"loss {record['running_loss']:.3f} {words.unit}".rstrip()]
    if words.score and record.get("score") is not None:
        parts.append(f"{words.score} {record['score']:.3f}")
    if "sequence_length" in record:
        parts.append(f"T* {record['sequence_length']:g}")
    if "valid_loss" in record:
        loss = record["valid_loss"]
        parts.append(
            "valid not finite" if loss is None else f"valid {loss:.3f} {words.unit}".rstrip()
        )
    return "  ".join([*parts, f"{record['steps_per_second']:.0f} steps/s"])


def print_table(title: str, rows: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints a table of names and values, without those that are None."""
    table = Table(title=faults.printable(title), show_header=False, title_justify="left")
    for name, value in rows.items():
        if value is not None:
            table.add_row(faults.printable(name), faults.printable(str(value)))
    (console or _plain()).print(table)


def print_columns(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[str]],
    console: Console | None = None,
) -> None:
    """Prints a table with a header."""
    table = Table(title=faults.printable(title), title_justify="left")
    for column in columns:
        table.add_column(faults.printable(column))
    for row in rows:
        table.add_row(*map(faults.printable, row))
    (console or _plain()).print(table)


def say(text: str) -> None:
    """Prints a line, with control characters escaped."""
    print(faults.printable(text), flush=True)


@contextlib.contextmanager
def during(show: Display, what: str) -> Iterator[None]:
    """Notes that something begins that may take long, and then how many seconds it took."""
    show.note(f"{what} ...")
    begun = time.monotonic()
    yield
    show.note(f"{what}: {time.monotonic() - begun:.1f} s")


def duration(seconds: float) -> str:
    """A duration such as 1:02:03 or 4:05."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _plain() -> Console:
    """A console that prints brackets and colons, as in "stack([m:cell])", as they are."""
    return Console(markup=False, emoji=False)


def _bar(num_steps: int, start: int, words: Words, console: Console) -> Display:
    progress = Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[status]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=console,
        speed_estimate_period=60,
    )
    task = progress.add_task("", total=num_steps, completed=start, status="compiling")
    progress.start()
    return Display(
        update=lambda record: progress.update(
            task, completed=record["step"], status=faults.printable(status(record, words))
        ),
        note=lambda text: console.print(faults.printable(text), markup=False, highlight=False),
        close=progress.stop,
    )


def _lines(num_steps: int, words: Words, console: Console) -> Display:
    last = -SECONDS_BETWEEN_LINES

    def note(text: str) -> None:
        print(faults.printable(text), file=console.file, flush=True)

    def update(record: Record) -> None:
        nonlocal last
        now, step = time.monotonic(), record["step"]
        due = now - last >= SECONDS_BETWEEN_LINES
        if due or "valid_loss" in record or step == num_steps:
            last = now
            left = duration((num_steps - step) / record["steps_per_second"])
            note(f"step {step}/{num_steps}  {status(record, words)}  {left} left")

    return Display(update, note, lambda: None)
