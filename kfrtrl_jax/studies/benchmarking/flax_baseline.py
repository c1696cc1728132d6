"""Truncated backpropagation written with Flax alone: its RNN over a segment, and `jax.grad`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from kfrtrl_jax import readouts
from kfrtrl_jax._src.base import Task
from kfrtrl_jax.base import Array
from kfrtrl_jax.studies.benchmarking import floors, timing
from kfrtrl_jax.studies.benchmarking.timing import Floor, Work
from kfrtrl_jax.tasks import draw
from kfrtrl_jax.training import config as configs

# (parameters, carry, inputs [K, B, size]) -> (carry, outputs [K, B, n]).
Unroll = Callable[[Any, Any, Array], tuple[Any, Array]]


def flax_training(config: Any) -> Floor:
    """The fastest of Linen's and NNX's RNN with an OptimizedLSTMCell, in the training run of a config.

    Task, sizes, readout, loss and optimizer are the same. Sequences that begin inside a segment do not
    reset the carry, as Flax's RNN has no argument for that. Each is compiled with the default compiler
    options and with those of our training.
    """
    makers = {"linen.RNN": _linen, "nnx.RNN": _nnx}
    floor = timing.fastest(
        [
            (name + named, functools.partial(_training, make, config, options))
            for named, options in floors.option_sets().items()
            for name, make in makers.items()
        ]
    )
    return floor._replace(words=f"OptimizedLSTMCell and jax.grad in Flax's {floor.words}")


def _training(
    make: Callable[[Any, int], tuple[Any, Any, Unroll]], config: Any, options: dict[str, Any]
) -> Work:
    task: Task = configs.make(config, "task")
    vocabulary, n, length = task.input_size, config.cell.hidden_size, config.segment_length
    readout = readouts.linear(input_size=n, output_size=vocabulary)
    optimizer = configs.make(config, "optimizer")
    cell_parameters, carry, unroll = make(config, vocabulary)
    parameters = {"cell": cell_parameters, "readout": readout.init(jax.random.key(1))}
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def loss(parameters: Any, carry: Any, segment: Any) -> tuple[Array, tuple[Any, Array]]:
        carry, outputs = unroll(
            parameters["cell"], carry, jax.nn.one_hot(segment.inputs, vocabulary)
        )
        apply = jax.vmap(jax.vmap(lambda h: readout.apply(parameters["readout"], h)))
        losses = cross_entropy(apply(outputs), segment.targets)
        return jnp.mean(losses), (carry, jnp.mean(losses, axis=1))

    def segment(state: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
        parameters, optimizer_state, carry, task_state, losses, key = state
        key, *keys = jax.random.split(key, length + 1)
        task_state, batches = jax.lax.scan(
            lambda s, x: draw(task, s, *x), task_state, (jnp.stack(keys), losses)
        )
        gradient, (carry, losses) = jax.grad(loss, has_aux=True)(parameters, carry, batches)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        losses = losses / math.log(2)
        new = (parameters, optimizer_state, carry, task_state, losses, key)
        return new, (jnp.mean(losses), optax.tree.norm(gradient))

    def chunk(state: Any) -> tuple[Any, Any]:
        return jax.lax.scan(segment, state, length=config.log_every // length)

    run_chunk = jax.jit(chunk, donate_argnums=0, compiler_options=options)
    task_state, losses = task.init(jax.random.key(2)), jnp.full(length, math.log2(vocabulary))
    state = [(parameters, optimizer.init(parameters), carry, task_state, losses, jax.random.key(3))]

    def run() -> Any:
        state[0], metrics = run_chunk(state[0])
        return metrics

    return Work(run, config.log_every)


def _linen(config: Any, vocabulary: int) -> tuple[Any, Any, Unroll]:
    cell = linen.OptimizedLSTMCell(config.cell.hidden_size)
    rnn = linen.RNN(cell, time_major=True, return_carry=True)
    shape = (config.task.batch_size, vocabulary)
    carry = cell.initialize_carry(jax.random.key(0), shape)
    x = jnp.zeros((config.segment_length, *shape))
    parameters = rnn.init(jax.random.key(0), x, initial_carry=carry)["params"]

    def unroll(parameters: Any, carry: Any, xs: Array) -> Any:
        return rnn.apply({"params": parameters}, xs, initial_carry=carry)

    return parameters, carry, unroll


def _nnx(config: Any, vocabulary: int) -> tuple[Any, Any, Unroll]:
    cell = nnx.OptimizedLSTMCell(vocabulary, config.cell.hidden_size, rngs=nnx.Rngs(0))
    rnn = nnx.RNN(cell, time_major=True, return_carry=True)
    carry = cell.initialize_carry((config.task.batch_size, vocabulary), rngs=nnx.Rngs(0))
    parts: Any = nnx.split(rnn, nnx.Param, ...)
    graph, parameters, rest = parts

    def unroll(parameters: Any, carry: Any, xs: Array) -> Any:
        model = nnx.merge(graph, parameters, rest)
        result: Any = model(xs, initial_carry=carry)
        return result

    return parameters, carry, unroll
