"""Configs as users write them, and as they should not: through the entry of the command line."""

from __future__ import annotations

import pathlib
from collections import Counter

import numpy as np
import pytest

import configs.copy
from kfrtrl_jax.training.config import resolve
from tests.faults import entry
from tests.faults.configs import HEAD, run

ROOT = pathlib.Path(configs.__file__).parents[1]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def started(tmp_path, body, *arguments):
    """What a config file does whose get_config changes that of configs/copy.py, and its config."""
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    source = (
        f"{HEAD}import configs.copy\ndef get_config():\n    config = configs.copy.get_config()\n"
    )
    file = tmp_path / "case.py"
    file.write_text(f"{source}{lines}\n    return config\n")
    begun = []
    workdir = tmp_path / "run"
    outcome = entry.start(
        [f"--config={file}", f"--workdir={workdir}", *arguments],
        lambda config, *_: begun.append(config),
    )
    assert not workdir.exists()
    return outcome, begun


ACCEPTED = [
    ("config.lock()", ["--config.seed=3"], "seed", 3),
    ("config.lock()", ["--config.estimator=ok(rank=3)"], "estimator.rank", 3),
    ("config = FrozenConfigDict(config)", ["--config.cell.hidden_size=4"], "cell.hidden_size", 4),
    ("config.task = ConfigDict({'name': 'copy', 'batch_size': np.int64(3)})", [], "task.batch_size", 3),
    ("config.optimizer = {'name': 'sgd', 'learning_rate': np.float32(0.5)}", [],
     "optimizer.learning_rate", 0.5),
    ("config.cell = ConfigDict({'name': 'lru', 'hidden_size': np.array(4)})", [],
     "cell.hidden_size", 4),
    ("config.optimizer = ConfigDict({'name': 'sgd', 'learning_rate': 1})",
     ["--config.optimizer.learning_rate=0.001"], "optimizer.learning_rate", 0.001),
    ("config = config.to_dict()\n"
     "config['cell'] = {'name': 'stack', 'cells': {1: 'gru(hidden_size=3)', 0: 'lru(hidden_size=2)'}}",
     [], "cell.cells.1.hidden_size", 3),
    ("config.eval_every = config_dict.placeholder(int)", [], "eval_every", 0),
    ("config.eval_every = config_dict.placeholder(int)", ["--config.eval_every=200"],
     "eval_every", 200),
    ("config.eval_every = config_dict.placeholder(int, required=True)",
     ["--config.eval_every=200"], "eval_every", 200),
    ("size = FieldReference(4)\nconfig.cell.hidden_size = 2 * size", [], "cell.hidden_size", 8),
    ("print('said')", [], "seed", 0),
]  # fmt: skip


@pytest.mark.parametrize(("body", "arguments", "path", "value"), ACCEPTED)
def test_configs_in_the_ways_of_ml_collections_are_accepted(tmp_path, body, arguments, path, value):
    outcome, [config] = started(tmp_path, body, *arguments)
    assert (outcome.code, outcome.error) == (0, "")
    for name in path.split("."):
        config = config[name]
    assert (type(config), config) == (type(value), value)


