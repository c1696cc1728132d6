"""The noise of the whole gradient of an update, against the number of steps pushed at once.

With an update at every step (U = 1), the gradient of a loss is exact along the steps of its own
segment. The longer the segment, the less of the gradient is left to the estimator, and the fewer pushes
have added noise to it. In the papers' form nothing is exact: the immediate derivative is in the
estimate. An estimator that is biased has its bias in the noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kfrtrl_jax import losses, readouts, tasks
from kfrtrl_jax.base import Array, Batch, Cell, InfluenceEstimator, Key, Loss, Readout
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.estimators import rtrl
from kfrtrl_jax.learning import make_learner
from kfrtrl_jax.linearization import make_linearizer
from kfrtrl_jax.studies.fidelity.cosine import of_rows
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import loading
from kfrtrl_jax.training.supervised import make_network


class Setting(NamedTuple):
    """A network and the stream along which its gradients are measured.

    Attributes:
      cell: of the network.
      readout: from its output to predictions.
      loss: of the predictions.
      example_input: of one lane.
      batches: the stream, [T, B, ...].
      parameters: of the network; None for initial ones.
    """

    cell: Cell
    readout: Readout
    loss: Loss
    example_input: Any
    batches: Batch
    parameters: Any = None


class Form(NamedTuple):
    """How an estimator is used.

    Attributes:
      segment_length: K.
      immediate: see `make_learner`; "estimated" with K = 1 is the papers' form.
    """

    segment_length: int
    immediate: Literal["exact", "estimated"] = "exact"


class Noise(NamedTuple):
    """One estimator in one form, against exact RTRL.

    Attributes:
      estimator: its name.
      segment_length: K.
      immediate: see `Form`.
      relative_noise: E|g~ - g|^2 / |g|^2 of the cell's part of the gradient, with numerator and
        denominator each summed over the second half of the steps.
      standard_error: of that, over draws.
      cosine: between g~ and g, the mean over draws and the steps of the second half, with the weights
        |g|: where no loss counts there is no direction, and where a loss is near 0 there is little but
        rounding.
      cosine_error: its standard error, over draws.
      over_time: the relative noise in each quarter of the steps; empty where it was not kept, or a
        quarter has no gradient.
      width: n of the network, see `width`; 0 where it was not kept.
    """

    estimator: str
    segment_length: int
    immediate: str
    relative_noise: float
    standard_error: float
    cosine: float
    cosine_error: float
    over_time: Sequence[float] = ()
    width: int = 0


def untrained(cell: Cell, *, input_size: int, batch_size: int, steps: int, seed: int) -> Setting:
    """A cell with its initial parameters, on random inputs and targets.

    Args:
      cell: reads vectors of length `input_size` and outputs a vector.
      input_size: of the inputs, standard normal.
      batch_size: B.
      steps: T.
      seed: of inputs and targets.
    """
    keys = jax.random.split(jax.random.key(seed), 4)
    inputs = jax.random.normal(keys[0], (steps, batch_size, input_size))
    targets = jax.random.randint(keys[1], (steps, batch_size), 0, input_size)
    batches = Batch(inputs, targets, jnp.zeros((steps, batch_size), bool))
    output_size = jax.eval_shape(
        lambda key: cell.step(cell.init(key), cell.initial_carry(), inputs[0, 0])[1], keys[2]
    ).shape[0]
    readout = readouts.linear(input_size=output_size, output_size=input_size)
    return Setting(cell, readout, losses.cross_entropy(), inputs[0, 0], batches)


def trained(folder: str | Path, task: str, *, steps: int, seed: int) -> Setting:
    """The network of a finished run, on the stream of its own or another task.

    Args:
      folder: the workdir of the run, or of a trial of a sweep.
      task: as text, such as "copy(batch_size=2, initial_length=9)"; "" for that of the run.
      steps: T.
      seed: of the stream.

    Raises:
      ConfigError: if the task is another kind of task, or cannot be made.
      WorkdirError: see `loading.load`.
    """
    loaded = loading.load(folder)
    config = configs.resolve(loaded.config, {"task": task} if task else None)
    chosen = configs.make(config, "task", floats=None)
    if (chosen.input_size, chosen.output_size) != (loaded.task.input_size, loaded.task.output_size):
        raise ConfigError(
            f"config.stream: {task} has other inputs or outputs than the task of {folder}"
        )
    network = make_network(chosen, functools.partial(configs.make, config, floats=None))

    def step(state: Any, key: Key) -> tuple[Any, Batch]:
        return tasks.draw(chosen, state, key, jnp.asarray(chosen.chance_loss, float))

    keys = jax.random.split(jax.random.key(seed), steps + 1)
    _, batches = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))(
        chosen.init(keys[0]), keys[1:]
    )
    return Setting(*network, chosen.loss, chosen.example_input, batches, loaded.parameters)


def width(setting: Setting) -> int:
    """The number n of state variables of a network."""
    return make_linearizer(setting.cell, setting.example_input, 1).structure.state_size


def measure_noise(
    setting: Setting,
    estimators: Mapping[str, InfluenceEstimator],
    forms: Sequence[Form],
    *,
    draws: int,
    seed: int = 0,
) -> list[Noise]:
    """Measures the noise of each estimator in each form, parameters held fixed.

    Args:
      setting: the network and its stream.
      estimators: by name.
      forms: whose segment lengths divide the number of steps.
      draws: of each estimator.
      seed: of the parameters, if they are initial ones, and of the draws.

    Raises:
      ConfigError: if no loss counts in the second half of the steps.
    """
    key = jax.random.split(jax.random.key(seed), 4)[3]
    exact = _gradients(setting, rtrl(), Form(1), key)(key)
    late = len(exact) // 2
    size = np.asarray(jnp.sum(exact**2, axis=1), float)
    if not np.any(size[late:]):
        raise ConfigError(
            f"no loss counts in the second half of the {len(exact)} steps of the stream"
        )
    rows, n = [], width(setting)
    for name, estimator in estimators.items():
        for form in forms:
            run = _gradients(setting, estimator, form, key)
            errors, cosines = [], []
            for draw in jax.random.split(jax.random.key(seed + 1), draws):
                found = run(draw)
                errors.append(np.asarray(jnp.sum((found - exact) ** 2, axis=1), float))
                cosine = of_rows(found[late:], exact[late:])
                cosines.append(float(np.average(cosine, weights=np.sqrt(size[late:]))))
            off = [float(np.sum(error[late:]) / np.sum(size[late:])) for error in errors]
            over_time = _in_quarters(np.mean(errors, axis=0), size)
            rows.append(Noise(name, *form, *_mean(off), *_mean(cosines), over_time, n))
    return rows


def _in_quarters(errors: np.ndarray, sizes: np.ndarray) -> list[float]:
    """The sums of errors relative to those of sizes, in each quarter of the steps; [] if one is 0."""
    of_errors, of_sizes = (
        [float(np.sum(quarter)) for quarter in np.array_split(x, 4)] for x in (errors, sizes)
    )
    return [error / size for error, size in zip(of_errors, of_sizes)] if all(of_sizes) else []


def _gradients(
    setting: Setting, estimator: InfluenceEstimator, form: Form, init: Key
) -> Callable[[Key], Array]:
    """A function of a key: the cell's gradients at every step, [T, P]."""
    steps, length = setting.batches.reset.shape[0], form.segment_length
    learner = make_learner(
        setting.cell,
        setting.readout,
        estimator,
        optax.sgd(0.0),
        loss=setting.loss,
        batch_size=setting.batches.reset.shape[1],
        example_input=setting.example_input,
        segment_length=length,
        update_every=1,
        immediate=form.immediate,
        check=False,
    )
    segments = jax.tree.map(lambda x: x.reshape(-1, length, *x.shape[1:]), setting.batches)

    def one(state: Any, segment: Batch) -> tuple[Any, Array]:
        gradient, state, _ = learner.gradient(state, segment)
        flat = [leaf.reshape(length, -1) for leaf in jax.tree.leaves(gradient["cell"])]
        return state, jnp.concatenate(flat, axis=1)

    # Stream and parameters are arguments, as constants would make a program of their own for each.
    @jax.jit
    def run(parameters: Any, segments: Batch, key: Key) -> Array:
        state = learner.init(init)._replace(key=key)
        if parameters is not None:
            state = state._replace(parameters=parameters)
        found = jax.lax.scan(one, state, segments)[1]
        return found.reshape(steps, -1)

    return functools.partial(run, setting.parameters, segments)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
