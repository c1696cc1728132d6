from __future__ import annotations

import concurrent.futures
import re
import shutil
import threading
import types

import chex
import jax
import matplotlib.image
import numpy as np
import pytest

import kfrtrl_jax as kf
from kfrtrl_jax.errors import ConfigError, WorkdirError
from kfrtrl_jax.learning import evaluated_parameters
from kfrtrl_jax.training import (
    checkpoints,
    evaluation,
    generation,
    loop,
    metrics,
    plots,
    program,
    stopwatch,
    train,
    workdir,
)
from tests.training.small import TIMES, compiled_once, records, small, text, unsaved_pictures


def parameters(folder, config):
    like = jax.eval_shape(lambda: program.build(config).init(0)).learner.parameters
    return checkpoints.load_parameters(folder, like)


# An update at every step, the influence pushed once per two steps, two more steps kept; the learning
# rate decays, and the parameters are averaged.
CHANGES = {
    "segment_length": 2,
    "update_every": 1,
    "window": 4,
    "optimizer.learning_rate": None,
    "optimizer.schedule": "cosine_decay_schedule(0.01, 60)",
    "optimizer.ema_decay": 0.9,
}


@pytest.fixture(scope="module", autouse=True)
def _compiled_once():
    with compiled_once():
        yield


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    """A finished run on text: (its config, its folder, its summary)."""
    folder = tmp_path_factory.mktemp("text")
    config = small({**text(folder / "data"), **CHANGES})
    return config, folder / "run", train.train(config, folder / "run")


