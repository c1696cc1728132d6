import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import cells, estimators
from kfrtrl_jax._src.estimators.sketched import resized
from kfrtrl_jax._src.matrices import Banded, BlockColumns, Dense, single
from kfrtrl_jax.base import Linearization, Mask, SiteJacobian
from kfrtrl_jax.linearization import make_linearizer
from tests.helpers.nights import at_night
from tests.trajectories import INPUT_SIZE, SMALL_CELLS, run

STEPS = 10
# Most of the time goes into compiling.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def along(name):
    """A small cell's structure, and its linearizations, [T, ...]; lane 1 starts anew in the middle."""
    structures = []

    @quick_jit
    def linearizations():
        made = run(SMALL_CELLS[name], STEPS)
        structures.append(made.linearizer.structure)
        linearize = functools.partial(made.linearizer.linearize, made.params)
        _, stacked = jax.lax.scan(
            lambda _, xs: (None, linearize(*xs)), None, (made.carries, made.inputs, made.keep)
        )
        return stacked

    made = linearizations()
    return structures[0], made


@functools.partial(quick_jit, static_argnames="push")
def follow(push, linearizations, state):
    """The state after every step, [T, ...]."""

    def step(state, linearization):
        state = push(state, linearization, jax.random.key(0))
        return state, state

    return jax.lax.scan(step, state, linearizations)[1]


@functools.cache
def sketch(*arguments):
    return estimators.sketched(*arguments)


@functools.cache
def sketch_of(name, *arguments):
    structure, linearizations = along(name)
    estimator = sketch(*arguments)
    return follow(estimator.push, linearizations, estimator.init(structure))


def whole(matrix):
    """All entries of a matrix of this library, [..., rows, columns]."""
    values = np.asarray(matrix.values)
    if isinstance(matrix, Dense):
        return values
    entries = np.zeros((*values.shape[:-2], *matrix.shape))
    for band, columns in enumerate(matrix.columns.array):
        present = np.flatnonzero(columns >= 0)
        entries[..., present, columns[present]] = values[..., band, present]
    return entries


def on_pattern(states):
    """S, [..., n, P]."""
    sites = [np.swapaxes(whole(s), -3, -2) for s in states.sparse]
    return np.concatenate([s.reshape(*s.shape[:-2], -1) for s in sites], axis=-1)


def influence(states):
    """G~, [..., n, P]."""
    factors, sites = iter(states.parameter_factors), []
    for s in states.sparse:
        site = np.swapaxes(whole(s), -3, -2)
        if isinstance(s, Banded):
            site = site + np.einsum("...nr,...rmg->...nmg", states.state_factor, next(factors))
        sites.append(site.reshape(*site.shape[:-2], -1))
    return np.concatenate(sites, axis=-1)


# Step by step: the weights in what is not multiplied out have an axis of steps and none of lanes.
blocks = quick_jit(jax.vmap(lambda jacobian: jacobian.blocks))


def jacobians(linearizations):
    """J, [T, B, n, n]."""
    return np.concatenate([whole(b) for b in blocks(linearizations.jacobian)], axis=-1)


def exact(linearizations):
    """G, [T, B, n, P]."""
    immediate = [
        np.einsum("tbm,tbng->tbnmg", site.inputs[:, :, 0], whole(site.derivatives.groups[0])[:, 0])
        for site in linearizations.sites
    ]
    immediate = np.concatenate([x.reshape(*x.shape[:3], -1) for x in immediate], axis=-1)
    matrices = [np.zeros_like(immediate[0])]
    for jacobian, i in zip(jacobians(linearizations), immediate, strict=True):
        matrices.append(jacobian @ matrices[-1] + i)
    return np.stack(matrices[1:])


