"""One run in several processes, one on each host: how they meet, who writes, and what all agree on.

Every process runs the same program on its own devices, and JAX makes one computation of them. The first
process alone has the workdir; the others work in an empty folder of their own, deleted in the end. What
one of them alone knows - what is in the workdir, a signal, the time, an error - is exchanged, so that
all do the same next. With one process all of this does nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from kfrtrl_jax.errors import ConfigError, DataError, UnsupportedCellError, WorkdirError
from kfrtrl_jax.training import workdir
from kfrtrl_jax.training.checkpoints import (
    Checkpoints,
    Restored,
    SaveError,
    from_arrays,
    to_arrays,
    to_data,
)

# How long processes wait for one another at the start: schedulers do not start all at once.
SECONDS_TO_MEET = 300.0
# How long at the end, for those that have failed alone.
_SECONDS_TO_PART = 10
_SECONDS_BETWEEN_CALLS = 0.1
_SECONDS_TO_SPEAK = 5.0
AUTO = "auto"
# What is said of it by the library that connects processors (Gloo) and by that which watches over all.
_SIGNS_OF_LOSS = ("Connection closed by peer", "Gloo", "coordination service")

# The errors that keep their kind on the way to other processes.
_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (ConfigError, DataError, WorkdirError, UnsupportedCellError, SaveError, OSError)
}

_T = TypeVar("_T")


def join(coordinator: str, count: int | None, number: int | None) -> None:
    """Joins the processes of a run; before anything else is computed.

    Args:
      coordinator: HOST:PORT of the first process, any free port of its host; "auto" for what JAX finds
        out from Slurm, Open MPI or a TPU pod.
      count: how many processes there are; None with "auto".
      number: of this one, from 0; None with "auto".

    Raises:
      ConfigError: if the arguments do not fit together, or if the processes do not find one another.
    """
    # JAX's own handler of SIGTERM would take the place of those of `signals`.
    jax.config.update("jax_enable_preemption_service", False)
    if coordinator == AUTO:
        if count is not None or number is not None:
            raise ConfigError("--coordinator=auto goes without --processes and --process")
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=_SECONDS_TO_PART)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"--coordinator=auto finds no scheduler that JAX knows ({error}); give "
                f"--coordinator=HOST:PORT, --processes and --process"
            ) from error
        return
    if count is None or number is None or not 0 <= number < count:
        raise ConfigError(
            f"--coordinator=HOST:PORT needs --processes=N and --process from 0 to N - 1, got "
            f"{count} and {number}"
        )
    meet(coordinator, count, number, SECONDS_TO_MEET)
    jax.distributed.initialize(
        coordinator,
        count,
        number,
        cluster_detection_method="deactivate",
        shutdown_timeout_seconds=_SECONDS_TO_PART,
    )


def meet(coordinator: str, count: int, number: int, seconds: float) -> None:
    """Returns in all processes when all are there.

    JAX ends a process with a stack of calls if another one is missing; this says what is wrong.

    Args:
      coordinator: HOST:PORT.
      count: how many processes there are.
      number: of this one.
      seconds: how long to wait.

    Raises:
      ConfigError: if one does not come in time, or if they disagree on their number.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or int(port) >= 2**16:
        raise ConfigError(f"--coordinator must be HOST:PORT or auto, got {coordinator!r}")
    deadline = time.monotonic() + seconds
    if number == 0:
        _receive(int(port), count, seconds, deadline)
    else:
        _call(host.strip("[]"), int(port), count, number, seconds, deadline)


def _receive(port: int, count: int, seconds: float, deadline: float) -> None:
    """Waits for a call of each other process, and answers all of them."""
    calls: dict[int, Any] = {}
    problem = ""
    with contextlib.ExitStack() as stack:
        try:
            family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
            server = stack.enter_context(
                socket.create_server(
                    ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6
                )
            )
        except OSError as error:
            raise ConfigError(
                f"process 0 cannot listen on port {port}: {error.strerror}; choose another "
                f"--coordinator"
            ) from error
        while len(calls) < count - 1 and not problem:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = ", ".join(str(i) for i in range(1, count) if i not in calls)
                problem = (
                    f"of {count} processes these have not come within {seconds:g} s: {missing}"
                )
                break
            # Whatever else finds the port does not hold this up.
            connection.settimeout(_SECONDS_TO_SPEAK)
            line = connection.makefile("rw")
            try:
                number, of = (int(word) for word in line.readline(100).split())
            except (OSError, ValueError):
                continue
            problem = _disagreement(number, of, count, calls)
            calls[number if number not in calls else -1] = line
        for line in calls.values():
            with contextlib.suppress(OSError):
                print(problem, file=line, flush=True)
    if problem:
        raise ConfigError(problem)


def _disagreement(number: int, of: int, count: int, calls: dict[int, Any]) -> str:
    if of != count:
        return f"process 0 was started with --processes={count}, process {number} with {of}"
    if number in calls:
        return f"two processes were started with --process={number}"
    return ""


def _call(host: str, port: int, count: int, number: int, seconds: float, deadline: float) -> None:
    """Calls the first process until it answers."""
    while True:
        left = deadline - time.monotonic()
        try:
            with socket.create_connection((host, port), timeout=max(left, 0.01)) as connection:
                # It answers when all are there, or when its own time is up.
                connection.settimeout(seconds + _SECONDS_TO_PART)
                line = connection.makefile("rw")
                print(number, count, file=line, flush=True)
                answer = line.readline()
        except socket.gaierror as error:
            raise ConfigError(f"--coordinator: {host} is no host: {error.strerror}") from error
        except OSError:
            answer = ""
        if answer:
            break
        if left <= 0:
            raise ConfigError(
                f"no process 0 has answered at {host}:{port} within {seconds:g} s; is it running, "
                f"and is --coordinator its address?"
            )
        time.sleep(_SECONDS_BETWEEN_CALLS)
    if answer.strip():
        raise ConfigError(answer.strip())


