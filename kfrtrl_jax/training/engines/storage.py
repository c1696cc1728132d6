"""Files of a sweep on a storage that machines without a common file system share, through fsspec.

A group's files are its folder and those of its trials. On the storage they are written once, under
names with a digest of their contents, and a list says which of them belong together. The list is
written last, and what it no longer names is removed after that, so that a copy that is broken off
leaves the one before. Lists are numbered: who takes a group over writes the next one, and who had it
before is refused from then on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import checkpoints, faults, workdir

GROUPS, TRIALS = "groups", "trials"
# Folders of which no file is of any use beside those of another copy.
_WHOLE = (checkpoints.FOLDER, "final", "best", "tensorboard")
# What a list may name: it may come from others.
_PATH = re.compile(rf"({GROUPS}|{TRIALS})/\d+(/[^/]+)+")
_LIST = re.compile(r"(\d{10})-(\w+)\.json")
_SECONDS_BEFORE_NEXT_TRY = (1.0, 5.0)


class StorageError(checkpoints.SaveError):
    """A storage that cannot be read or written, or a group that runs elsewhere now."""


class Listed(NamedTuple):
    """Files of a group that belong together.

    Attributes:
      number: of the list; later ones replace earlier ones.
      owner: who wrote it.
      step: of the last checkpoint, -1 if there is none.
      files: the digest of each, by its path in the sweep's folder.
    """

    number: int
    owner: str
    step: int
    files: dict[str, str]


_NOTHING = Listed(0, "", -1, {})


class Storage:
    """The storage of a sweep.

    Attributes:
      url: of its folder, "s3://bucket/sweep".
    """

    def __init__(self, url: str):
        """Finds the file system of a URL.

        Raises:
          ConfigError: if fsspec or its part for this kind of URL is not installed.
        """
        try:
            import fsspec
        except ModuleNotFoundError as error:
            raise ConfigError('storage needs the package fsspec: pip install "fsspec"') from error
        self.url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigError(f"storage {url!r}: {faults.in_words(error)}") from error
        self._root = root.rstrip("/")

    def put(self, source: Path, path: str) -> None:
        """Copies a file to the storage."""
        target = self._at(path)

        def copy() -> None:
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(source), target)

        self._trying(f"write {path}", copy)

    def write(self, path: str, text: str) -> None:
        """Writes a short file."""
        target = self._at(path)

        def write() -> None:
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(target, text.encode())

        self._trying(f"write {path}", write)

    def get(self, path: str, target: Path) -> bool:
        """Copies a file from the storage in place of another, if it is there."""
        new = target.with_name(f".{target.name}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        found = self._unless_missing(path, lambda: (self._fs.get_file(self._at(path), str(new)),))
        if found:
            os.replace(new, target)
        return bool(found)

    def read(self, path: str) -> dict[str, Any] | None:
        """A document on the storage; None if it is missing, or not as it was written."""
        contents = self._unless_missing(path, lambda: self._fs.cat_file(self._at(path)))
        try:
            return None if contents is None else workdir.parse_document(contents, path)
        except workdir.DamagedError:
            return None

    def names(self, path: str) -> list[str]:
        """What is in a folder."""
        self._fs.invalidate_cache()
        found = self._unless_missing(path, lambda: self._fs.ls(self._at(path), detail=False))
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found or ())

    def below(self, path: str) -> list[str]:
        """The paths of all files below a folder, relative to it."""
        self._fs.invalidate_cache()
        start = self._fs._strip_protocol(self._at(path)) + "/"
        found = self._unless_missing(path, lambda: self._fs.find(self._at(path)))
        return [name.removeprefix(start) for name in found or ()]

    def remove(self, path: str) -> None:
        """Removes a file, if it is there."""
        self._unless_missing(path, lambda: self._fs.rm_file(self._at(path)))

    def require(self) -> None:
        """Refuses a bucket that does not exist, as some file systems would make it.

        Raises:
          StorageError: if there is none, or if it cannot be asked for.
        """
        bucket = self._root.partition("/")[0]
        if bucket and not self._trying(f"find {bucket}", lambda: self._fs.exists(bucket)):
            raise StorageError(f"storage {self.url}: there is no {bucket!r}")

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _unless_missing(self, path: str, action: Callable[[], Any]) -> Any:
        try:
            return self._trying(f"read {path}", action, missing=True)
        except FileNotFoundError:
            return None

    def _trying(self, what: str, action: Callable[[], Any], missing: bool = False) -> Any:
        """Does something with the storage, again after a while if the network or the like fails.

        Raises:
          StorageError: if it cannot be done.
          FileNotFoundError: if asked for that.
        """
        waits = list(_SECONDS_BEFORE_NEXT_TRY)
        while True:
            try:
                return action()
            except Exception as error:
                if missing and isinstance(error, FileNotFoundError):
                    raise
                lasting = isinstance(error, (FileNotFoundError, PermissionError))
                if lasting or not waits:
                    reason = f"{type(error).__name__}: {faults.in_words(error)}"
                    raise StorageError(f"storage {self.url}: cannot {what}: {reason}") from error
            time.sleep(waits.pop(0))


class Group:
    """The files of a group on a storage, as one of the processes sees them that may run it."""

    def __init__(self, storage: Storage, name: str):
        self._storage, self._name = storage, name
        self._home, self._owner = f"{GROUPS}/{name}", uuid.uuid4().hex[:12]
        self._last = _NOTHING

    def newest(self) -> Listed:
        """The newest whole list."""
        for number, owner in sorted(self._lists(), reverse=True):
            found = self._storage.read(self._list(number, owner))
            if found is not None:
                return Listed(number, owner, found["step"], found["files"])
        return _NOTHING

    def take(self) -> Listed:
        """Takes the group over: whoever had it cannot save any more; what there is of it."""
        while True:
            newest = self.newest()
            highest = max((number for number, _ in self._lists()), default=0)
            self._write(newest._replace(number=highest + 1, owner=self._owner))
            if not self._is_taken():
                return newest

    def fetch(self, folder: Path, listed: Listed) -> None:
        """Brings files into a sweep's folder, in place of those that are there.

        What is missing or broken on the storage is noticed when it is read: all files have digests.
        """
        # What says that there is a checkpoint comes after it.
        for path in sorted(listed.files, key=lambda path: path.endswith(checkpoints.LATEST)):
            if not _PATH.fullmatch(path) or ".." in path.split("/"):
                raise StorageError(f"storage {self._storage.url}: a list names {path!r:.200}")
            local, digest = folder / path, listed.files[path]
            if not local.exists() or _digest(local) != digest:
                self._storage.get(f"{self._home}/files/{_stored(path, digest)}", local)
        _remove_others(folder, listed.files)

    def push(self, folder: Path, trials: Sequence[str]) -> None:
        """Copies the files of the group and of its trials that have changed.

        Raises:
          StorageError: if another process has taken the group over, or if they cannot be written.
        """
        self._refuse_if_taken()
        parts = [f"{GROUPS}/{self._name}", *(f"{TRIALS}/{name}" for name in trials)]
        paths = [path for part in parts for path in _files(folder / part)]
        files = {path.relative_to(folder).as_posix(): _digest(path) for path in paths}
        for path, digest in files.items():
            if self._last.files.get(path) != digest:
                self._storage.put(folder / path, f"{self._home}/files/{_stored(path, digest)}")
        step = checkpoints.last_written(folder / GROUPS / self._name)
        step = -1 if step is None else step
        self._write(Listed(self._last.number + 1, self._owner, step, files))
        if not self._is_taken():
            self._clean()

    def _clean(self) -> None:
        """Removes what the last list does not name."""
        named = {_stored(*file) for file in self._last.files.items()}
        for path in self._storage.below(f"{self._home}/files"):
            if path not in named:
                self._storage.remove(f"{self._home}/files/{path}")
        for number, owner in self._lists():
            if number < self._last.number:
                self._storage.remove(self._list(number, owner))

    def _write(self, listed: Listed) -> None:
        text = workdir.document({"step": listed.step, "files": listed.files})
        self._storage.write(self._list(listed.number, listed.owner), text)
        self._last = listed

    def _lists(self) -> list[tuple[int, str]]:
        """The number and the owner of each list."""
        found = map(_LIST.fullmatch, self._storage.names(f"{self._home}/lists"))
        return [(int(match[1]), match[2]) for match in found if match]

    def _list(self, number: int, owner: str) -> str:
        return f"{self._home}/lists/{number:010}-{owner}.json"

    def _is_taken(self) -> bool:
        """Whether another process has written a list since this one wrote its last."""
        return any(n >= self._last.number and o != self._owner for n, o in self._lists())

    def _refuse_if_taken(self) -> None:
        if self._is_taken():
            raise StorageError(
                f"storage {self._storage.url}: group {self._name} has been taken over by another "
                f"process"
            )


def _stored(path: str, digest: str) -> str:
    """The name of a file on the storage."""
    return f"{path}.{digest[:16]}"


def _files(folder: Path) -> Iterator[Path]:
    """The files of a group or a trial, without locks and what is being written."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        unfinished = parts[-1].startswith(".") and parts[-1].endswith(".tmp")
        if path.is_file() and not parts[0].startswith(".") and not unfinished:
            yield path


def _remove_others(folder: Path, paths: Collection[str]) -> None:
    """Removes what belongs to no file that was fetched, such as older checkpoints; all else stays."""
    for part in {"/".join(path.split("/")[:2]) for path in paths}:
        for whole in _WHOLE:
            # Folders come after what is in them.
            for path in sorted((folder / part / whole).rglob("*"), reverse=True):
                if path.is_dir():
                    with contextlib.suppress(OSError):
                        path.rmdir()
                elif path.relative_to(folder).as_posix() not in paths:
                    path.unlink()


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