def norms(x):
    return np.linalg.norm(x, axis=(-2, -1))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lstm", (3,)),
        ("recurrent_highway", (3, 0.5, 2)),
        *at_night(("vanilla", (2,)), ("gru", (4, 0.5))),
    ],
)
def test_every_step_is_the_best_of_its_rank_and_within_the_bound(name, arguments):
    """As the definition has it, with whole matrices and their singular values."""
    rank, tolerance, squarings = (*arguments, 0, 0)[:3]
    states, linearizations = sketch_of(name, *arguments), along(name)[1]
    truth, kept, got = exact(linearizations), on_pattern(states), influence(states)
    before, bound = [np.zeros_like(truth[0])] * 2, np.zeros(2)
    in_use = np.asarray(states.rank_in_use)
    for t, jacobian in enumerate(jacobians(linearizations)):
        target = truth[t] + jacobian @ (before[1] - before[0])
        for lane in range(2):
            u, sigma, v = np.linalg.svd((target - kept[t])[lane], full_matrices=False)
            order = 2 ** (squarings + 1)
            gain = np.sum(np.linalg.svd(jacobian[lane])[1] ** order) ** (1 / order)
            one, infinity = (np.linalg.norm(jacobian[lane], p) for p in (1, np.inf))
            gain = min(gain, np.sqrt(one * infinity))
            of_rank = [
                (
                    kept[t, lane] + (u[:, :k] * sigma[:k]) @ v[:k],
                    gain * bound[lane] + np.linalg.norm(sigma[k:]),
                )
                for k in range(rank + 1)
            ]
            enough = [e <= tolerance * np.linalg.norm(g) for g, e in of_rank]
            k = enough.index(True) if tolerance and any(enough) else rank
            assert in_use[t, lane] == k
            np.testing.assert_allclose(got[t, lane], of_rank[k][0], atol=1e-7)
            bound[lane] = of_rank[k][1]
            used = np.arange(rank) < k
            factor = np.asarray(states.state_factor[t, lane])
            np.testing.assert_allclose(factor.T @ factor, np.diag(used), atol=1e-12)
            assert all(np.all(r[t, lane, k:] == 0) for r in states.parameter_factors)
        np.testing.assert_allclose(states.error_bound[t], bound, rtol=1e-6, atol=1e-7)
        assert np.all(norms(got[t] - truth[t]) <= bound + 1e-7)
        before = [truth[t], got[t]]
    assert np.any(norms(got - truth) > 1e-3)
    if tolerance:
        assert len(np.unique(in_use)) > 2


def test_it_is_rtrl_with_rank_n():
    """And with sites of either kind."""
    structure, linearizations = along("deep_recurrent_highway")
    assert {site.columns is None for site in structure.sites} == {True, False}
    states = sketch_of("deep_recurrent_highway", 100)
    assert states.state_factor.shape[2:] == (4, 4)
    np.testing.assert_allclose(influence(states), exact(linearizations), atol=1e-12)
    assert np.all(states.error_bound == 0)


def test_it_is_snap_with_rank_zero_and_errs_less_with_a_higher_rank():
    structure, linearizations = along("lstm")
    snap, states = estimators.snap(), sketch_of("lstm", 0)
    truth, got = exact(linearizations), influence(states)
    # To rounding: as parts of two programs, sums may be taken in another order.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-14),
        states.sparse,
        follow(snap.push, linearizations, snap.init(structure)).influence,
    )
    np.testing.assert_array_equal(got, on_pattern(states))
    error = norms(got - truth)
    assert np.all(error <= states.error_bound + 1e-12)
    # The first step after a start that leaves anything out: the bound is the error.
    np.testing.assert_allclose(states.error_bound[1], error[1], rtol=1e-7)
    better = norms(influence(sketch_of("lstm", 3)) - truth)
    assert np.mean(better) < 0.4 * np.mean(error)


def test_it_is_exact_where_j_connects_no_units_of_different_weights():
    structure, linearizations = along("vanilla")
    diagonal = np.eye(4) * jacobians(linearizations)
    linearizations = linearizations._replace(jacobian=BlockColumns((Dense(diagonal),)))
    states = follow(sketch(2).push, linearizations, sketch(2).init(structure))
    np.testing.assert_allclose(influence(states), exact(linearizations), atol=1e-12)
    assert np.all(states.error_bound == 0)
    assert all(np.all(r == 0) for r in states.parameter_factors)


