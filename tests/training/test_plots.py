from __future__ import annotations

import io

import matplotlib.image
from rich.console import Console

from kfrtrl_jax.training import display, plots

WORDS = display.Words("bits/char", "accuracy")


def records(scale=1.0):
    return [
        {
            "step": step,
            "loss": scale / step,
            "score": step / 200,
            "running_loss": 2 * scale / step,
            "sequence_length": step // 20,
            "steps_per_second": 100.0,
            **({"valid_loss": scale / step} if step % 50 == 0 else {}),
        }
        for step in range(10, 110, 10)
    ]


def is_picture(path) -> bool:
    height, width, _ = matplotlib.image.imread(path).shape
    return height > 300 and width > 600


def test_a_run_is_drawn(tmp_path):
    plots.plot_run(records(), tmp_path / "run.png", "title", WORDS)
    assert is_picture(tmp_path / "run.png")
    bare = [{"step": 1, "loss": 1.0, "running_loss": 1.0}]
    plots.plot_run(bare, tmp_path / "bare.png")
    assert is_picture(tmp_path / "bare.png")


def test_many_runs_are_drawn(tmp_path):
    runs = {f"run {i}": records(i + 1) for i in range(12)}
    fields = ("running_loss", "sequence_length", "valid_loss")
    plots.plot_groups({name: [run] for name, run in runs.items()}, tmp_path / "runs.png", fields)
    assert is_picture(tmp_path / "runs.png")


def test_a_panel_has_no_more_curves_than_can_be_told_apart():
    assert len(set(plots.COLOURS)) == len(set(plots.MARKERS)) == plots.MOST_CURVES
    for count, sizes in ((1, [1]), (8, [8]), (9, [5, 4]), (27, [7, 7, 7, 6])):
        parts = plots._parts([f"run {i}" for i in range(count)])
        assert [len(part) for part in parts] == sizes
        assert [name for part in parts for name in part] == [f"run {i}" for i in range(count)]


def test_a_response_of_many_methods_is_drawn(tmp_path):
    lines = {f"method {i}": {1e-3: [1.0, 2.0], 1e-2: [1.5 + i]} for i in range(9)}
    plots.plot_response(lines, tmp_path / "response.png", "x", "y")
    height, width, _ = matplotlib.image.imread(tmp_path / "response.png").shape
    assert width > 2 * height


def test_a_response_is_drawn(tmp_path):
    lines = {"a": {1e-3: [1.0, 2.0], 1e-2: [1.5]}, "b": {1e-3: [3.0]}}
    plots.plot_response(lines, tmp_path / "response.png", "x", "y")
    assert is_picture(tmp_path / "response.png")


def test_plain_lines_where_there_is_no_terminal():
    file = io.StringIO()
    show = display.make_display(100, 0, WORDS, Console(file=file, force_terminal=False))
    for record in records():
        show.update(record)
    show.close()
    lines = file.getvalue().splitlines()
    assert (
        lines[0]
        == "step 10/100  loss 0.200 bits/char  accuracy 0.050  T* 0  100 steps/s  0:01 left"
    )
    assert lines[-1].startswith("step 100/100")
    assert "\x1b" not in file.getvalue()


def test_a_bar_on_a_terminal():
    file = io.StringIO()
    show = display.make_display(100, 0, WORDS, Console(file=file, force_terminal=True, width=100))
    for record in records():
        show.update(record)
    show.note("a line")
    show.close()
    assert "a line" in file.getvalue()
    assert "step 100/100" in file.getvalue()
