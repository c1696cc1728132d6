"""Every estimator on every small cell: the same numbers in eager, jit and vmap, and the right ones.

A new estimator of ESTIMATORS and a new cell of SMALL_CELLS are taken up by themselves.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells
from kfrtrl_jax.base import InfluenceEstimator
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.estimators import ESTIMATORS, UNBIASED
from kfrtrl_jax.studies import fidelity
from kfrtrl_jax.studies.fidelity import gradients
from tests.estimators.monte_carlo import QUICK, reference
from tests.helpers.nights import NIGHT, some
from tests.trajectories import HIDDEN_SIZE, INPUT_SIZE, SMALL_CELLS

STEPS, EAGER_STEPS, DRAWS, LIMIT = 4, 2, 1024, 4
# Every estimator is drawn on these: a cell of several sites, one whose D is dense, and a diagonal one.
DRAWN_ON = {"gru", "deep_recurrent_highway", "lru"}
# What is made without jit compiles every operation and size by itself: on the smallest cell.
EAGER_ON = set(SMALL_CELLS) if NIGHT else {"vanilla"}
JIT_ON = set(SMALL_CELLS) if NIGHT else {"deep_recurrent_highway"}
# The arguments that have no default.
ARGUMENTS = {"ok": {"rank": 2}, "ktp": {"rank": 2}, "sketched": {"rank": 2}}


def zero(got, exact):
    """No influence at all."""
    assert np.all(got == 0)


def exact_at_first(got, exact):
    """I as it is, and J not."""
    np.testing.assert_allclose(got[:, 0], np.broadcast_to(exact[0], got[:, 0].shape), atol=1e-12)


def near_at_first(got, exact):
    """I through a kernel that starts as the identity and has learned once."""
    mean = got[:, 0].mean(axis=0)
    assert np.linalg.norm(mean - exact[0]) < 0.5 * np.linalg.norm(exact[0])


# What the gradients [draws, T, C, P] of the biased ones have in common with the exact ones [T, C, P].
RELATIONS = {
    "snap": exact_at_first,
    "sketched": exact_at_first,
    "e_prop": exact_at_first,
    "rflo": exact_at_first,
    "pp_prop": exact_at_first,
    "kernl": near_at_first,
    "truncated": zero,
}


# The cells that an estimator refuses: weights that reach other units, and a dense D.
REFUSED = {
    "diagonal_rtrl": set(SMALL_CELLS),
    "e_prop": {"deep_recurrent_highway"},
    "rflo": {"deep_recurrent_highway"},
    "pp_prop": {"deep_recurrent_highway"},
}


class Case(NamedTuple):
    """An estimator on a cell, and the keys of its draws, [draws, T]."""

    estimator: InfluenceEstimator
    exact: fidelity.Reference
    keys: jax.Array


def made(name):
    try:
        return ESTIMATORS[name](**ARGUMENTS.get(name, {}))
    except TypeError as error:
        pytest.fail(f"{error}: give its arguments in ARGUMENTS of tests/estimators/test_grid.py")


@functools.cache
def keys():
    return jax.random.split(jax.random.key(5), (DRAWS, STEPS))


LRU = cells.lru(input_size=INPUT_SIZE, hidden_size=HIDDEN_SIZE)
CELLS = {**SMALL_CELLS, "lru": LRU}
# The diagonal cell for those whose numbers have to do with it.
PAIRS = [
    *((cell, name) for cell in SMALL_CELLS for name in ESTIMATORS),
    *(("lru", name) for name in ("diagonal_rtrl", "kf_rtrl", "snap")),
]
TAKEN = [(cell, name) for cell, name in PAIRS if cell not in REFUSED.get(name, ())]
WHOLE = EAGER_ON | JIT_ON | DRAWN_ON
DRAWN = [
    *((cell, name) for cell, name in TAKEN if cell in WHOLE),
    *some(((cell, name) for cell, name in TAKEN if cell not in WHOLE), 3),
]


def case(name, cell):
    return Case(made(name), reference(CELLS[cell], STEPS), keys())


@pytest.mark.parametrize(("cell", "name"), [pair for pair in PAIRS if pair not in TAKEN])
def test_what_an_estimator_cannot_use_it_refuses(cell, name):
    with pytest.raises(UnsupportedCellError):
        made(name).init(reference(CELLS[cell], STEPS).trajectory.structure)


def along(case, keys, linearizations):
    """The gradients of the probes after each of the steps that there are keys for, [T, C, P]."""

    def step(state, xs):
        state = case.estimator.push(state, *xs)
        return state, gradients(case.estimator, state, case.exact.probes)

    first = case.estimator.init(case.exact.trajectory.structure)
    return jax.lax.scan(step, first, (linearizations, keys))[1]


def eager(case):
    """The gradient of the first probe, step by step and without any jit: [EAGER_STEPS, P]."""
    state = case.estimator.init(case.exact.trajectory.structure)
    after = []
    for t in range(EAGER_STEPS):
        linearization = jax.tree.map(
            lambda x, t=t: jnp.asarray(np.asarray(x)[t]), case.exact.trajectory.linearizations
        )
        state = case.estimator.push(state, linearization, case.keys[0, t])
        pulled = case.estimator.pull(state, case.exact.probes[0])
        after.append(np.concatenate([np.ravel(g) for g in pulled]))
    return np.stack(after)


def in_standard_errors(drawn, exact):
    """Of six projections after the last step."""
    directions = np.random.default_rng(6).standard_normal((6, *exact.shape[1:]))[:, :6]
    return fidelity.standardized(
        np.einsum("kcp,dcp->dk", directions, drawn[:, -1, :6]),
        np.einsum("kcp,cp->k", directions, exact[-1, :6]),
    )


@pytest.mark.parametrize(("cell", "name"), DRAWN)
def test_the_numbers_are_those_documented_and_the_same_in_eager_jit_and_vmap(cell, name):
    given = case(name, cell)
    linearizations = given.exact.trajectory.linearizations
    run = functools.partial(along, given)
    many = jax.jit(jax.vmap(run, in_axes=(0, None)), compiler_options=QUICK)
    drawn = np.asarray(many(given.keys, linearizations))
    if cell in JIT_ON:
        one = jax.jit(run, compiler_options=QUICK)(given.keys[0], linearizations)
        np.testing.assert_allclose(drawn[0], one, atol=1e-10)
    if cell in EAGER_ON:
        np.testing.assert_allclose(eager(given), drawn[0, :EAGER_STEPS, 0], atol=1e-10)

    exact = np.asarray(given.exact.gradients)
    if name in UNBIASED:
        assert np.max(in_standard_errors(drawn, exact)) < LIMIT
    elif name in RELATIONS:
        RELATIONS[name](drawn, exact)
    else:
        pytest.fail(
            f"{name} is not in UNBIASED of kfrtrl_jax/estimators: say in RELATIONS of "
            f"tests/estimators/test_grid.py what its gradients have in common with the exact ones"
        )


@pytest.mark.parametrize(("cell", "name"), TAKEN)
def test_a_single_precision_state_stays_as_it_is(cell, name):
    given = case(name, cell)
    trajectory = given.exact.trajectory
    structure = trajectory.structure._replace(dtype=jnp.dtype("float32"))
    single = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], jnp.float32), trajectory.linearizations
    )
    cotangent = jax.ShapeDtypeStruct((structure.batch_size, structure.state_size), structure.dtype)
    estimator, kinds = (
        given.estimator,
        functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype)),
    )
    state = jax.eval_shape(lambda: estimator.init(structure))
    pushed = jax.eval_shape(estimator.push, state, single, jax.random.key(0))
    assert kinds(pushed) == kinds(state)
    assert kinds(jax.eval_shape(estimator.pull, state, cotangent)) == tuple(
        ((site.input_size, site.output_size), jnp.dtype("float32")) for site in structure.sites
    )
