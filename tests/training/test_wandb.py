"""Weights & Biases in its offline mode, in which it writes what it would send to files."""

from __future__ import annotations

import json
import struct
import sys

import pytest

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import metrics, on_wandb, sweep
from tests.training.small import nested


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r'--wandb needs the package .*"kfrtrl_jax\[wandb\]"'):
        on_wandb.require()


def test_what_fails_there_is_said_once_and_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(on_wandb, "_GIVEN_UP", set())
    warnings = []
    runs = [on_wandb.Named(tmp_path, name, name, {"seed": 0}) for name in ("a", "b")]
    for (opener,) in on_wandb.connect("project", runs, warnings.append):
        sink = opener([{"step": 10, "loss": 1.0}])
        sink.write({"step": 20, "loss": 0.5})
        sink.conclude({"step": 20})
        sink.close()
    (warning,) = warnings
    assert warning.startswith("nothing more is sent to W&B by this process: ModuleNotFoundError")
    assert on_wandb.connect("", runs, pytest.fail) == [(), ()]


def test_a_run_has_the_same_id_when_it_is_continued(tmp_path):
    config = {"seed": 0, "num_steps": 10, "cell": {"name": "lstm"}}
    run = on_wandb.Named(tmp_path, "/runs/a", "a", config)
    longer = run._replace(config={**config, "num_steps": 20}, title="b", folder=tmp_path / "b")
    assert on_wandb._id_of(run) == on_wandb._id_of(longer)
    others = [run._replace(home="/runs/b"), run._replace(config={**config, "seed": 1})]
    assert len({on_wandb._id_of(other) for other in (run, *others)}) == 3


def test_a_sweep_is_sent_and_sent_once_when_it_is_extended(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason='needs pip install "kfrtrl_jax[wandb]"')
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    on_wandb.require()
    changes = {"checkpoint_every": 0, "estimator": "truncated"}
    seeds = sweep.seeds(2)
    folder = tmp_path / "some_sweep"
    for steps in (20, 30):
        base = {**nested({}), **changes, "num_steps": steps}
        sweep.run_sweep(base, seeds, folder, wandb="team/project")
    sent = {}
    for i in range(2):
        place = folder / "trials" / f"{i:03}"
        for path in sorted(place.glob("wandb/offline-run-*/*.wandb")):
            found = [Record.FromString(record) for record in read_records(path)]
            run = next(record.run for record in found if record.HasField("run"))
            history = [
                {item.key or item.nested_key[0]: json.loads(item.value_json) for item in row.item}
                for row in (r.history for r in found if r.HasField("history"))
            ]
            ends = [record.exit.exit_code for record in found if record.HasField("exit")]
            sent.setdefault(i, []).append((run, history, ends))
        first, second = sent[i]
        assert first[0].run_id == second[0].run_id
        assert (first[0].project, first[0].entity) == ("project", "team")
        assert first[0].run_group == "some_sweep"
        config = {item.key: json.loads(item.value_json) for item in first[0].config.update}
        assert config["seed"] == i
        assert config["cell"]["hidden_size"] == 4
        assert first[2] == second[2] == [0]
        log = metrics.read(place / "metrics.jsonl")
        assert [row["running_loss"] for row in first[1]] == [r["running_loss"] for r in log[:2]]
        # Offline nobody knows what was sent before: all is kept again under the same id.
        assert [row["_step"] for row in second[1]] == [10, 20, 30]
    assert sent[0][0][0].run_id != sent[1][0][0].run_id


def read_records(path):
    """The records of a file of W&B's, which is a log in LevelDB's format after a header of 7 bytes."""
    contents, block, record = path.read_bytes(), 1 << 15, b""
    at = 7
    while at + 7 <= len(contents):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", contents[at : at + 7])
        record += contents[at + 7 : at + 7 + length]
        at += 7 + length
        # 1: whole, 4: the last part.
        if kind in (1, 4):
            yield record
            record = b""
