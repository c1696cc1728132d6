"""The engines of clusters, on this machine, and the storage of machines that share no file system."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import shutil
import signal
import threading
import time
from importlib.util import find_spec

import psutil
import pytest

from kfrtrl_jax.errors import ConfigError, DataError, WorkdirError
from kfrtrl_jax.training import loop, made_with, sweep, trials, workdir
from kfrtrl_jax.training.engines import jobs, remote, storage
from kfrtrl_jax.training.engines.local import make_local
from tests.helpers import stand_in_slurm
from tests.training.small import compiled_once, nested, records, small, timeless

# Imported here, as submitit takes handlers of logging away that a test has made.
needs_ray = pytest.mark.skipif(not find_spec("ray"), reason="needs the extra [ray]")
needs_submitit = pytest.mark.skipif(not find_spec("submitit"), reason="needs the extra [slurm]")
if find_spec("ray"):
    import ray

    from kfrtrl_jax.training.engines import on_ray
if find_spec("submitit"):
    import submitit

    from kfrtrl_jax.training.engines import on_slurm

BASE = nested({"num_steps": 40, "estimator": "truncated"})
SEEDS = sweep.seeds(2)


class KilledError(BaseException):
    pass


def outcome(results, folder):
    logs = [records(folder / "trials" / f"{i:03}") for i in range(len(results))]
    return [timeless(result) for result in results], logs


def watched(monkeypatch, kill_at=None):
    """Collects the steps at which chunks begin; ends the process, as far as files can tell, at one."""
    seen, advance = [], loop.Training._advance

    def counted(training, chunk):
        if training.step == kill_at:
            raise KilledError
        seen.append(training.step)
        advance(training, chunk)

    monkeypatch.setattr(loop.Training, "_advance", counted)
    return seen


@pytest.fixture
def _compiled_once():
    with compiled_once():
        yield


@pytest.mark.usefixtures("_compiled_once")
def test_a_killed_sweep_goes_on_from_its_storage_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.outcomes, "report", lambda *_: None)
    expected = outcome(sweep.run_sweep(BASE, SEEDS, tmp_path / "whole"), tmp_path / "whole")

    def stored(_):
        return remote.with_storage(f"file://{tmp_path}/storage", make_local())

    with monkeypatch.context() as patched:
        watched(patched, kill_at=30)
        with pytest.raises(KilledError):
            sweep.run_sweep(BASE, SEEDS, tmp_path / "lost", make_engine=stored)
    seen, other = watched(monkeypatch), tmp_path / "other"
    assert outcome(sweep.run_sweep(BASE, SEEDS, other, make_engine=stored), other) == expected
    assert seen == [20, 30]
    assert not list(other.rglob("set_aside"))
    assert {path.name for path in (other / "groups/000/checkpoints").iterdir()} == {"20", "40"}
    # Nothing is left to do, for an engine without the storage either.
    assert outcome(sweep.run_sweep(BASE, SEEDS, other), other) == expected
    assert seen == [20, 30]
    with pytest.raises(WorkdirError, match=r"its trial 000 is another one \(seed \(0 there, 1 now"):
        sweep.run_sweep(BASE, [{"seed": 1}], tmp_path / "new", make_engine=stored)


def write_group(folder, step):
    """Files like those of a group that has come to a step, with its last two checkpoints."""
    home, trial = folder / "groups/000", folder / "trials/000"
    shutil.rmtree(home / f"checkpoints/{step - 2}", ignore_errors=True)
    for path, contents in {
        home / f"checkpoints/{step}/state/arrays": f"arrays of step {step}",
        trial / "metrics.jsonl": "a line of the log\n" * step,
        trial / "config.json": "{}",
        trial / ".lock": "1234",
        trial / ".summary.json.tmp": "{",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents)
    workdir.write_document(home / "checkpoint.json", {"step": step})


def contents_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fetched(kept, folder):
    """What another machine finds on a storage."""
    group = storage.Group(kept, "000")
    group.fetch(folder, group.take())
    return group, contents_of(folder)


def test_a_copy_that_is_broken_off_leaves_the_one_before(tmp_path, monkeypatch):
    """At whatever operation the process ends, with half of a file written."""
    here, left = tmp_path / "here", math.inf
    fs = type(storage.Storage("memory://")._fs)

    def limit(name, half):
        whole = getattr(fs, name)

        def operation(self, *args):
            nonlocal left
            left -= 1
            if left < 0:
                half(self, *args)
                raise KilledError
            whole(self, *args)

        monkeypatch.setattr(fs, name, operation)

    limit("put_file", lambda fs, path, target: fs.open(target, "wb", data=b"arr"))
    limit("pipe_file", lambda fs, path, text: fs.open(path, "wb", data=text[:40]))
    limit("rm_file", lambda fs, path: None)
    found = set()
    for count in itertools.count():
        kept = storage.Storage(f"memory://{tmp_path}/{count}")
        shutil.rmtree(here, ignore_errors=True)
        group = storage.Group(kept, "000")
        write_group(here, 1)
        write_group(here, 2)
        group.push(here, ["000"])
        states = [contents_of(here)]
        write_group(here, 3)
        states.append(contents_of(here))
        left = count
        with contextlib.suppress(KilledError):
            group.push(here, ["000"])
        done, left = left >= 0, math.inf
        group, there = fetched(kept, tmp_path / f"there{count}")
        found.add(states.index(there))
        # What was left over goes with the next copy.
        group.push(tmp_path / f"there{count}", ["000"])
        assert len(kept.below("groups/000/files")) == len(there)
        if done:
            break
    assert found == {0, 1}
    assert count > 5
    assert there == states[1]


def test_who_had_a_group_before_cannot_save_any_more(tmp_path):
    kept, here = storage.Storage(f"memory://{tmp_path}"), tmp_path / "here"
    write_group(here, 1)
    before = storage.Group(kept, "000")
    before.push(here, ["000"])
    now, there = fetched(kept, tmp_path / "there")
    assert there == contents_of(here)
    write_group(here, 2)
    with pytest.raises(storage.StorageError, match="group 000 has been taken over by another"):
        before.push(here, ["000"])
    now.push(tmp_path / "there", ["000"])
    assert fetched(kept, tmp_path / "again")[1] == there


def test_what_is_fetched_replaces_a_checkpoint_and_leaves_all_else(tmp_path):
    kept, here, there = (
        storage.Storage(f"memory://{tmp_path}"),
        tmp_path / "here",
        tmp_path / "there",
    )
    write_group(here, 3)
    storage.Group(kept, "000").push(here, ["000"])
    write_group(there, 1)
    for name in ("notes.txt", "set_aside/metrics.jsonl"):
        (there / "trials/000" / name).parent.mkdir(exist_ok=True)
        (there / "trials/000" / name).write_text("kept")
    workdir.write_document(there / "config.json", {})
    remote.gather(kept, there)
    found = contents_of(there)
    assert found.pop("config.json")
    assert found.pop("trials/000/notes.txt") == found.pop("trials/000/set_aside/metrics.jsonl")
    assert found == contents_of(here)
    assert [path.name for path in (there / "groups/000/checkpoints").iterdir()] == ["3"]
    # A folder that is ahead of the storage, as another engine went on in it, stays as it is.
    write_group(there, 4)
    ahead = contents_of(there)
    remote.gather(kept, there)
    assert contents_of(there) == ahead


@pytest.mark.parametrize("path", ["trials/000/../../../x", "/etc/x", "sweep.json", "trials/x/y"])
def test_a_list_names_nothing_outside_its_folders(path, tmp_path):
    kept = storage.Storage(f"memory://{tmp_path}")
    text = workdir.document({"step": 1, "files": {path: "0" * 64}})
    kept.write("groups/000/lists/0000000001-a.json", text)
    (tmp_path / "here").mkdir()
    workdir.write_document(tmp_path / "here/config.json", {})
    with pytest.raises(storage.StorageError, match="a list names"):
        remote.gather(kept, tmp_path / "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere://bucket/sweep", "storage 'nowhere://bucket/sweep': Protocol not known: nowhere"),
        ("s3://bucket/sweep", "storage 's3://bucket/sweep': Install s3fs to access S3"),
    ],
)
def test_a_storage_that_fsspec_does_not_know_is_refused(text, message):
    if text.startswith("s3") and find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(ConfigError, match=message):
        remote.with_storage(text, make_local())


def test_a_storage_that_fails_is_tried_again_and_then_named(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_SECONDS_BEFORE_NEXT_TRY", (0.0, 0.0))
    (tmp_path / "file").write_text("in the way")
    kept = storage.Storage(f"file://{tmp_path}/file/sweep")
    with pytest.raises(storage.StorageError, match=r"cannot write config\.json: .*Not a directory"):
        kept.write("config.json", "{}")
    kept, failures = storage.Storage(f"memory://{tmp_path}"), [OSError("reset"), OSError("reset")]
    write = type(kept._fs).pipe_file

    def failing(self, *args):
        if failures:
            raise failures.pop()
        write(self, *args)

    monkeypatch.setattr(type(kept._fs), "pipe_file", failing)
    kept.write("config.json", workdir.document({"a": 1}))
    assert kept.read("config.json") == {"a": 1}


def test_other_data_on_another_machine_are_refused(tmp_path):
    run = small({"num_steps": 20}).to_dict()
    work = trials.Work(tmp_path / "groups/000", ("000",))
    job = jobs.Job(work, (run,), ({},), tmp_path, "title", made_with.settings(), data="another")
    with pytest.raises(DataError, match="is not what it read when the sweep began"):
        jobs.run(job)


LONG = {"num_steps": 20000, "checkpoint_every": 0, "estimator": "truncated"}


def two_jobs(folder):
    """Two groups of a sweep, of which the second has lost its checkpoints."""
    folder.mkdir(exist_ok=True)
    configs = {f"{i:03}": small({**LONG, "cell.hidden_size": 2 + i}) for i in range(2)}
    made = []
    for name in ("config.json", "made_with.json"):
        workdir.write_document(folder / name, {})
    for name in configs:
        work = trials.Work(folder / "groups" / name, (name,))
        trials.begin(work, folder / "trials", configs)
        run = configs[name].to_dict()
        made.append(jobs.Job(work, (run,), ({},), folder, f"group {name}", made_with.settings()))
    workdir.write_document(made[1].work.folder / "checkpoint.json", {"step": 20})
    return made


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The results and the log of the first group in this process; others compile as this one does."""
    job = two_jobs(folder := tmp_path_factory.mktemp("alone"))[0]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield [timeless(result) for result in jobs.run(job)], records(folder / "trials/000")