def test_it_is_exact_where_every_derivative_is_dense():
    structure, linearizations = along("deep_recurrent_highway")
    dense = [k for k, site in enumerate(structure.sites) if site.columns is None]
    structure, linearizations = (
        x._replace(sites=tuple(x.sites[k] for k in dense)) for x in (structure, linearizations)
    )
    states = follow(sketch(2).push, linearizations, sketch(2).init(structure))
    np.testing.assert_allclose(influence(states), exact(linearizations), atol=1e-12)
    figures = jax.jit(sketch(2).diagnostics)(jax.tree.map(lambda x: x[-1], states))
    assert all(x == 0 for x in figures.values())


def test_absent_weights_have_no_part():
    structure, linearizations = along("vanilla")
    (site,) = structure.sites
    present = np.arange(site.input_size * 4).reshape(site.input_size, 4) % 3 > 0
    structure = structure._replace(sites=(site._replace(weights_mask=Mask(present)),))
    states = follow(sketch(2).push, linearizations, sketch(2).init(structure))
    truth, got = exact(linearizations) * present.ravel(), influence(states)
    assert np.all(got[..., ~present.ravel()] == 0)
    error = norms(got - truth)
    np.testing.assert_allclose(states.error_bound[1], error[1], rtol=1e-7)
    assert np.all(error <= states.error_bound + 1e-12)
    for lane in range(2):
        sigma = np.linalg.svd((truth - on_pattern(states))[1, lane], compute_uv=False)
        np.testing.assert_allclose(error[1, lane], np.linalg.norm(sigma[2:]), rtol=1e-7)


def test_gradients_and_diagnostics_are_those_of_the_whole_matrix():
    state = jax.tree.map(lambda x: x[-1], sketch_of("lstm", 3))
    matrix = influence(state)
    cotangent = jax.random.normal(jax.random.key(0), (2, 8))
    (gradient,), figures = jax.jit(
        lambda: (sketch(3).pull(state, cotangent), sketch(3).diagnostics(state))
    )()
    expected = np.einsum("bn,bnp->p", cotangent, matrix)
    np.testing.assert_allclose(gradient.ravel(), expected, atol=1e-12)
    assert figures["low_rank_norm"] == pytest.approx(np.mean(norms(matrix - on_pattern(state))))
    assert figures["error_bound"] == pytest.approx(np.mean(state.error_bound))
    assert figures["error_bound_max"] == pytest.approx(np.max(state.error_bound))
    relative = np.mean(state.error_bound / norms(matrix))
    assert figures["relative_error_bound"] == pytest.approx(relative)
    assert figures["rank_in_use"] == 3


def test_resizing_keeps_the_leading_components_and_the_bound():
    linearizations = along("lstm")[1]
    state = jax.tree.map(lambda x: x[4], sketch_of("lstm", 3))
    smaller, again, nothing = jax.jit(
        lambda: (resized(state, 1), resized(resized(state, 1), 3), resized(state, 0))
    )()
    assert smaller.state_factor.shape == (2, 8, 1)
    assert np.all(smaller.rank_in_use == 1)
    dropped = norms(influence(smaller) - influence(state))
    assert np.all(dropped > 1e-3)
    np.testing.assert_allclose(smaller.error_bound, state.error_bound + dropped, rtol=1e-12)
    assert again.state_factor.shape == (2, 8, 3)
    np.testing.assert_array_equal(influence(again), influence(smaller))
    assert jax.eval_shape(lambda: resized(state, 100)).state_factor.shape == (2, 8, 8)
    assert all(x.size == 0 for x in nothing.parameter_factors)
    # What follows, in an order of steps that has the length of the whole, so as to compile nothing.
    after = jax.tree.map(lambda x: np.roll(x, -5, axis=0), linearizations)
    states = jax.tree.map(lambda x: x[:5], follow(sketch(3).push, after, again))
    error = norms(influence(states) - exact(linearizations)[5:])
    assert np.all(error <= states.error_bound + 1e-12)
    # The estimator goes on with the rank that it is given.
    first = jax.tree.map(lambda x: x[0], after)
    assert jax.eval_shape(sketch(3).push, smaller, first, None).state_factor.shape == (2, 8, 1)