def part(code: int = 0) -> None:
    """Leaves the other processes, if there are any.

    Args:
      code: the exit code. 0 waits for the others, as all succeed together. Another one ends this
        process, and with it the others that do not end by themselves: JAX aborts them.
    """
    if code and jax.distributed.is_initialized():
        # Those that fail for the same reason say so first. JAX aborts all when the first one ends.
        time.sleep(2.0 if is_first() else 1.0)
        os._exit(code)
    jax.distributed.shutdown()


def is_lost(error: Exception) -> bool:
    """Whether an error says that another process has ended."""
    return jax.distributed.is_initialized() and any(sign in str(error) for sign in _SIGNS_OF_LOSS)


def is_first() -> bool:
    """Whether this process has the workdir."""
    return jax.process_index() == 0


@contextlib.contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """The workdir in the first process; in others a folder that nobody reads."""
    if is_first():
        yield folder
        return
    with tempfile.TemporaryDirectory() as other:
        yield Path(other)


def in_all(function: Callable[[], _T]) -> _T:
    """What a function returns in this process; if it fails in one process, it fails in all."""
    if jax.process_count() == 1:
        return function()
    value, error = _tried(function)
    for other in _exchanged(_in_words(error)):
        _raise(error, other)
    return value


def in_first(function: Callable[[], _T]) -> _T:
    """What a function returns in the first process, where alone it is called; plain values."""
    if jax.process_count() == 1:
        return function()
    value, error = _tried(function) if is_first() else (None, None)
    value, other = json.loads(_exchanged(json.dumps([value, _in_words(error)]))[0])
    _raise(error, other)
    return value


def agreed(signals: Sequence[int]) -> Sequence[int]:
    """The signals that any of the processes has received so far."""
    if jax.process_count() == 1:
        return signals
    received = _exchanged(json.dumps(list(signals)))
    return [number for own in received for number in json.loads(own)]


def require_same(values: Mapping[str, Any]) -> None:
    """Refuses processes that were started with something different.

    Args:
      values: a nested dict of plain values.

    Raises:
      ConfigError: with the fields that differ.
    """
    if jax.process_count() == 1:
        return
    first, *others = map(json.loads, _exchanged(workdir.as_text(values)))
    for number, other in enumerate(others, 1):
        if found := workdir.differences(first, other):
            found = found.replace(" there", " in process 0").replace(
                " now", f" in process {number}"
            )
            raise ConfigError(f"the processes of a run must be started alike: {found}")


def checkpoints_of(folder: Path) -> Checkpoints | FirstCheckpoints:
    """The checkpoints of a workdir, for this process or for all."""
    if jax.process_count() == 1:
        return Checkpoints(folder)
    return FirstCheckpoints(in_all(lambda: Checkpoints(folder) if is_first() else None))


class FirstCheckpoints:
    """The checkpoints of a run in several processes: the first one reads and writes them for all."""

    def __init__(self, own: Checkpoints | None):
        """Wraps those of the first process; None in the others."""
        self._own = own

    def save(self, step: int, state: Any, info: Mapping[str, Any]) -> None:
        """As `Checkpoints.save`."""
        arrays = to_arrays(state)
        in_first(lambda: self._first.save(step, arrays, info))

    def restore(self, like: Any, warn: Callable[[str], None]) -> Restored | None:
        """As `Checkpoints.restore`."""
        arrays: dict[str, np.ndarray] = {}

        def read() -> Any:
            restored = self._first.restore(like, warn)
            if restored is None:
                return None
            arrays.update(to_arrays(restored.state))
            return [restored.step, restored.info]

        found = in_first(read)
        if found is None:
            return None
        # What others have in these places does not count, only its shape and type.
        blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(to_data, like))
        arrays = {name: _from_first(arrays.get(name, x)) for name, x in blank.items()}
        return Restored(found[0], from_arrays(arrays, like), found[1])

    def last_step(self) -> int | None:
        """As `Checkpoints.last_step`."""
        return in_first(lambda: self._first.last_step())

    def close(self) -> None:
        """As `Checkpoints.close`."""
        if self._own is not None:
            self._own.close()

    @property
    def _first(self) -> Checkpoints:
        assert self._own is not None
        return self._own


def _tried(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, error


def _in_words(error: Exception | None) -> str:
    """The kind of an error and what it says; "" for none."""
    if error is None:
        return ""
    kind = next((name for name, known in _ERRORS.items() if isinstance(error, known)), "")
    return f"{kind}:{error if kind else repr(error)}"


def _raise(own: Exception | None, other: str) -> None:
    """Raises this process's error, or else that of another, if there is one."""
    if own is not None:
        raise own
    kind, _, message = other.partition(":")
    if other:
        raise _ERRORS.get(kind, RuntimeError)(message)


def _exchanged(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    data = np.frombuffer(text.encode(), np.uint8)
    # Of one type, even if the processes differ in jax_enable_x64.
    lengths = multihost_utils.process_allgather(np.asarray(len(data), np.uint32)).reshape(-1)
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths)]


def _from_first(x: np.ndarray) -> np.ndarray:
    """The first process's array, bit for bit; of the others only its shape and type count."""
    bits = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    shared = np.asarray(multihost_utils.broadcast_one_to_all(bits))
    return shared.view(x.dtype).reshape(x.shape)