def test_a_run_leaves_all_that_it_should(text_run):
    config, folder, summary = text_run
    lines = metrics.read(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert all({"loss", "running_loss", "gradient_norm", *TIMES} <= set(line) for line in lines)
    assert any(name.startswith("estimator/") for name in lines[0])
    assert [line["step"] for line in lines if "valid_loss" in line] == [20, 40, 60]
    assert workdir.read_document(folder / "config.json") == config.to_dict()
    assert workdir.read_document(folder / "summary.json") == summary
    assert list((folder / "tensorboard").glob("events*"))
    assert matplotlib.image.imread(folder / "learning_curve.png").ndim == 3


def test_the_rate_of_a_chunk_is_its_own_whatever_comes_between(text_run, tmp_path, monkeypatch):
    unsaved_pictures(monkeypatch)
    now = [0.0]

    def lasting(seconds, function):
        def call(*args):
            result = jax.block_until_ready(function(*args))
            now[0] += seconds
            return result

        return call

    def at_once(function, *args):
        ended = concurrent.futures.Future()
        ended.set_result(function(*args))
        return ended

    compiled = loop.Training._compiled
    for module in (loop, stopwatch):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    waiting = types.SimpleNamespace(submit=at_once)
    monkeypatch.setattr(stopwatch, "ThreadPoolExecutor", lambda **_: waiting)
    # A device that is done when it is told; an evaluation that takes long.
    monkeypatch.setattr(loop.Training, "_compiled", lambda self: lasting(5.0, compiled(self)))
    monkeypatch.setattr(loop.Training, "evaluate", lasting(100.0, loop.Training.evaluate))
    train.train(text_run[0], tmp_path / "run")
    lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
    assert [line["steps_per_second"] for line in lines] == [2.0] * 6
    assert [line["wall_time"] for line in lines] == [5.0, 10.0, 115.0, 120.0, 225.0, 230.0]


def test_a_chunk_that_ends_while_the_next_is_handed_over_has_its_own_time(monkeypatch):
    # As on a GPU: the first chunk is handed over at once, the second only when both are done.
    now = [0.0]
    monkeypatch.setattr(stopwatch, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    done = threading.Event()
    watch = stopwatch.Stopwatch()
    first = watch.lap(0.0, types.SimpleNamespace(block_until_ready=done.wait))
    now[0] = 5.0
    done.set()
    concurrent.futures.wait([first.ended], timeout=60)
    now[0] = 12.0
    second = watch.lap(1.0, jax.numpy.zeros(3))
    assert watch.stop(first) == (5.0, 5.0)
    assert watch.stop(second) == (7.0, 12.0)


def test_the_best_parameters_are_those_of_the_lowest_validation_loss(text_run):
    config, folder, summary = text_run
    lines = [line for line in metrics.read(folder / "metrics.jsonl") if "valid_loss" in line]
    best = min(lines, key=lambda line: line["valid_loss"])
    assert summary["best_valid_loss"] == best["valid_loss"]
    assert summary["best_step"] == best["step"]
    built = program.build(config)
    loaded = parameters(folder / "best", config)
    for part, name in (("valid", "best_valid_loss"), ("test", "test_loss")):
        stream = built.about.held_out[part]
        loss, score = evaluation.means(jax.jit(built.about.evaluate)(loaded, stream))
        assert loss == score
        np.testing.assert_allclose(loss, summary[name], rtol=1e-12)


def test_losses_that_are_not_finite_are_not_left_out_of_the_table(text_run, monkeypatch, capsys):
    config, folder, summary = text_run
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    about = program.build(config).about
    training = types.SimpleNamespace(group=types.SimpleNamespace(about=about))
    for missing, shown in {
        "test_loss": r"test loss\W+not finite",
        "test_score": r"test loss\W+\d",
        "best_valid_loss": r"best validation loss\W+never finite",
    }.items():
        left = {name: value for name, value in summary.items() if name != missing}
        train._show(config, folder, left, training)
        assert re.search(shown, capsys.readouterr().out)


def test_what_a_run_leaves_are_the_averages_of_its_parameters(text_run):
    config, folder, _ = text_run
    like = jax.eval_shape(lambda: program.build(config).init(0))
    saved = checkpoints.Checkpoints(folder)
    tree = {"state": like, "best": like.learner.parameters}
    learner = saved.restore(tree, pytest.fail).state["state"].learner
    saved.close()
    average = evaluated_parameters(learner)
    chex.assert_trees_all_equal(parameters(folder / "final", config), average)
    weights = [x["readout"]["weights"] for x in (average, learner.parameters)]
    assert 0 < np.abs(weights[0] - weights[1]).max() < 0.1
    _, (_, schedule), watched, averaged = learner.optimizer_state
    assert schedule.count == watched.count == averaged.count == 60
    # Of the last of 60 updates.
    rate = metrics.read(folder / "metrics.jsonl")[-1]["learning_rate"]
    np.testing.assert_allclose(rate, 0.005 * (1 + np.cos(np.pi * 59 / 60)), rtol=1e-9)


def test_a_finished_run_gives_its_network_back_and_writes_text(text_run):
    config, folder, summary = text_run
    network = kf.load(folder)
    assert network.config.to_dict() == config.to_dict()
    stream = network.task.held_out["test"]
    totals = evaluation.totals(*network[1:3], network.task, network.parameters, stream, lanes=32)
    np.testing.assert_allclose(evaluation.means(totals).loss, summary["test_loss"], rtol=1e-12)
    prompt = network.task.symbols[:2]
    written = generation.generate(network, 7, prompt=prompt)
    assert written.startswith(prompt)
    assert len(written) == 9
    assert set(written) <= set(network.task.symbols)
    assert written != generation.generate(network, 7, prompt=prompt, seed=1)
    greedy = {
        generation.generate(network, 5, temperature=temperature, seed=seed)
        for temperature in (1e-6, 1e-300, 1e-315)
        for seed in (0, 1)
    }
    assert len(greedy) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda folder: kf.load(folder / "none"),
            "is no workdir of a run: there is no such folder",
        ),
        (lambda folder: kf.load(folder / "best"), "is no workdir of a run: it has no config.json"),
        (lambda folder: kf.load(folder, "worst"), 'which must be "best" or "final"'),
        (
            lambda folder: generation.generate(kf.load(folder), 3, prompt="€"),
            "has never seen '€' of the prompt",
        ),
        *(
            (
                lambda folder, t=t: generation.generate(kf.load(folder), 3, temperature=t),
                f"temperature must be {allowed}, got {t}",
            )
            for t, allowed in (
                (0, "more than 0"),
                (float("nan"), "more than 0"),
                (float("inf"), "finite"),
            )
        ),
        (
            lambda folder: generation.generate(kf.load(folder), 3, seed=2**32),
            rf"seed must be in \[0, {2**32 - 1}\], got {2**32}",
        ),
    ],
)
def test_what_cannot_be_loaded_or_written_is_one_line(call, message, text_run):
    with pytest.raises((ConfigError, WorkdirError), match=message) as error:
        call(text_run[1])
    assert "\n" not in str(error.value)


