"""Character-level language modelling over text files."""

from __future__ import annotations

import math
import os
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from kfrtrl_jax._src.base import Array, Batch, Key, Task
from kfrtrl_jax._src.errors import DataError
from kfrtrl_jax._src.losses import cross_entropy
from kfrtrl_jax._src.shapes import require_positive
from kfrtrl_jax._src.tasks.common import digest, tokens

DATA_VARIABLE = "KFRTRL_DATA_DIR"
PENN_TREEBANK_FILES = {
    "train": "ptb.train.txt",
    "valid": "ptb.valid.txt",
    "test": "ptb.test.txt",
}
# The split of a text that comes in one file.
_SHARES = {"train": 0.9, "valid": 0.05, "test": 0.05}


class Corpus(NamedTuple):
    """A text as tokens.

    Attributes:
      train: [N] tokens.
      valid: tokens held out for validation.
      test: tokens held out for the test.
      characters: the vocabulary, one character per token.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    characters: str


class TextState(NamedTuple):
    """Where every lane reads.

    Attributes:
      position: [B], in the training text.
      started: whether a step has been made.
    """

    position: Array
    started: Array


def text(*, batch_size: int, data_dir: str = "", reset_every: int = 100, start: int = 0) -> Task:
    """Predicts the next character of a text.

    Args:
      batch_size: B; lane i starts at the i-th of B equally spaced positions and wraps around.
      data_dir: a text file, of which the last tenth is held out; or a folder with one .txt file each
        with "train", "valid" and "test" in its name; or "", for the documentation topics that come with
        every Python and differ slightly between its versions.
      reset_every: a lane starts anew where its position is a multiple of this.
      start: the position in the training text from which the others are counted; all lanes read
        somewhere else.

    Raises:
      DataError: if the text is missing, is not UTF-8, is too short, or a held-out file of a folder has
        a character that its training file has not.
      ValueError: if batch_size or reset_every is less than 1, or start is not in the text.
    """
    return _task(read_corpus(data_dir), batch_size, reset_every, start)


def penn_treebank(
    *, batch_size: int, data_dir: str = "", reset_every: int = 100, start: int = 0
) -> Task:
    """Predicts the next character of the Penn Treebank, as the papers do: of its raw text.

    Args:
      batch_size: B; lane i starts at the i-th of B equally spaced positions and wraps around.
      data_dir: the folder of ptb.train.txt, ptb.valid.txt and ptb.test.txt; "" for the folder named by
        the environment variable KFRTRL_DATA_DIR.
      reset_every: a lane starts anew where its position is a multiple of this.
      start: the position in the training text from which the others are counted; all lanes read
        somewhere else.

    Raises:
      DataError: if a file is missing or broken.
      ValueError: if batch_size or reset_every is less than 1, or start is not in the text.
    """
    return _task(read_penn_treebank(data_dir), batch_size, reset_every, start)


def read_penn_treebank(data_dir: str = "") -> Corpus:
    """The Penn Treebank, from `data_dir` or else from KFRTRL_DATA_DIR.

    Raises:
      DataError: if a file is missing or broken.
    """
    folder = data_dir or os.environ.get(DATA_VARIABLE, "")
    help_line = (
        f"give the folder of {', '.join(PENN_TREEBANK_FILES.values())} by --config.task.data_dir "
        f"or by {DATA_VARIABLE}; `kfrtrl data --out=DIR` fetches them"
    )
    if not folder:
        raise DataError(f"no Penn Treebank: {help_line}")
    paths = {part: pathlib.Path(folder) / name for part, name in PENN_TREEBANK_FILES.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise DataError(f"{folder} has no {', '.join(missing)}: {help_line}")
    return _from_files(paths)


def read_corpus(data_dir: str = "") -> Corpus:
    """The corpus that `text` reads.

    For a folder, the vocabulary is that of the training file; for a single file and for the
    documentation topics it is that of the whole text, including held-out parts. Line ends are kept.

    Raises:
      DataError: see `text`.
    """
    if not data_dir:
        parts = _documentation_topics()
        return _tokens(parts, "".join(parts.values()), "the documentation topics")
    path = pathlib.Path(data_dir)
    if path.is_file():
        whole = _read(path)
        held = int(len(whole) * _SHARES["test"])
        cuts = (len(whole) - 2 * held, len(whole) - held)
        parts = {
            "train": whole[: cuts[0]],
            "valid": whole[cuts[0] : cuts[1]],
            "test": whole[cuts[1] :],
        }
        return _tokens(parts, whole, str(path))
    if not path.is_dir():
        raise DataError(f"no text file or folder at {data_dir}")
    paths = {}
    for part in ("train", "valid", "test"):
        found = sorted(p for p in path.glob("*.txt") if part in p.name)
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise DataError(
                f'{data_dir} must hold one .txt file with "{part}" in its name, found {names}'
            )
        paths[part] = found[0]
    if len(set(paths.values())) < len(paths):
        raise DataError(
            f"{data_dir} must hold three .txt files, one each for train, valid and test, found "
            f"{', '.join(sorted({p.name for p in paths.values()}))}"
        )
    return _from_files(paths)


def _documentation_topics() -> dict[str, str]:
    """Whole topics, in the order of their names, to the part that lacks most of its share.

    Topics quote one another at length. Repeated paragraphs are dropped, so that no held-out text is
    also in the training text.
    """
    from pydoc_data.topics import topics

    parts = dict.fromkeys(_SHARES, "")
    seen: set[str] = set()
    total = 0
    for name in sorted(topics):
        paragraphs = [p for p in topics[name].split("\n\n") if p.strip() not in seen]
        seen.update(p.strip() for p in paragraphs)
        piece = "\n\n".join([name, *paragraphs]) + "\n"
        total += len(piece)
        part = max(parts, key=lambda part: _SHARES[part] * total - len(parts[part]))
        parts[part] += piece
    return parts


def _from_files(paths: dict[str, pathlib.Path]) -> Corpus:
    parts = {part: _read(path) for part, path in paths.items()}
    for part, path in paths.items():
        unknown = sorted(set(parts[part]) - set(parts["train"]))
        if unknown:
            raise DataError(
                f"{path} holds the character {unknown[0]!r}, which is not in {paths['train']}"
            )
    return _tokens(parts, parts["train"], str(paths["train"].parent))


def _read(path: pathlib.Path) -> str:
    """A text without the byte-order mark that some editors put before it."""
    try:
        # Decoded by hand: reading as text would translate line ends.
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _tokens(parts: dict[str, str], alphabet: str, name: str) -> Corpus:
    for part, content in parts.items():
        if len(content) < 2:
            raise DataError(f"the {part} part of {name} has fewer than two characters")
    characters = "".join(sorted(set(alphabet)))
    codes = np.array([ord(c) for c in characters], np.uint32)
    dtype = np.min_scalar_type(len(characters) - 1)
    encoded = {
        part: np.searchsorted(codes, np.frombuffer(content.encode("utf-32-le"), np.uint32)).astype(
            dtype
        )
        for part, content in parts.items()
    }
    return Corpus(encoded["train"], encoded["valid"], encoded["test"], characters)


def _task(corpus: Corpus, batch_size: int, reset_every: int, start: int) -> Task:
    require_positive(batch_size=batch_size, reset_every=reset_every)
    size = len(corpus.train)
    if size < 2 * batch_size:
        raise DataError(
            f"{size} characters are too few for {batch_size} lanes, which need at least "
            f"{2 * batch_size}"
        )
    if not 0 <= start < size:
        raise ValueError(f"start must be a position in the text, 0 to {size - 1}, got {start}")
    train = jnp.asarray(corpus.train)
    starts = (start + np.arange(batch_size, dtype=np.int64) * size // batch_size) % size

    def init(key: Key) -> TextState:
        del key
        return TextState(jnp.asarray(starts, jnp.int32), jnp.zeros((), bool))

    def sample(state: TextState, key: Key) -> tuple[TextState, Batch]:
        del key
        position = state.position
        following = jnp.where(position + 1 == size, 0, position + 1)
        batch = Batch(
            inputs=train[position].astype(jnp.int32),
            targets=train[following].astype(jnp.int32),
            reset=(position % reset_every == 0) | ~state.started,
        )
        return TextState(following, jnp.ones((), bool)), batch

    return Task(
        batch_size=batch_size,
        **tokens(len(corpus.characters)),
        loss=cross_entropy("bits/char"),
        chance_loss=math.log2(len(corpus.characters)),
        init=init,
        sample=sample,
        held_out={"valid": _whole(corpus.valid), "test": _whole(corpus.test)},
        symbols=corpus.characters,
        data=digest(*corpus),
    )


def _whole(text: np.ndarray) -> Batch:
    """A text in order, each of its characters but the first predicted from those before."""
    return Batch(text[:-1], text[1:], np.zeros(len(text) - 1, bool))