def when_logged(folder, act):
    """Does something in a thread when the first group has logged steps."""

    def watch():
        while not (path := folder / "trials/000/metrics.jsonl").exists() or not path.read_text():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def submitted(folder):
    """The processes of the jobs of a sweep."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command[1:4] == ["-u", "-m", "submitit.core._submit"] and str(folder) in command[4]:
                found.append(process)
    return found


def check_outcomes(found, alone, folder):
    """One group has failed, first, in a line; the other has the numbers of this process."""
    (bad, error), (good, results) = found
    assert (bad.work.names, good.work.names) == (("001",), ("000",))
    assert re.search(r"the checkpoints of .*001 are gone", str(error))
    assert "Traceback" not in str(error)
    assert "\n" not in str(error)
    assert ([timeless(result) for result in results], records(folder / "trials/000")) == alone


@needs_submitit
@pytest.mark.parametrize("minutes", [1, 600], ids=["out of time", "preempted"])
def test_a_slurm_job_that_is_preempted_saves_its_state_and_goes_on(minutes, alone, tmp_path):
    when_logged(tmp_path, lambda: [job.send_signal(signal.SIGUSR2) for job in submitted(tmp_path)])
    engine = on_slurm.make_slurm(minutes=minutes, cluster="local")
    check_outcomes(engine.run(two_jobs(tmp_path)), alone, tmp_path)
    logs = "".join(path.read_text() for path in (tmp_path / "slurm").glob("*.out"))
    (step,) = re.findall(r"continuing \S+ at step (\d+)", logs)
    assert 0 < int(step) < LONG["num_steps"]
    # No step was run twice.
    assert not (tmp_path / "trials/000/set_aside").exists()


@needs_submitit
def test_a_slurm_array_is_submitted_with_its_options_and_requeued(alone, tmp_path, monkeypatch):
    """By commands that stand in for Slurm's."""
    stand_in_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    here = tmp_path / "here"
    when_logged(here, lambda: [job.send_signal(signal.SIGUSR2) for job in submitted(here)])
    options = {"partition": "cpu", "minutes": 30, "cpus": 2, "at_once": 2, "setup": ["export A=1"]}
    check_outcomes(on_slurm.make_slurm(**options).run(two_jobs(here)), alone, here)
    script = (tmp_path / "bin/script").read_text()
    for line in (
        "#SBATCH --array=0-1%2",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --partition=cpu",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@90",
        "#SBATCH --time=30",
        "export A=1",
    ):
        assert f"{line}\n" in script
    assert not (here / "trials/000/set_aside").exists()
    logs = "".join(path.read_text() for path in (here / "slurm").glob("*.out"))
    assert len(re.findall(r"continuing \S+ at step", logs)) == 1


@needs_submitit
def test_a_slurm_job_that_is_lost_is_submitted_again(alone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 0)
    when_logged(tmp_path, lambda: [process.kill() for process in submitted(tmp_path)])
    ((_, results),) = on_slurm.make_slurm(cluster="local").run(two_jobs(tmp_path)[:1])
    assert ([timeless(result) for result in results], records(tmp_path / "trials/000")) == alone
    assert "note: group 000: lost (FINISHED), submitted again" in capsys.readouterr().out


@needs_ray
def test_a_ray_task_whose_worker_is_killed_is_started_again(alone, tmp_path, monkeypatch):
    """On a cluster of one node, with a storage; `tests.faults.clusters` has two, and kills a node."""

    def kill():
        for process in psutil.Process().children(recursive=True):
            if process.name().startswith("ray::_run"):
                process.kill()

    # Otherwise Ray makes a token, and leaves it in the user's home.
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    here, url = tmp_path / "here", f"file://{tmp_path}/storage"
    engine = on_ray.make_ray(storage=url)
    try:
        found = []
        for each in engine.run(two_jobs(here)):
            found.append(each)
            if len(found) == 1:
                kill()
        check_outcomes(found, alone, here)
    finally:
        ray.shutdown()
