"""Runs that start from the parameters of another one."""

import shutil

import chex
import jax
import jax.numpy as jnp
import pytest

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import checkpoints, made_with, program, train, workdir
from kfrtrl_jax.training.group import make_group
from tests.helpers.interpreter import evaluated
from tests.training.small import small, unsaved_pictures


@pytest.fixture(scope="module")
def given():
    """The parameters of a network of the small config."""
    like = jax.eval_shape(lambda: program.build(small()).init(0)).learner.parameters
    return jax.tree.map(lambda x: 0.1 * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), like)


@pytest.fixture
def source(given, tmp_path):
    """The folder of a run that has left them."""
    folder = tmp_path / "source"
    checkpoints.save_parameters(folder / "final", given)
    return folder


def test_parameters_are_those_given_and_all_else_starts_anew(source, given):
    changes = {"init_from": str(source), "optimizer.ema_decay": 0.9}
    runs = [small({**changes, "seed": seed}) for seed in (1, 2)]
    learner = evaluated(make_group(runs).init).runs.learner
    for parameters in (learner.parameters, learner.optimizer_state[-1].average):
        for i in range(2):
            chex.assert_trees_all_equal(jax.tree.map(lambda x, i=i: x[i], parameters), given)
    assert not learner.optimizer_state[-1].count.any()
    assert (learner.key[0] != learner.key[1]).all()


def test_the_best_parameters_are_taken_unless_others_are_named(source, given):
    best = jax.tree.map(lambda x: x + 1, given)
    checkpoints.save_parameters(source / "best", best)
    for path, expected in ((source, best), (source / "final", given), (source / "best", best)):
        group = make_group([small({"init_from": str(path)})])
        state = evaluated(group.init)
        chex.assert_trees_all_equal(state.learner.parameters, expected)


def test_a_run_notes_what_it_started_from_and_no_longer_needs_it(source, tmp_path, monkeypatch):
    unsaved_pictures(monkeypatch)
    folder = tmp_path / "run"
    config = small({"init_from": str(source), "num_steps": 10, "checkpoint_every": 10})
    summary = train.train(config, folder)
    made = workdir.read_document(folder / made_with.FILE)
    assert made["data"] == {f"init_from {source}": program.build(config).about.init_from}
    shutil.rmtree(source)
    assert train.train(config, folder) == summary
    assert workdir.read_document(folder / made_with.FILE)["data"] == made["data"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cell.hidden_size": 5},
            r"SOURCE/final has cell.weights as \[9, 4\], and this network as \[10, 5\]",
        ),
        ({"cell.name": "lru"}, "SOURCE/final has no cell.imaginary, which this network has"),
        (
            {"readout.feedback": "random"},
            "SOURCE/final has no readout.feedback, which this network",
        ),
        ({"init_from": "SOURCE/none"}, "SOURCE/none is no folder; give the workdir of a run"),
        ({"init_from": "SOURCE/.."}, "SOURCE/.. holds no finished run; give the workdir of a run"),
        ({"damaged": True}, "no parameters can be read from SOURCE/final: .* not those that were"),
    ],
)
def test_what_does_not_fit_is_one_line_before_the_run_begins(source, tmp_path, changes, message):
    path = changes.get("init_from", "SOURCE").replace("SOURCE", str(source))
    if changes.pop("damaged", False):
        file = max((source / "final").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
        file.write_bytes(file.read_bytes()[:-1])
    config = small({**changes, "init_from": path})
    with pytest.raises(ConfigError, match=message.replace("SOURCE", str(source))) as raised:
        train.train(config, tmp_path / "run")
    assert str(raised.value).startswith("config.init_from: ")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
