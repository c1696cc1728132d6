"""All that the report is made of: the committed records and the public logs, each file read once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.studies.reproduction import chapters, records, runs
from kfrtrl_jax.studies.reproduction.runs import Run

RECORDS = "reproduction"
_REFERENCE = "reference"


class Results(NamedTuple):
    """What has been run, and what others have.

    Attributes:
      records: of each study that has been run, by its name, see `records.collect`.
      own: the runs of these records, likewise.
      public: the runs of the public logs of these studies, likewise; none where there are no logs.
      noises: the records of `kfrtrl noise`, by their name in `chapters.NOISE`.
      certificates: the rows of `kfrtrl fidelity`, of estimators on small untrained cells.
    """

    records: Mapping[str, Mapping[str, Any]]
    own: Mapping[str, Sequence[Run]]
    public: Mapping[str, Sequence[Run]]
    noises: Mapping[str, Mapping[str, Any]]
    certificates: Sequence[Mapping[str, Any]]


def read(folder: Path) -> Results:
    """The results of a folder such as experiments/results; what is not there is left out.

    Args:
      folder: has reproduction/STUDY.json, reproduction/noise/NAME.json, fidelity.json,
        fidelity_NAME.json and, in reference, the tables of public logs.

    Raises:
      ConfigError: if a file is not what its name says.
    """
    studies = {
        name: records.read_study(path)
        for name in chapters.CHAPTERS
        if (path := folder / RECORDS / f"{name}.json").exists()
    }
    return Results(
        records=studies,
        own={name: runs.of_record(record) for name, record in studies.items()},
        public={name: runs.of_public_logs(folder / _REFERENCE, name) for name in studies},
        noises={
            name: records.read_noise(path)
            for name in chapters.NOISE
            if (path := folder / RECORDS / "noise" / f"{name}.json").exists()
        },
        certificates=[
            row
            for path in (folder / "fidelity.json", *sorted(folder.glob("fidelity_*.json")))
            if path.exists()
            for row in _rows(path)
        ],
    )


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        rows = json.loads(path.read_text())
    except ValueError:
        rows = None
    needed = {"cell", "estimator", "cosine"}
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and needed <= row.keys() for row in rows
    ):
        raise ConfigError(
            f"{path} is not what `kfrtrl fidelity` writes: a list of rows, each with a cell, an "
            f"estimator and a cosine"
        )
    return rows
