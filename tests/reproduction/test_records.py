"""Studies, and what is collected of their sweeps."""

import json
import shlex

import jax
import pytest

from kfrtrl_jax._src.compositions.notation import Written
from kfrtrl_jax.errors import ConfigError, WorkdirError
from kfrtrl_jax.studies.reproduction import records, runs, study, times
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import metrics, sweep, workdir
from tests.reproduction import invented

TINY = """
from ml_collections import ConfigDict
METHODS = {
    "TBPTT(1)": {"estimator": "truncated"},
    "KF-RTRL": {"estimator": "kf_rtrl"},
}
STEPS = {"smoke": 8, "cpu": 16, "full": 24}
def get_config():
    return ConfigDict({
        "num_steps": 8, "log_every": 2, "segment_length": 1,
        "cell": {"name": "vanilla", "hidden_size": 8},
        "estimator": {"name": "kf_rtrl"},
        "task": {"name": "copy", "batch_size": 2},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
    })
def get_methods():
    return METHODS
def get_sweep(scale):
    return [
        {**own, "num_steps": STEPS[scale], "seed": seed}
        for own in METHODS.values()
        for seed in range(2)
    ]
"""


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = invented.record("copy", invented.copy_trials())
    records.write(tmp_path / "new" / "copy.json", record)
    assert records.read_study(tmp_path / "new" / "copy.json") == record
    # A line per trial, for the history of the file.
    lines = (tmp_path / "new" / "copy.json").read_text().splitlines()
    assert sum('"method"' in line for line in lines) == len(record["trials"])


def test_the_method_of_a_trial_is_the_most_specific_one():
    copy = study.load("copy", "smoke")
    short = {"estimator": "truncated", "segment_length": 1, "seed": 3}
    assert copy.method_of(short) == "TBPTT(1)"
    assert copy.method_of({**short, "window": 25}) == "TBPTT(25)"
    assert copy.method_of({**short, "segment_length": 25, "update_every": 25}).endswith("25 steps")


@pytest.mark.parametrize("name", study.NAMES)
def test_every_trial_is_of_its_method_and_a_larger_scale_continues_it(name):
    small, large = (study.load(name, scale) for scale in ("smoke", "full"))
    assert {small.method_of(trial) for trial in small.trials} <= set(large.methods)
    for trial in small.trials:
        (longer,) = (
            other for other in large.trials if {**other, "num_steps": trial["num_steps"]} == trial
        )
        assert longer["num_steps"] > trial["num_steps"]


def test_some_methods_of_a_study_can_be_run_first():
    whole = study.load("copy", "cpu")
    chosen = whole.first(["SnAp-1", "UORO"])
    methods = [chosen.method_of(trial) for trial in chosen.trials]
    assert methods[:7] == ["SnAp-1"] * 3 + ["UORO"] * 3 + ["KF-RTRL"]
    assert len(chosen.trials) == len(whole.trials)
    with pytest.raises(ConfigError, match=r"--first: the study copy has KF-RTRL; .*, but no 'KF'"):
        whole.first(["KF"])


def test_some_methods_of_a_study_can_be_run_alone():
    whole = study.load("copy", "cpu")
    chosen = whole.only(["UORO", "SnAp-1"])
    assert [chosen.method_of(trial) for trial in chosen.trials] == ["UORO"] * 3 + ["SnAp-1"] * 3
    assert whole.only([]) == whole
    with pytest.raises(ConfigError, match=r"--only: the study copy has KF-RTRL; .*, but no 'KF'"):
        whole.only(["KF"])