REFUSED = [
    ("import sys\nsys.exit(0)", [], "config file FILE fails: SystemExit: 0"),
    ("raise BaseException('why')", [], "config file FILE fails: BaseException: why"),
    ("config = None", [], "get_config() of FILE must return a ConfigDict, got None"),
    ("config = dict", [], "get_config() of FILE must return a ConfigDict, got <class 'dict'>"),
    ("config = Odd()", [], "config cannot be read: RuntimeError: no items"),
    ("config = config.to_dict()\nconfig['cell'] = config", [], "config.cell.cell.cell.cell.cell."),
    ("config = config.to_dict()\nconfig['estimator'] = nested(500)", [], "config.estimator.estim"),
    ("items = [0] * 1000\nconfig = config.to_dict()\nconfig['cell'] = [[items] * 1000] * 1000", [],
     "config.cell.0."),
    ("config = config.to_dict()\nconfig['se\\x1b[31med'] = 1", [],
     "config has no field 'se\\x1b[31med'"),
    ("config = config.to_dict()\nconfig[(1, 2)] = 1", [],
     "config has the key (1, 2), which is no name"),
    ("config = config.to_dict()\nconfig['a' * 10**6] = 1", [], "config has no field 'aaaa"),
    ("del config.seed\nconfig.seed = float('nan')", [], "config.seed must be an integer, got nan"),
    ("config.num_steps = config_dict.placeholder(int, required=True)", [],
     "config.num_steps is missing (an integer)"),
    ("config.cell.hidden_size = 4 * config_dict.placeholder(int)", [],
     "config.cell.hidden_size is missing (an integer)"),
    ("del config.seed\nconfig.seed = np.zeros(3)", [], "config.seed must be an integer, got [0.0, 0.0"),
    ("del config.seed\nconfig.seed = Fails()", [],
     "config.seed must be an integer, got a value of type Fails that cannot be shown"),
    ("config = config.to_dict()\nconfig['task']['name'] = Fails()", [],
     "config.task.name: there is no task a value of type Fails that cannot be shown; one of copy, "),
    ("config = config.to_dict()\nconfig['immediate'] = Fails()", [],
     "config.immediate cannot be a value of type Fails that cannot be shown; one of exact, estimated"),
    ("", ["--config.=5"], "config has no field ''"),
    ("", ["--config..a=1"], "config has no field ''"),
    ("", ["--config.a b=1"], "config.a b is not a field of a config; one of cell, "),
    ("", ["--config.cell[0]=1"], "config.cell[0] is not a field of a config; did you mean cell?"),
    ("", ["--config.seed=" + "9" * 30], "config.seed must be in [0, 4294967295], got 99999"),
    ("", ["--config.\x1b[31m=1"], "config has no field '\\x1b[31m'"),
    ("", ["--noconfig.seed=3"], "--noconfig.seed means False and takes no value, got '3'"),
    ("", ["--workdir="], "--workdir is empty; for example --workdir=runs/first"),
    ("", ["--config="], "--config is empty; for example --config=copy"),
    ("", ["--config=configs"], "--config=configs is a folder; give a file in it"),
    ("", ["--config=" + "x" * 5000], "there is no config file 'xxxxx"),
    ("", ["--config.cell=stack([[]] * 999999999)"], "config.cell cannot be read: expected how often"),
    ("", ["--config.optimizer.learning_rate=" + "9" * 400], "config.optimizer.learning_rate must be"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "arguments", "message"), REFUSED)
def test_what_is_no_config_is_refused_in_one_line(tmp_path, body, arguments, message):
    outcome, begun = started(tmp_path, body, *arguments)
    assert not begun
    assert outcome.code == 2
    assert outcome.error.startswith("error: " + message.replace("FILE", str(tmp_path / "case.py")))
    assert outcome.error.count("\n") == 1
    assert outcome.error.strip().isprintable()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"a\x00b", "fails: SyntaxError: source code string cannot contain null bytes"),
        (b"x = '\xff'", "fails: SyntaxError: "),
        (b"def get_config(a):\n    return {}\n", "missing 1 required positional argument: 'a'"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, source, message):
    (tmp_path / "case.py").write_bytes(source)
    outcome = entry.start([f"--config={tmp_path / 'case.py'}"])
    assert outcome.code == 2
    assert message in outcome.error
    assert outcome.error.count("\n") == 1


def test_numbers_on_the_command_line_are_text_where_a_text_is_meant(tmp_path):
    outcome, [config] = started(
        tmp_path, "", "--config.task.name=text", "--config.task.data_dir=123"
    )
    assert outcome.code == 0
    assert config.task.data_dir == "123"


def test_a_byte_order_mark_before_a_config_file_is_skipped(tmp_path):
    source = (ROOT / "configs" / "copy.py").read_bytes()
    (tmp_path / "case.py").write_bytes(b"\xef\xbb\xbf" + source)
    assert entry.start([f"--config={tmp_path / 'case.py'}"]).code == 0


def test_overrides_may_be_numpys_numbers():
    config = configs.copy.get_config()
    assert type(resolve(config, {"seed": np.int64(3)}).seed) is int


def test_random_configs_are_refused_in_one_line_or_resolve():
    counts: Counter[str] = Counter()
    for own, kind, why in run(range(150), 0, every=0, seconds=60, builds=0):
        assert kind != "failed", f"python -m tests.faults.configs --only={own}: {why}"
        counts[kind] += 1
    assert min(counts["refused"], counts["accepted"]) > 10


def test_a_dry_run_shows_what_a_run_would_be_and_makes_nothing(tmp_path):
    outcome, begun = started(
        tmp_path,
        "config.cell = ConfigDict({'name': 'lstm', 'hidden_size': 4, 'sparsity': 0.5})",
        "--dry_run",
        "--config.estimator=average(ok(rank=2), copies=3)",
    )
    assert (outcome.code, outcome.error, begun) == (0, "", [])
    shown = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert shown["run"] == (
        "num_steps=30000, log_every=200, segment_length=8, update_every=1, checkpoint_every=5000"
    )
    assert shown["estimator"] == "average(ok(rank=2), copies=3)"
    assert shown["state"] == "8 variables in each of 16 lanes"
    assert "[9 x 16]" in shown["sites"]
    assert "of its weights can be non-zero" in shown["sites"]
    assert shown["parameters"] == "164, 144 of them in the cell"
    assert "for the estimator; " in shown["memory"]
    assert "not compiled" in shown["program"]
