"""The certificate of a user's own cell: how far each estimator is from exact RTRL on it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kfrtrl_jax._src.learning.given import as_cell, as_estimator
from kfrtrl_jax._src.linearization.check_points import in_double, widened
from kfrtrl_jax._src.linearization.linearizer import make_linearizer
from kfrtrl_jax._src.shapes import require_positive
from kfrtrl_jax._src.sizes import bytes_of
from kfrtrl_jax._src.trajectory import Reference, reference, trajectory
from kfrtrl_jax.base import InfluenceEstimator, Structure
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.studies.benchmarking import timing
from kfrtrl_jax.studies.fidelity.certificate import CertificateRow, Refusal, row_of, work_of
from kfrtrl_jax.studies.fidelity.names import Named, named

ESTIMATORS = ("rtrl", "kf_rtrl", "ok(rank=8)", "uoro", "snap", "rflo", "truncated")
# Entries of the exact influence matrix of all lanes: of more, the draws would take minutes.
_LARGEST = 2_000_000


class CellCertificate(NamedTuple):
    """What each estimator is worth on a cell; `str` of it is a table.

    Attributes:
      rows: one for every estimator that takes the cell. `state_bytes` are those of all lanes, in the
        default precision, and `seconds_per_step` of a push and a pull of all lanes.
      refusals: one for every other, with the reason.
      structure: of the cell.
      steps: T, from the start to where the figures are taken.
      draws: of every estimator.
    """

    rows: list[CertificateRow]
    refusals: list[Refusal]
    structure: Structure
    steps: int
    draws: int

    def __str__(self) -> str:
        head = ["estimator", "unbiased", "bias / s.e.", "bias / |G|", "noise", "cosine", "KiB a lane",
                "us a step"]  # fmt: skip
        lines = [head, *map(self._line, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in lines
        ]
        first = (
            f"against exact RTRL: state n = {self.structure.state_size}, "
            f"{self.structure.batch_size} lanes, {self.steps} steps, {self.draws} draws"
        )
        refused = [f"{r.estimator}: {r.reason}" for r in self.refusals]
        return "\n".join([first, *text, *refused])

    def _line(self, row: CertificateRow) -> list[str]:
        verdict = "-" if row.unbiased is None else "yes" if row.unbiased else "NO"
        z = "-" if row.bias_z is None else f"{row.bias_z:.2f}"
        lane = row.state_bytes / self.structure.batch_size / 2**10
        seconds = row.seconds_per_step
        time = "-" if seconds is None else f"{1e6 * seconds:.3g}"
        return [row.estimator, verdict, z, f"{row.relative_bias:.2g}", f"{row.relative_noise:.2g}",
                f"{row.cosine:.3f}", f"{lane:.3g}", time]  # fmt: skip


def certify(
    cell: Any,
    example_input: Any,
    estimators: Sequence[str] | Mapping[str, InfluenceEstimator] = ESTIMATORS,
    *,
    segment_length: int = 1,
    batch_size: int = 2,
    steps: int = 24,
    draws: int = 512,
    rounds: int = 3,
    seed: int = 0,
) -> CellCertificate:
    """Compares estimators with exact RTRL on a cell, along a trajectory of random inputs.

    G is the exact influence matrix at the end of the trajectory, whose last lane starts anew in the
    middle, and G~ an estimate of it. Bias, noise and cosine are computed in double precision if the
    cell allows it, times in the default precision. An estimator that claims to be unbiased is found
    biased if it deviates by more than 4 standard errors. One that learns from how it is used, such as
    `shrink`, is told before each push of the random cotangents by which the cosine is measured.

    Args:
      cell: as for `make_learner`: ours, or one of Flax or Equinox. Exact RTRL keeps n times as many
        numbers as the cell has parameters for every lane: take a small one, of some ten units.
      example_input: one lane's input; floats are drawn from a standard normal distribution, integers
        from 0 and 1.
      estimators: as text, or estimators by name; nothing is claimed of the latter.
      segment_length: K, the number of steps pushed at once; it divides steps.
      batch_size: B.
      steps: T.
      draws: of every estimator.
      rounds: runs for the time of a step; 0 for no times.
      seed: of parameters, inputs and draws.

    Returns:
      The certificate; print it for a table.

    Raises:
      ValueError: if the cell is too large for exact RTRL, or for lengths that do not fit together.
      ConfigError: for a text that names no estimator.
      UnsupportedCellError: if the cell cannot be linearized.
    """
    require_positive(segment_length=segment_length, batch_size=batch_size, steps=steps, draws=draws)
    if steps % segment_length:
        raise ValueError(
            f"steps must be a multiple of segment_length, got {steps} and {segment_length}"
        )
    chosen = list(_named(estimators))
    own, default = as_cell(cell, example_input), jnp.result_type(float)
    wide = in_double(own, example_input)
    with jax.enable_x64(True) if wide else contextlib.nullcontext():
        example = jax.tree.map(widened, example_input) if wide else example_input
        _require_small(make_linearizer(wide or own, example, batch_size).structure)
        along = trajectory(
            wide or own, example_input=example, batch_size=batch_size, steps=steps, seed=seed
        )
        exact = reference(along, seed=seed + 1)
        found = CellCertificate([], [], along.structure, steps, draws)
        for one in chosen:
            try:
                jax.eval_shape(functools.partial(one.estimator.init, along.structure))
            except UnsupportedCellError as error:
                found.refusals.append(Refusal("", one.name, str(error)))
                continue
            found.rows.append(_row(one, exact, segment_length, draws, seed, default))
    if not rounds:
        return found
    # In the default precision, as it will be used.
    single = along.astype(default)
    takes = {one.name: one.estimator for one in chosen}
    rows = [
        row._replace(
            seconds_per_step=timing.alone(
                work_of(takes[row.estimator], single, segment_length), rounds
            )
        )
        for row in found.rows
    ]
    return found._replace(rows=rows)


def _named(
    estimators: Sequence[str] | Mapping[str, InfluenceEstimator],
) -> Iterator[Named]:
    if isinstance(estimators, Mapping):
        for name, estimator in estimators.items():
            yield Named(name, as_estimator(estimator), False)
        return
    for text in [estimators] if isinstance(estimators, str) else estimators:
        if not isinstance(text, str):
            raise ValueError(
                'estimators must be texts, such as "ok(rank=8)", or a dict of estimators by name'
            )
        yield named(text)


def _require_small(structure: Structure) -> None:
    weights = sum(site.input_size * site.output_size for site in structure.sites)
    entries = structure.batch_size * structure.state_size * weights
    if entries > _LARGEST:
        raise ValueError(
            f"exact RTRL keeps {entries:,} numbers on this cell, of {structure.state_size} state "
            f"variables and {weights:,} weights, more than {_LARGEST:,}: certify a smaller cell"
        )


def _row(
    one: Named, exact: Reference, segment_length: int, draws: int, seed: int, dtype: Any
) -> CertificateRow:
    row = row_of("", one, segment_length, exact, None, draws, seed)
    structure = exact.trajectory.structure._replace(dtype=dtype)
    state = jax.eval_shape(lambda: one.estimator.init(structure))
    return row._replace(state_bytes=bytes_of(state))
