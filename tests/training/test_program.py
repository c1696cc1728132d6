from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax._src.lanes import is_key
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import checkpoints, memory, program
from kfrtrl_jax.training.config import resolve
from tests.training.small import COPY, small, text


def test_a_chunk_is_what_its_config_says():
    config = small(
        {
            "segment_length": 5,
            "estimator.name": None,
            "estimator": "average(reset_every(7, kf_rtrl), copies=2)",
        }
    )
    built = program.build(config)
    state, metrics = jax.jit(built.run_chunk)(jax.jit(built.init)(0))
    assert state.step == config.log_every
    assert state.losses.shape == (5,)
    assert metrics.bad_step == -1
    assert metrics.loss > 0
    assert metrics.task == {"sequence_length": 1}


def test_running_loss_is_the_average_of_every_step():
    built = program.build(small({"log_every": 4, "segment_length": 4}))
    state = jax.jit(built.init)(0)
    expected = 2.0
    chunk = jax.jit(built.run_chunk)
    for _ in range(2):
        state, metrics = chunk(state)
        for loss in state.losses:
            expected = 0.999 * expected + 0.001 * float(loss)
        np.testing.assert_allclose(metrics.running_loss, expected, rtol=1e-12)
        np.testing.assert_allclose(metrics.loss, np.mean(state.losses), rtol=1e-12)


def test_the_step_at_which_numbers_stop_being_finite_is_reported():
    config = small({"optimizer.name": "sgd", "optimizer.learning_rate": 1e308})
    built = program.build(config)
    _, metrics = jax.jit(built.run_chunk)(jax.jit(built.init)(0))
    assert 1 <= metrics.bad_step <= config.log_every


def test_a_state_that_does_not_fit_is_refused_before_anything_compiles(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    config = resolve(COPY, {"cell.hidden_size": 1000, "estimator": "reset_every(9, rtrl)"})
    with pytest.raises(ConfigError) as raised:
        memory.check(program.build(config), config)
    message = str(raised.value)
    assert "1.00 MiB are available" in message
    assert "estimator reset_every(period=9, estimator=rtrl) takes" in message
    assert message.endswith("or smaller fields such as cell.hidden_size, task.batch_size")
    assert "\n" not in message


def test_what_a_state_needs_is_two_copies_of_it():
    built = program.build(small())
    state = jax.jit(built.init)(0)
    arrays = [
        jax.random.key_data(leaf) if is_key(leaf) else leaf for leaf in jax.tree.leaves(state)
    ]
    needed, share = memory.needed(built)
    assert needed == 2 * sum(array.nbytes for array in arrays)
    influence = jax.tree.leaves(state.learner.influence)
    assert share == 2 * sum(array.nbytes for array in influence)


def test_a_run_with_a_credit_goes_on_from_its_checkpoint(tmp_path):
    """One program holds many shares, and each run is the same before and after a checkpoint."""
    shares = jnp.asarray([0.25, 0.5])
    changes = {"credit.name": "dni", "segment_length": 2, "estimator.name": "truncated"}
    config = small(changes)

    def built(share):
        return program.build(config, {"credit.share": share})

    state = jax.jit(jax.vmap(lambda share: built(share).init(0)))(shares)
    chunk = jax.jit(jax.vmap(lambda state, share: built(share).run_chunk(state)))
    state, _ = chunk(state, shares)
    with contextlib.closing(checkpoints.Checkpoints(tmp_path)) as saved:
        saved.save(10, state, {})
        restored = saved.restore(jax.eval_shape(lambda: state), pytest.fail)
    ahead, metrics = chunk(state, shares)
    again, _ = chunk(restored.state, shares)
    named, renamed = checkpoints.to_arrays(ahead), checkpoints.to_arrays(again)
    assert all(np.array_equal(named[name], renamed[name]) for name in named)
    weights = ahead.learner.credit.parameters["output"]
    assert jnp.linalg.norm(weights[0] - weights[1]) > 0
    assert jnp.all(metrics.estimator["credit/norm"] > 0)
    assert jnp.all(jnp.abs(metrics.estimator["credit/bootstrap_cosine"]) <= 1)


def test_a_factorys_refusal_names_the_section():
    config = small({"cell.name": "recurrent_highway", "cell.depth": 0})
    with pytest.raises(ConfigError, match=r"config\.cell: depth must be at least 1, got 0"):
        program.build(config)


def test_text_has_held_out_parts(tmp_path):
    built = program.build(small(text(tmp_path)))
    assert set(built.about.held_out) == {"valid", "test"}
