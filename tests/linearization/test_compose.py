"""Many steps as one, beside the steps one by one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax._src.composition import on_leak
from kfrtrl_jax._src.matrices import Banded
from kfrtrl_jax.cells import from_function
from kfrtrl_jax.linearization import compose, make_linearizer
from tests.helpers.interpreter import evaluated
from tests.helpers.nights import some
from tests.linearization.test_uses import CELLS as USES
from tests.trajectories import INPUT_SIZE, SMALL_CELLS, run

STEPS = 5
CELLS = {
    **SMALL_CELLS,
    "lru": cells.lru(input_size=INPUT_SIZE, hidden_size=4),
    "convolution": USES["gated"][0],
    "solver": USES["solver"][0],
}


# Several sites, a dense D, two leaves of the carry, a banded J, terms within a step: banded, dense.
FEW = ("deep_recurrent_highway", "lstm", "lru", "convolution", "solver")


@functools.cache
def steps_of(name):
    """(structure, single steps); lane 1 starts anew in the middle."""
    path = run(CELLS[name], STEPS)

    def linearize(carries, inputs, keeps):
        return jax.vmap(path.linearizer.linearize, (None, 0, 0, 0))(
            path.params, carries, inputs, keeps
        )

    steps = evaluated(linearize, path.carries, path.inputs, path.keep)
    return path.linearizer.structure, [
        jax.tree.map(lambda x, t=t: x[t], steps) for t in range(STEPS)
    ]


@functools.cache
def dense(name):
    """(J of all steps [B, n, n], Q_t D_t of every site [B, T, n, g]), in numpy."""
    _, steps = steps_of(name)
    jacobians, derivatives = evaluated(
        lambda steps: (
            [step.jacobian.dense() for step in steps],
            [[site.derivatives.dense() for site in step.sites] for step in steps],
        ),
        steps,
    )
    q, found = np.broadcast_to(np.eye(jacobians[0].shape[-1]), jacobians[0].shape), []
    for of_sites, jacobian in zip(derivatives[::-1], jacobians[::-1]):
        found.append([[q @ d for d in np.moveaxis(of_site, 1, 0)] for of_site in of_sites])
        q = q @ jacobian
    return q, [np.stack([*itertools.chain(*of_site[::-1])], axis=1) for of_site in zip(*found)]


def pushed(estimator, structure, steps, grouped=lambda steps: steps):
    """What an estimator holds after steps, put together as `grouped` says."""
    return evaluated(lambda steps: _pushed(estimator, structure, grouped(steps)), steps)


def _pushed(estimator, structure, linearizations):
    state = estimator.init(structure)
    for i, linearization in enumerate(linearizations):
        state = estimator.push(state, linearization, jax.random.key(i))
    shape = (structure.batch_size, structure.state_size)
    cotangents = jnp.eye(shape[0] * shape[1]).reshape(-1, *shape)
    return jax.vmap(lambda c: estimator.pull(state, c))(cotangents)


def close(got, want, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, want)


@pytest.mark.parametrize("name", ["vanilla", *FEW])
def test_the_jacobian_and_every_term_are_products_of_the_steps(name):
    _, steps = steps_of(name)
    jacobian, terms = dense(name)

    def composed(steps):
        whole = compose(steps)
        found = [site.derivatives.dense() for site in whole.sites]
        leaks = [step.leak.dense() for step in steps]
        return whole, whole.jacobian.dense(), found, whole.leak.dense(), leaks

    whole, *found, leak, leaks = evaluated(composed, steps)
    close(found, [jacobian, terms])
    close(leak, functools.reduce(lambda first, then: then @ first, leaks))
    # Lane 1 starts anew at step 2: what came before has no part.
    for k, site in enumerate(whole.sites):
        inputs = np.array(jnp.concatenate([s.sites[k].inputs for s in steps], axis=1))
        inputs[1, : 2 * inputs.shape[1] // STEPS] = 0
        close(site.inputs, inputs)
    np.testing.assert_array_equal(whole.keep, [0, 0])  # both lanes begin within


@pytest.mark.parametrize("name", FEW)
def test_vectors_go_step_by_step(name):
    _, steps = steps_of(name)
    jacobian, terms = dense(name)
    rng = np.random.default_rng(0)
    x, v = (rng.normal(size=(2, jacobian.shape[-1], *k)) for k in ((3,), ()))
    each = [rng.normal(size=(*d.shape[:2], d.shape[-1], 2)) for d in terms]

    def products(steps, x, v, each):
        whole = compose(steps)
        return whole.times(x), whole.vector_times(v), whole.times_each(each)

    by_vector, of_each = [np.einsum("bn,btng->btg", v, d) for d in terms], zip(terms, each)
    want = (jacobian @ x, by_vector, [d @ e for d, e in of_each])
    close(evaluated(products, steps, x, v, each), want)


@pytest.mark.parametrize("name", ["deep_recurrent_highway", "lstm"])
def test_composing_is_associative_and_takes_stacked_steps(name):
    structure, steps = steps_of(name)
    want = pushed(estimators.rtrl(), structure, steps)
    for grouped in (
        lambda s: [compose([compose(s[:2]), s[2], compose(s[3:])])],
        lambda s: [compose(jax.tree.map(lambda *x: jnp.stack(x), *s))],
        lambda s: [compose(s[:3]), compose(s[3:])],
    ):
        close(pushed(estimators.rtrl(), structure, steps, grouped), want)
    assert compose(steps[:1]) is steps[0]


# A push of several steps is as much as so many pushes, for the estimators without noise.
AS_SINGLES = {
    "rtrl": estimators.rtrl(),
    "snap": estimators.snap(),
    "snap(2)": estimators.snap(2),
    "e_prop": estimators.e_prop(),
    "rflo": estimators.rflo(),
    "diagonal_rtrl": estimators.diagonal_rtrl(2),
    "sketched": estimators.sketched(rank=64),
}
REFUSED = {
    "e_prop": {"deep_recurrent_highway", "convolution", "solver"},
    "rflo": {"deep_recurrent_highway", "convolution", "solver"},
    "diagonal_rtrl": {*SMALL_CELLS, "convolution", "solver"},
}


@pytest.mark.parametrize(
    ("name", "estimator"),
    some(
        (cell, name)
        for name in AS_SINGLES
        for cell in FEW
        if cell not in REFUSED.get(name, ()) and (cell, name) != ("lru", "rtrl")
    ),
)
def test_a_push_of_several_steps_is_so_many_pushes(name, estimator):
    structure, steps = steps_of(name)
    made = AS_SINGLES[estimator]
    want = pushed(made, structure, steps)
    got = pushed(made, structure, steps, lambda s: [compose(s[:3]), compose(s[3:])])
    close(got, want, atol=1e-10)


def test_banded_jacobians_stay_banded():
    _, steps = steps_of("lru")
    whole = evaluated(compose, steps)
    assert all(isinstance(block, Banded) for block in whole.jacobian.blocks)
    assert all(isinstance(g, Banded) for site in whole.sites for g in site.derivatives.groups)


def test_the_leak_alone():
    structure, steps = steps_of("lstm")
    want = pushed(
        estimators.rtrl(), structure, steps, lambda s: [x._replace(jacobian=x.leak) for x in s]
    )
    got = pushed(estimators.rtrl(), structure, steps, lambda s: [on_leak(compose(s))])
    close(got, want)


def test_what_came_before_a_start_is_nothing_even_where_it_is_infinite():
    """A root of the state has an infinite derivative where the state is 0."""

    def step(params, h, x):
        h = jnp.sqrt(jnp.abs(params["w"] @ h)) + x
        return h, h

    cell = from_function(
        step, init=lambda key: {"w": jnp.eye(3)}, initial_carry=lambda: jnp.ones(3)
    )
    linearizer = make_linearizer(cell, jnp.zeros(3), 2)
    params, x = cell.init(jax.random.key(0)), jnp.ones((2, 3))

    def linearized(state, keep):
        return linearizer.linearize(params, jnp.full((2, 3), state), x, jnp.asarray(keep))

    before = linearized(0.0, [1.0, 1.0])
    assert not np.all(np.isfinite(before.sites[0].derivatives.dense()))
    start, after = linearized(1.0, [0.0, 0.0]), linearized(0.7, [1.0, 1.0])
    whole, expected = compose([before, start, after]), compose([start, after])
    for estimator in (estimators.kf_rtrl(), estimators.snap()):
        first = estimator.init(linearizer.structure)
        state = jax.jit(estimator.push)(first, whole, jax.random.key(0))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
    close(
        pushed(estimators.rtrl(), linearizer.structure, [whole]),
        pushed(estimators.rtrl(), linearizer.structure, [expected]),
    )


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least one step"):
        compose([])