def test_ten_thousand_steps_in_single_precision_stay_finite():
    """With saturation (D = 0) and repeated steps; one lane starts anew, the other's bound explodes."""
    n, dtype = 8, jnp.float32
    linearizer = make_linearizer(cells.vanilla(input_size=3, hidden_size=n), jnp.zeros(3), 2)
    (shape,) = linearizer.structure.sites
    rng = np.random.default_rng(0)
    # Orthogonal, so that the first lane's influence stays in range, but its bound grows at any step.
    orthogonal = jnp.asarray(np.linalg.qr(rng.normal(size=(4, n, n)))[0], dtype)
    inputs = jnp.asarray(rng.normal(size=(4, 2, shape.input_size)), dtype)
    derivatives = jnp.asarray(rng.normal(size=(4, 2, 1, n)), dtype)

    def step(estimator, state, key):
        which, saturated = jax.random.randint(key, (), 0, 4), jax.random.bernoulli(key, 0.1)
        starts = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.05)
        gains = jnp.stack([1, jnp.where(starts | saturated, 0, 0.9)]).astype(dtype)
        d = jnp.where(saturated, 0, derivatives[which])
        site = SiteJacobian(inputs[which][:, None], single(Banded(d, shape.columns, n)))
        jacobian = BlockColumns((Dense(gains[:, None, None] * orthogonal[which]),))
        keep = (gains != 0).astype(dtype)
        state = estimator.push(state, Linearization(jacobian, (site,), jacobian, keep), key)
        sizes = [jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(state) if x.dtype != jnp.int32]
        return state, jnp.stack(sizes)

    def along_all(key, tolerance):
        estimator = estimators.sketched(3, tolerance)
        start = estimator.init(linearizer.structure._replace(dtype=dtype))
        keys = jax.random.split(key, 10_000)
        return jax.lax.scan(functools.partial(step, estimator), start, keys)

    keys, tolerances = jax.random.split(jax.random.key(2)), jnp.asarray([0.0, 0.5])
    states, sizes = jax.jit(jax.vmap(along_all))(keys, tolerances)
    assert sizes.dtype == dtype
    assert jnp.all(jnp.isfinite(sizes[..., :-1]))
    assert jnp.all(sizes[:, -1, :-1] > 0)
    np.testing.assert_array_equal(states.error_bound[:, 0], jnp.finfo(dtype).max)
    assert jnp.all(states.error_bound[:, 1] < 1e30)


def test_nothing_as_large_as_the_influence_matrix_is_made():
    cell = cells.lstm(input_size=16, hidden_size=16)
    linearizer = make_linearizer(cell, jnp.zeros(16), 1)
    estimator = estimators.sketched(2)

    def push():
        carry = tuple(c[None] for c in cell.initial_carry())
        params = cell.init(jax.random.key(0))
        linearization = linearizer.linearize(params, carry, jnp.zeros((1, 16)), jnp.ones(1))
        state = estimator.init(linearizer.structure)
        made = jax.make_jaxpr(estimator.push)(state, linearization, None)
        sizes.extend(v.aval.size for v in _results(made.jaxpr))
        return state

    sizes = []
    state = jax.eval_shape(push)
    (site,) = linearizer.structure.sites
    n, weights = 32, site.input_size * site.output_size
    assert len(site.columns.array) == 7
    assert max(sizes) <= 7 * n * max(n, site.input_size) < n * weights
    stored = 7 * n * site.input_size + 2 * (n + weights) + 2
    assert sum(x.size for x in jax.tree.leaves(state)) == stored


def _results(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _results(inner)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": -1}, "rank must be at least 0, got -1"),
        ({"rank": 1, "squarings": -1}, "squarings must be at least 0, got -1"),
        ({"rank": 1, "tolerance": -0.5}, "tolerance must be at least 0, got -0.5"),
        (
            {"rank": 1, "tolerance": float("nan")},
            "tolerance must be at least 0, got nan",
        ),
    ],
)
def test_sketched_refuses_negative_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimators.sketched(**arguments)


def test_resized_refuses_a_negative_rank():
    structure = make_linearizer(SMALL_CELLS["vanilla"], jnp.zeros(INPUT_SIZE), 2).structure
    state = jax.eval_shape(lambda: estimators.sketched(1).init(structure))
    with pytest.raises(ValueError, match="rank must be at least 0, got -2"):
        resized(state, -2)
