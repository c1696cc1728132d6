"""MNIST one pixel or one row at a time (Le et al., 2015), and its one-dimensional counterpart."""

from __future__ import annotations

import functools
import gzip
import math
import os
import pathlib
import random
import zlib
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from kfrtrl_jax._src import bounds
from kfrtrl_jax._src.base import Task
from kfrtrl_jax._src.errors import DataError
from kfrtrl_jax._src.shapes import require_positive
from kfrtrl_jax._src.tasks.common import digest
from kfrtrl_jax._src.tasks.sequences import Labelled, classification

MNIST_VARIABLE = "KFRTRL_MNIST_DIR"
CLASSES = 10
# The size of MNIST's usual validation set, the last of the 60,000 training images.
VALIDATION_IMAGES = 5000
_UNSIGNED_BYTE = 8


class Images(NamedTuple):
    """Images with their labels.

    Attributes:
      pixels: [N, height, width].
      labels: [N].
    """

    pixels: UInt8[np.ndarray, "N height width"]
    labels: UInt8[np.ndarray, " N"]


def sequential_mnist(
    *,
    batch_size: int,
    data_dir: str = "",
    order: Literal["pixels", "rows"] = "pixels",
    permuted: bool = False,
    permutation_seed: int = 0,
) -> Task:
    """Predicts the digit of an image that is read one pixel, or one row, at a time.

    An image has 784 steps of [1] in the order of pixels, 28 steps of [28] in the order of rows.
    Pixels are in 0..1. The label is the target of every step, but only the last one counts; lanes
    start anew at the first. Images are drawn at random, with replacement, all lanes beginning one
    at the same step. The loss is the cross-entropy, log2(10) = 3.32 bits for guessing, and the
    score the accuracy.

    The held-out streams are "valid", the last 5,000 training images, which are not trained on, and
    "test". An evaluation whose number of lanes divides 5,000 cuts them between images.

    Args:
      batch_size: B.
      data_dir: the folder of train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte
        and t10k-labels-idx1-ubyte, or of the same with ".idx" for "-idx", each also with ".gz"; ""
        for the folder named by the environment variable KFRTRL_MNIST_DIR.
      order: "pixels" or "rows".
      permuted: whether the pixels of all images are first put into the same random order.
      permutation_seed: of that order.

    Raises:
      DataError: if a file is missing or broken, or if the training set has 5,000 images or fewer.
      ValueError: if batch_size is less than 1, order is neither of the two, or permutation_seed is
        negative.

    Source: Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of rectified
    linear units", 2015, arXiv:1504.00941.
    """
    require_positive(batch_size=batch_size)
    if order not in ("pixels", "rows"):
        raise ValueError(f'order must be "pixels" or "rows", got {order!r}')
    bounds.require("[0, inf)", permutation_seed=permutation_seed)
    train, test = read_mnist(data_dir)
    count, height, width = train.pixels.shape
    if count <= VALIDATION_IMAGES:
        raise DataError(
            f"{count} training images are too few: the last {VALIDATION_IMAGES} are for validation"
        )
    seed = permutation_seed
    places = np.random.default_rng(seed).permutation(height * width) if permuted else slice(None)

    def sequences(images: Images, part: slice) -> Labelled:
        flat = images.pixels[part].reshape(-1, height * width)[:, places]
        size = width if order == "rows" else 1
        return Labelled(flat.reshape(len(flat), -1, size), images.labels[part])

    held_out = {
        "valid": sequences(train, slice(-VALIDATION_IMAGES, None)),
        "test": sequences(test, slice(None)),
    }
    task = classification(
        batch_size, CLASSES, sequences(train, slice(-VALIDATION_IMAGES)), held_out
    )
    return task._replace(data=digest(*train, *test))


def mnist1d(*, batch_size: int, num_samples: int = 5000, data_seed: int = 42) -> Task:
    """Predicts the digit of a signal of MNIST-1D, which is read one value at a time.

    A signal has 40 steps of [1]. The label is the target of every step, but only the last one
    counts; lanes start anew at the first. Signals are drawn at random, with replacement, all lanes
    beginning one at the same step. The loss is the cross-entropy, log2(10) = 3.32 bits for
    guessing, and the score the accuracy.

    The signals are made once by the generator of the package `mnist1d`, at its standard settings,
    and kept in memory: the same seed makes the same signals. The package standardizes all of them
    together. Four fifths are for training; "valid" is the last tenth of these, which is not trained
    on, and "test" the rest.

    Args:
      batch_size: B.
      num_samples: the number of signals, a multiple of 10.
      data_seed: of the generator.

    Raises:
      DataError: if the package `mnist1d` is not installed.
      ValueError: if batch_size is less than 1, or num_samples is less than 100 or no multiple of 10.

    Source: Greydanus and Kobak, "Scaling down deep learning with MNIST-1D", arXiv:2011.14439.
    """
    require_positive(batch_size=batch_size)
    if num_samples < 100 or num_samples % CLASSES:
        raise ValueError(
            f"num_samples must be a multiple of {CLASSES} and at least 100, got {num_samples}"
        )
    train, test = _generated(num_samples, data_seed)
    held = len(train.labels) // 10
    kept, valid = (
        Labelled(train.values[part], train.labels[part])
        for part in (slice(-held), slice(-held, None))
    )
    return classification(batch_size, CLASSES, kept, {"valid": valid, "test": test})