def test_a_run_in_two_parts_is_the_run_in_one(text_run, tmp_path, monkeypatch):
    unsaved_pictures(monkeypatch)
    config, folder, _ = text_run
    shorter = small({**text(folder.parent / "data"), **CHANGES, "num_steps": 20})
    train.train(shorter, tmp_path / "run")
    longer = train.train(config, tmp_path / "run")
    assert records(tmp_path / "run") == records(folder)
    chex.assert_trees_all_equal(
        parameters(tmp_path / "run" / "final", config), parameters(folder / "final", config)
    )
    lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
    times = [line["wall_time"] for line in lines]
    assert times == sorted(times)
    assert longer["step"] == 60


def test_a_broken_checkpoint_costs_the_steps_since_the_one_before(
    text_run, tmp_path, capsys, monkeypatch
):
    unsaved_pictures(monkeypatch)
    config, folder, summary = text_run
    shutil.copytree(folder, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "60").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    again = train.train(config, tmp_path / "run")
    shown = capsys.readouterr().out
    assert "warning: the checkpoint of step 60 cannot be used" in shown
    assert f"continuing {tmp_path / 'run'} at step 40" in shown
    assert (tmp_path / "run" / "set_aside" / "60").is_dir()
    assert records(tmp_path / "run") == records(folder)
    for name in ("running_loss", "best_valid_loss", "best_step", "test_loss"):
        assert again[name] == summary[name]


def test_a_finished_run_has_nothing_left_to_do(text_run, monkeypatch):
    unsaved_pictures(monkeypatch)
    config, folder, summary = text_run
    before = (folder / "metrics.jsonl").read_text()
    # As if it had been begun with a version of the library without this field.
    stored = workdir.read_document(folder / workdir.CONFIG)
    del stored["task"]["reset_every"]
    workdir.write_document(folder / workdir.CONFIG, stored)
    assert train.train(config, folder) == summary
    assert workdir.read_document(folder / workdir.CONFIG) == config.to_dict()
    assert (folder / "metrics.jsonl").read_text() == before


def test_a_folder_of_another_config_is_refused(text_run):
    _, folder, _ = text_run
    other = small({**text(folder.parent / "data"), **CHANGES, "seed": 1})
    with pytest.raises(WorkdirError, match=r"made by another config: seed \(0 there, 1 now\);"):
        train.train(other, folder)


def test_numbers_that_are_not_finite_stop_the_run_and_leave_the_last_good_checkpoint(tmp_path):
    changes = {
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 1e307,
        "estimator.name": "truncated",
        "log_every": 1,
        "checkpoint_every": 1,
    }
    config = small(changes)
    with pytest.raises(metrics.NonFiniteError) as raised:
        train.train(config, tmp_path)
    message = str(raised.value)
    assert "\n" not in message
    step = int(message.split(" at step ")[1].split(";")[0])
    assert f"(the last good checkpoint is of step {step - 1})" in message
    assert (tmp_path / "checkpoints" / str(step - 1)).is_dir()
    assert records(tmp_path)[-1]["step"] == step - 1
