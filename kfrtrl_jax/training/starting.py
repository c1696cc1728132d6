"""Networks that start from the parameters of another run: `init_from` in a config."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kfrtrl_jax.base import Cell, Readout
from kfrtrl_jax.errors import ConfigError, WorkdirError
from kfrtrl_jax.training import checkpoints


class Start(NamedTuple):
    """The parameters of another run.

    Attributes:
      folder: where they are.
      arrays: by their path, "cell.weights".
      digest: of all of them.
    """

    folder: Path
    arrays: Mapping[str, np.ndarray]
    digest: str

    def network(self, cell: Cell, readout: Readout) -> tuple[Cell, Readout]:
        """A network whose initial parameters are these, whatever the key.

        Raises:
          ConfigError: if they do not fit, naming the first difference.
        """

        def init(key: Any) -> dict[str, Any]:
            return {"cell": cell.init(key), "readout": readout.init(key)}

        like = jax.eval_shape(init, jax.random.key(0))
        self._require(like)
        dtypes = {name: x.dtype for name, x in checkpoints.to_data(like).items()}
        arrays = {name: array.astype(dtypes[name]) for name, array in self.arrays.items()}

        def parameters() -> dict[str, Any]:
            return checkpoints.from_arrays(arrays, like)

        return (
            cell._replace(init=lambda _: parameters()["cell"]),
            readout._replace(init=lambda _: parameters()["readout"]),
        )

    def _require(self, like: Any) -> None:
        expected = {name: x for name, x in checkpoints.to_data(like).items()}
        for name in [*expected, *self.arrays]:
            if name not in self.arrays:
                difference = f"has no {name}, which this network has"
            elif name not in expected:
                difference = f"has {name}, which this network has not"
            elif _shown(self.arrays[name]) != _shown(expected[name]):
                there, here = _shown(self.arrays[name]), _shown(expected[name])
                difference = f"has {name} as {there}, and this network as {here}"
            else:
                continue
            raise ConfigError(f"config.init_from: {self.folder} {difference}")


def read(path: str) -> Start | None:
    """The parameters that a config starts from.

    Args:
      path: `init_from` of the config: the workdir of a finished run, of which the best parameters are
        taken if there are any, or WORKDIR/best or WORKDIR/final; "" for none.

    Raises:
      ConfigError: if there are none, or if they are damaged.
    """
    if not path:
        return None
    home = Path(path)
    places = [home / "best", home / "final", *([home] if home.name in ("best", "final") else [])]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        what = "holds no finished run" if home.is_dir() else "is no folder"
        raise ConfigError(f"config.init_from: {path} {what}; give the workdir of a run")
    try:
        arrays = checkpoints.read_arrays(folder)
    except WorkdirError as error:
        raise ConfigError(f"config.init_from: {error}") from error
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return Start(folder, arrays, digest.hexdigest())


def _shown(x: Any) -> str:
    """The shape, and the kind of number where it is none that another precision has."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return f"{'' if floating else x.dtype}{list(x.shape)}"