@functools.lru_cache(maxsize=4)
def _generated(num_samples: int, seed: int) -> tuple[Labelled, Labelled]:
    try:
        from mnist1d import data
    except ImportError:
        raise DataError(
            'there is no package mnist1d: install it by `pip install "kfrtrl_jax[mnist1d]"`'
        ) from None
    settings = data.get_dataset_args()
    settings.num_samples, settings.seed = num_samples, seed
    # The generator seeds the global generators of Python and NumPy, which belong to the user.
    states = random.getstate(), np.random.get_state()
    try:
        made = data.make_dataset(settings)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return (
        Labelled(made["x"].astype(np.float32)[..., None], made["y"].astype(np.int32)),
        Labelled(made["x_test"].astype(np.float32)[..., None], made["y_test"].astype(np.int32)),
    )


def read_mnist(data_dir: str = "") -> tuple[Images, Images]:
    """The training and the test images, from `data_dir` or else from KFRTRL_MNIST_DIR.

    Raises:
      DataError: if a file is missing or broken.
    """
    folder = data_dir or os.environ.get(MNIST_VARIABLE, "")
    help_line = (
        "give the folder of train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, or these with .gz, by "
        f"--config.task.data_dir or by {MNIST_VARIABLE}"
    )
    if not folder:
        raise DataError(f"no MNIST: {help_line}")
    names = [("train-images", "train-labels"), ("t10k-images", "t10k-labels")]
    files = _files(pathlib.Path(folder))
    missing = [name for pair in names for name in pair if name not in files]
    if missing:
        raise DataError(f"{folder} has no {', '.join(missing)}: {help_line}")
    train, test = (_images(files[images], files[labels]) for images, labels in names)
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise DataError(
            f"{folder} has training images of {_size(train)} pixels and test images of "
            f"{_size(test)}"
        )
    return train, test


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of a folder by their names without the ending, which has four spellings."""
    files: dict[str, pathlib.Path] = {}
    for part in ("train", "t10k"):
        for kind, axes in (("images", 3), ("labels", 1)):
            ends = [f"{mark}idx{axes}-ubyte{end}" for mark in "-." for end in ("", ".gz")]
            paths = [folder / f"{part}-{kind}{end}" for end in ends]
            files |= {f"{part}-{kind}": path for path in paths[::-1] if path.is_file()}
    return files


def _images(pixels_path: pathlib.Path, labels_path: pathlib.Path) -> Images:
    images = Images(read_idx(pixels_path, 3), read_idx(labels_path, 1))
    if len(images.pixels) != len(images.labels):
        raise DataError(
            f"{pixels_path} has {len(images.pixels)} images and {labels_path} {len(images.labels)} "
            "labels"
        )
    if not images.pixels.size:
        raise DataError(f"{pixels_path} has no images")
    if images.labels.max() >= CLASSES:
        raise DataError(f"{labels_path} holds the label {images.labels.max()}, which is no digit")
    return images


def read_idx(path: str | os.PathLike[str], axes: int) -> np.ndarray:
    """The bytes of an IDX file, plain or compressed by gzip if its name ends in ".gz".

    The file begins with two zeros, 8 for unsigned bytes, and the number of axes; then comes the
    length of each axis, four bytes with the highest first.

    Args:
      path: of the file.
      axes: the number of axes that it must have.

    Raises:
      DataError: if the file cannot be read or is not such a file.
    """
    path = pathlib.Path(path)
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    magic, header = bytes([0, 0, _UNSIGNED_BYTE, axes]), 4 * (1 + axes)
    if content[:4] != magic:
        raise DataError(
            f"{path} begins with {content[:4].hex() or 'nothing'}, not with {magic.hex()}: it is "
            f"no IDX file of unsigned bytes with {axes} axes"
        )
    shape = [int.from_bytes(content[i : i + 4]) for i in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        raise DataError(
            f"{path} has {len(content)} bytes and should have {header + math.prod(shape)}, for the "
            f"shape {shape} in its header"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _size(images: Images) -> str:
    return " x ".join(map(str, images.pixels.shape[1:]))