def test_some_tasks_and_seeds_of_a_study_can_be_run_alone():
    whole = study.load("long", "cpu")
    task = "copy_fixed(batch_size=16, symbols=3, delay=20)"
    chosen = whole.only(["UORO, blocks of 8"], [task], [1, 2])
    assert [(trial["task"], trial["seed"]) for trial in chosen.trials] == [(task, 1), (task, 2)]
    with pytest.raises(
        ConfigError, match=r"--only_task: the study long has memory_chain.*, but no"
    ):
        whole.only([], ["copy_fixed"])
    with pytest.raises(ConfigError, match="--only_seed: the study long has 0; 1; 2, but no 7"):
        whole.only([], [], [7])
    copy = study.load("copy", "cpu")
    with pytest.raises(ConfigError, match="--only_task: the study copy has one task alone, but no"):
        copy.only([], ["copy"])
    with pytest.raises(ConfigError, match="the study copy has no trial of AVG of 16 and 2"):
        copy.only(["AVG of 16"], [], [2])


def test_unknown_studies_and_scales_are_refused():
    with pytest.raises(ConfigError, match="--study must be one of"):
        study.load("chess", "smoke")
    with pytest.raises(ConfigError, match="--scale must be one of"):
        study.load("copy", "huge")


@pytest.mark.parametrize("name", study.NAMES)
def test_the_command_of_a_run_makes_the_config_of_its_trial(name):
    chosen = study.load(name, "cpu")
    for trial in chosen.trials[:: 4 if len(chosen.trials) < 1000 else 16]:
        own = {key: value for key, value in trial.items() if key != "num_steps"}
        words = shlex.split(runs.command(chosen.path, own, trial["num_steps"]))
        assert words[:2] == ["kfrtrl", "train"]
        assert words[2] == f"--config={chosen.path}"
        given = dict(word.removeprefix("--config.").split("=", 1) for word in words[3:-1])
        written = {path: Written(text) for path, text in given.items()}
        expected = configs.resolve(chosen.config, trial).to_dict()
        assert configs.resolve(chosen.config, written).to_dict() == expected


def test_curves_are_thinned_to_round_steps_that_runs_of_all_lengths_share():
    log = [{"step": 2000 * i, "running_loss": 1.0, "valid_loss": None} for i in range(1, 502)]
    log[6]["valid_loss"] = 0.5
    steps = records._curve(log, 100)["step"]
    # Every tenth of the second half, every fifth of the quarter before, and so on; and the last.
    late, middle = range(520_000, 1_000_001, 20_000), range(260_000, 512_001, 10_000)
    assert [step for step in steps if step > 256_000] == [*middle, *late, 1_002_000]
    every_second, each = range(132_000, 256_001, 4_000), range(2_000, 128_001, 2_000)
    assert steps[: len(each) + len(every_second)] == [*each, *every_second]
    assert len(records._curve(log[:100], 100)["step"]) == 100
    assert records._curve(log[:30], 100)["step"] == [2000 * i for i in range(1, 31)]
    # With the evaluation at 14,000 and the steps of tables.
    early, late = records._curve(log[:40], 5)["step"], records._curve(log[:80], 5)["step"]
    assert early == [2_000 * i for i in (1, 2, 3, 4, 5, 6, 7, 8, 10, 15, 20, 30, 40)]
    assert [step for step in late if step <= 64_000] == [s for s in early if s <= 64_000]
    assert records._curve([], 100) == {"step": []}


