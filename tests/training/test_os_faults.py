"""Faults of the operating system in short; `tests.faults` does them to whole runs."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src import lru_cache
from rich.console import Console

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.programs import start
from kfrtrl_jax.training import checkpoints, command_line, display, faults, metrics, signals

ROOT = Path(__file__).parents[2]


def code_of(program, capsys, workdir=None):
    """The exit code of a program, and its only line of errors."""
    code = command_line.exit_code(program, workdir)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return code, err.rstrip("\n")


def raises(error):
    def program():
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(errno.ENOSPC, "No space left", "a\x1b[2J"), 1, "error: a\\x1b[2J: No space left"),
        (OSError("odd\nerror"), 1, "error: odd error"),
        (MemoryError("much"), 1, "error: out of memory: much"),
        (RuntimeError("can't start new thread"), 1, "error: can't start new thread"),
        (checkpoints.SaveError("not saved"), 1, "error: not saved"),
        (signals.Interrupted("stopped", signal.SIGHUP), 129, "stopped"),
        (ConfigError("wrong"), 2, "error: wrong"),
    ],
)
def test_what_ends_a_program_is_one_line_and_an_exit_code(error, code, line, capsys):
    assert code_of(raises(error), capsys) == (code, line)


def test_an_error_of_the_program_itself_is_not_hidden():
    with pytest.raises(RuntimeError, match="a bug"):
        command_line.exit_code(raises(RuntimeError("a bug")))


def test_too_large_an_array_is_one_line(capsys):
    code, line = code_of(lambda: jnp.zeros(2**48, jnp.uint8).block_until_ready(), capsys)
    assert code == 1
    assert line.startswith("error: out of memory: RESOURCE_EXHAUSTED")


@pytest.mark.parametrize("error", [RuntimeError("no GPU. (set JAX_PLATFORMS=''"), AssertionError()])
def test_a_missing_device_is_invalid_input(error, monkeypatch, capsys):
    monkeypatch.setattr(jax, "devices", raises(error))
    code, line = code_of(command_line.require_device, capsys)
    assert code == 2
    assert line.startswith("error: JAX finds no device of ")


def test_an_error_says_which_checkpoint_is_whole(tmp_path, capsys):
    full = raises(OSError(errno.ENOSPC, "No space left", "log"))
    line = "error: log: No space left; "
    assert code_of(full, capsys, tmp_path) == (1, f"{line}there is no checkpoint")
    for name in ("100", "90", "200.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert code_of(full, capsys, tmp_path) == (1, f"{line}the last whole checkpoint is of step 100")


def test_errors_of_tensorstore_are_said_as_the_system_says_them():
    error = ValueError("RESOURCE_EXHAUSTED: Error writing ... [os_error_code='28']")
    assert faults.in_words(error) == os.strerror(errno.ENOSPC)
    with pytest.raises(OSError, match="some/file"), faults.naming(Path("some/file")):
        raise OSError(errno.EIO, "")


def test_a_state_that_cannot_be_written_leaves_the_ones_before(tmp_path, monkeypatch):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(10, {"a": jnp.arange(3)}, {})

    def full(*_, **__):
        raise ValueError("INTERNAL: [os_error_code='28']")

    monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", full)
    with pytest.raises(
        checkpoints.SaveError, match=r"of step 20 cannot be written .*: No space left"
    ):
        saved.save(20, {"a": jnp.arange(3)}, {})
    assert saved.last_step() == 10
    saved.close()


def test_a_log_that_has_vanished_is_noticed_before_the_next_checkpoint(tmp_path):
    log, _ = metrics.open_log(tmp_path)
    log.sync()
    (tmp_path / metrics.METRICS).unlink()
    with pytest.raises(FileNotFoundError, match=metrics.METRICS):
        log.sync()
    with pytest.raises(FileNotFoundError, match=metrics.METRICS):
        log.write({"step": 10})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_nothing_that_is_printed_can_fail():
    full = os.open("/dev/full", os.O_WRONLY)
    read, broken = os.pipe()
    os.close(read)
    for descriptor in (full, broken):
        stream = start.tolerant(descriptor, sys.__stdout__, "replace")
        Console(file=stream).print("mean ± deviation")
        for _ in range(3):
            stream.write("x" * 100_000 + "\n")
            stream.flush()
        assert not stream.isatty()
        assert stream.fileno() == descriptor
        stream.close()
        os.close(descriptor)


def test_what_an_encoding_lacks_is_replaced(tmp_path):
    with open(tmp_path / "out", "wb") as file:
        ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        stream = start.tolerant(file.fileno(), ascii_only, "replace")
        display.print_columns("1 ± 2", ["é"], [["\ud800"]], Console(file=stream, width=40))
    assert (tmp_path / "out").read_bytes().startswith(b"1 ? 2")


def test_text_cannot_control_the_terminal():
    assert faults.printable("a\x1b]0;x\x07\u202e\x9b\n[red]é") == (
        "a\\x1b]0;x\\x07\\u202e\\x9b\\n[red]é"
    )
    assert faults.printable("a\n\x1b", keep="\n") == "a\n\\x1b"
    shown = io.StringIO()
    display.print_table("[b]t\x1b", {"k": "[red]v\x07"}, Console(file=shown, markup=False))
    assert "[b]t\\x1b" in shown.getvalue()
    assert "[red]v\\x07" in shown.getvalue()


def test_a_cached_program_is_written_whole_over_a_damaged_one(tmp_path, monkeypatch):
    monkeypatch.setattr(lru_cache.LRUCache, "put", lru_cache.LRUCache.put)
    jax_internals.write_cache_atomically()
    cache = lru_cache.LRUCache(str(tmp_path), max_size=-1)
    (tmp_path / "key-cache").write_bytes(b"dam")
    cache.put("key", b"whole")
    assert cache.get("key") == b"whole"

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="full"):
        cache.put("other", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["key-cache"]


@pytest.fixture
def _usual_signals():
    """Signals as a program in the foreground has them, also if these tests run behind nohup or `&`."""
    usual = {
        **dict.fromkeys(signals.SIGNALS, signal.SIG_DFL),
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_usual_signals")
def test_a_signal_is_noted_and_a_second_one_does_what_it_did():
    for number in signals.SIGNALS:
        before = signal.getsignal(number)
        with signals.catch_signals() as received:
            os.kill(os.getpid(), number)
            assert received == [number]
            assert signal.getsignal(number) == before
        assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.catch_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == []
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_usual_signals")
def test_only_later_signals_reach_a_program_that_watches_them():
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    before = {n: signal.signal(n, lambda *_: None) for n in signals.SIGNALS}
    outer = signal.set_wakeup_fd(write)
    try:
        with signals.catch_signals() as received:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGTERM]
        assert os.read(read, 10) == bytes([signal.SIGINT])
    finally:
        signal.set_wakeup_fd(outer)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


# A call into C that holds up handlers for minutes, as a compilation does.
BUSY = """
from kfrtrl_jax.programs import start
start.begin()
import hashlib
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.usefixtures("_usual_signals")
def test_a_busy_program_ends_at_once_and_says_so():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=ROOT, stdout=-1, stderr=-1, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=50)
    assert process.returncode == 130
    assert err == "stopped at once by SIGINT; the same command continues from what is saved\n"
    assert time.monotonic() - begun < 20


def test_closed_output_is_no_error_and_its_numbers_go_to_no_other_file():
    program = (
        "from kfrtrl_jax.programs import start\nstart.begin()\nimport os, sys\n"
        "print('±' * 10000); print('x', file=sys.stderr)\n"
        "file = open(os.devnull); sys.exit(file.fileno() > 2 and 7)"
    )
    line = f'exec {sys.executable} -c "$0" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", line, program], cwd=ROOT).returncode == 7