def test_what_a_sweep_has_come_to_is_collected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "NAMES", ("tiny",))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "reproduce_tiny.py").write_text(TINY)
    tiny, folder, common = study.load("tiny", "cpu"), tmp_path / "run", {"cell.hidden_size": 4}
    # Of KF-RTRL alone.
    sweep.run_sweep(tiny.config, tiny.trials[2:], folder, common)
    record = records.collect("tiny", folder, common)
    assert json.loads(json.dumps(record)) == record
    assert record["config"] == "configs/reproduce_tiny.py"
    for seed, trial in enumerate(record["trials"]):
        log = metrics.read(folder / "trials" / f"{seed:03d}" / metrics.METRICS)
        assert (trial["method"], trial["cell"], trial["task"]) == ("KF-RTRL", "vanilla", "copy")
        assert (trial["status"], trial["steps"], trial["planned_steps"]) == ("done", 16, 16)
        assert trial["overrides"] == {"cell.hidden_size": 4, "estimator": "kf_rtrl", "seed": seed}
        assert trial["curve"]["step"] == [line["step"] for line in log] == list(range(2, 17, 2))
        assert trial["curve"]["running_loss"] == pytest.approx(
            [line["running_loss"] for line in log], rel=1e-4
        )
        assert trial["lanes"] == 2
        assert trial["ms_per_step"] > 0 < trial["bytes_per_lane"]
    assert len(record["trials"]) == 2
    assert "times" not in record
    assert [made["device"] for made in record["made_with"]] == [jax.devices()[0].device_kind]
    times.write(folder, {"KF-RTRL": 0.25})
    timed = records.collect("tiny", folder, common)
    assert (timed["times"], timed["timed_on"]) == ({"KF-RTRL": 0.25}, times.machine())

    with pytest.raises(
        WorkdirError, match="has no trial of the study tiny: it is of another sweep"
    ):
        records.collect("tiny", folder, {"cell.hidden_size": 5})
    with pytest.raises(
        WorkdirError, match="is of no sweep; give the workdir of one of the study tiny"
    ):
        records.collect("tiny", folder / "trials" / "000")

    # The first trial is run on, the second diverged before its first line.
    first, second = (folder / "trials" / name for name in ("000", "001"))
    (first / workdir.SUMMARY).unlink()
    (second / metrics.METRICS).unlink()
    workdir.write_document(second / workdir.SUMMARY, {"diverged_at": 1, "problem": "too much"})
    running, diverged = records.collect("tiny", folder, common)["trials"]
    assert running["status"] == "running"
    assert (diverged["status"], diverged["steps"], diverged["curve"]) == (
        "diverged",
        0,
        {"step": []},
    )
    assert diverged["problem"] == "too much"
    found = runs.of_record({"study": "tiny", "config": "c", "trials": [diverged]})
    assert runs.status_of(found) == "diverged: 0 steps; full scale: 24 steps of 2 seeds"


def test_a_study_takes_no_other_config_and_writes_to_a_file(tmp_path):
    own = study.load("copy", "smoke")
    own.require_config("reproduce_copy")
    with pytest.raises(ConfigError, match=r"study copy is configs/reproduce_copy\.py, got text"):
        own.require_config("text")
    with pytest.raises(ConfigError, match=r"--records=.* is a folder; give the name of a file"):
        records.require_file(tmp_path)
    records.require_file(tmp_path / "records.json")


def test_common_overrides_of_a_section_that_a_trial_replaces_are_not_recorded():
    common = {"task.batch_size": 4, "cell.hidden_size": 8}
    assert sweep.together(common, {"task": "adding", "seed": 1}) == {
        "cell.hidden_size": 8,
        "task": "adding",
        "seed": 1,
    }


def test_parts_of_a_study_come_together_in_one_record():
    methods = study.load("copy", "cpu").methods

    def trial(method, seed, steps, **fields):
        own = {**methods[method], "seed": seed}
        return invented.trial(method, seed, steps, overrides=own, **fields)

    here = {
        **invented.record("copy", [trial("UORO", 0, 30_000), trial("UORO", 1, 20_000)]),
        "times": {"UORO": 0.5},
        "timed_on": "here",
    }
    there = invented.record(
        "copy", [trial("UORO", 0, 20_000), trial("UORO", 1, 30_000), trial("KF-RTRL", 0, 10_000)]
    )
    there["made_with"] = [invented.made_with("accelerator")]
    expected = [("KF-RTRL", 0, 10_000), ("UORO", 0, 30_000), ("UORO", 1, 30_000)]
    for merged in (records.merge(there, here), records.merge(here, there)):
        # In the order of the study, each with what it was made with, and the times of whoever has some.
        assert [
            (t["method"], t["overrides"]["seed"], t["steps"]) for t in merged["trials"]
        ] == expected
        devices = [merged["made_with"][t["made_with"]]["device"] for t in merged["trials"]]
        assert devices == ["accelerator", "cpu", "accelerator"]
        assert (merged["times"], merged["timed_on"]) == ({"UORO": 0.5}, "here")
        assert records.merge(merged, merged) == merged
    # Methods that took turns are not taken apart by a part of them that was timed again.
    more = {**there, "times": {"UORO": 0.7, "KF-RTRL": 0.9}, "timed_on": "there"}
    for merged in (records.merge(more, here), records.merge(here, more)):
        assert (merged["times"], merged["timed_on"]) == (more["times"], "there")
    # One that diverged is known to its end, however few steps it took.
    diverged = trial("UORO", 0, 5_000, status="diverged", planned_steps=30_000)
    running = trial("UORO", 0, 20_000, status="running", planned_steps=30_000)
    longer = trial("UORO", 0, 40_000, status="running", planned_steps=60_000)
    for one, other, kept in ((running, diverged, diverged), (longer, diverged, longer)):
        found = [invented.record("copy", [own]) for own in (one, other)]
        for merged in (records.merge(*found), records.merge(*found[::-1])):
            assert [t["steps"] for t in merged["trials"]] == [kept["steps"]]
    # What is read again counts, and what nothing was made with any more is left out.
    again = invented.record("copy", [trial("UORO", 0, 30_000, ms_per_step=7.0)])
    again["made_with"] = [invented.made_with("another")]
    merged = records.merge(again, {**here, "trials": here["trials"][:1]})
    assert [t["ms_per_step"] for t in merged["trials"]] == [7.0]
    assert [made["device"] for made in merged["made_with"]] == ["another"]
    with pytest.raises(ConfigError, match="a record of copy cannot take trials of the study ptb"):
        records.merge({**here, "study": "ptb"}, there)
    for field, value, said in (
        ("data", {"copy": "another"}, "what copy read is not the same"),
        ("settings", {"precision": "float64"}, "one record is in float64, the other in float32"),
    ):
        other = {**here, "made_with": [{**invented.made_with(), field: value}]}
        mine = {**here, "made_with": [{**invented.made_with(), "data": {"copy": "one"}}]}
        with pytest.raises(ConfigError, match=said):
            records.merge(other, mine)


def test_the_time_of_a_method_that_was_timed_alone_counts():
    made = {**invented.record("copy", [invented.trial("KF-RTRL", 0, 20_000)]), "config": "c"}
    (as_logged,), (alone,), (left_out,) = (
        runs.of_record(record)
        for record in (made, {**made, "times": {"KF-RTRL": 0.5}}, {**made, "times": {"UORO": 0.5}})
    )
    assert as_logged.ms_per_step == 2.0
    assert as_logged.series["wall_time"] == {10_000: 20.0, 20_000: 40.0}
    assert alone.ms_per_step == 0.5
    assert alone.series["wall_time"] == {10_000: 5.0, 20_000: 10.0}
    # Times of a log are not those of a method alone.
    assert (left_out.ms_per_step, left_out.series["wall_time"]) == (0.0, {})


def test_a_file_that_is_no_record_is_refused_with_what_it_lacks(tmp_path):
    path = tmp_path / "copy.json"
    path.write_text('{"study": ')
    with pytest.raises(
        ConfigError, match=r"copy.json is not a record of a study: it is not JSON, "
    ):
        records.read_study(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match=r"it has no study, config, .*; `kfrtrl reproduce"):
        records.read_study(path)
    older = [{k: v for k, v in trial.items() if k != "cell"} for trial in invented.copy_trials()]
    records.write(path, invented.record("copy", older))
    with pytest.raises(ConfigError, match="trial 0 of a study by this version: it has no cell;"):
        records.read_study(path)
    path.write_text('{"rows": []}')
    with pytest.raises(ConfigError, match=r"record of noise .* it has no config, made_with;"):
        records.read_noise(path)
