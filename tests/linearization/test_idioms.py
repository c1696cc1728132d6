"""Cells in idioms that public code is full of: the exact gradient, or a refusal by name.

Exact means that `rtrl`, and backpropagation through a whole segment, equal `jax.grad` of the loss of
the cell as it is, unrolled.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax import cells, estimators, linearization, readouts
from kfrtrl_jax._src.base import Batch
from kfrtrl_jax._src.lanes import initial_lanes, restarted
from kfrtrl_jax.base import Cell
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.learning import make_learner
from kfrtrl_jax.linearization import make_linearizer
from tests.helpers.interpreter import evaluated, traced
from tests.helpers.nights import some
from tests.linearization.operations import IN_A_LOOP

N, X, STEPS, LANES = 4, 3, 6, 2
RESET = np.zeros((STEPS, LANES), bool)
RESET[3, 1] = True


def squared_error(prediction, target):
    return jnp.sum((prediction - target) ** 2)


def real(output):
    return jnp.concatenate([output.real, output.imag]) if jnp.iscomplexobj(output) else output


def readout_for(size):
    linear = readouts.linear(input_size=size, output_size=2, init_scale=0.4)
    return linear._replace(apply=lambda params, output: linear.apply(params, real(output)))


def is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def errors(cell, output_size, estimator, segment_length):
    """By parameter, |gradient - jax.grad| / |jax.grad|, summed over a sequence with a restart."""
    generator = np.random.default_rng(0)
    inputs = jnp.asarray(generator.normal(size=(STEPS, LANES, X)))
    targets = jnp.asarray(generator.normal(size=(STEPS, LANES, 2)))
    readout = readout_for(output_size)
    learner = make_learner(
        cell,
        readout,
        estimator,
        optax.sgd(0.0),
        batch_size=LANES,
        example_input=inputs[0, 0],
        segment_length=segment_length,
        loss=squared_error,
    )
    state = learner.init(jax.random.key(1))
    parameters, first = state.parameters, state.carry
    batches = Batch(inputs, targets, jnp.asarray(RESET))
    gradient, step = None, None
    for t in range(0, STEPS, segment_length):
        segment = jax.tree.map(lambda leaf, t=t: leaf[t : t + segment_length], batches)
        step = step or traced(learner.gradient, state, segment)
        found, state, _ = step(state, segment)
        scaled = jax.tree.map(lambda leaf: segment_length * leaf, found)
        gradient = scaled if gradient is None else jax.tree.map(jnp.add, gradient, scaled)

    constants = {k: v for k, v in parameters["cell"].items() if not is_float(v)}

    def total(floats):
        params, result = {**floats, **constants}, 0.0
        for lane in range(LANES):
            carry = jax.tree.map(lambda leaf, lane=lane: leaf[lane], first)
            for t in range(STEPS):
                if RESET[t, lane]:
                    alone = jax.tree.map(lambda leaf: leaf[None], carry)
                    again = restarted(cell, alone, jnp.ones(1, bool))
                    carry = jax.tree.map(lambda leaf: leaf[0], again)
                carry, output = cell.step(params, carry, inputs[t, lane])
                prediction = readout.apply(parameters["readout"], output)
                result += squared_error(prediction, targets[t, lane])
        return result / LANES

    floats = {k: v for k, v in parameters["cell"].items() if is_float(v)}
    expected = evaluated(jax.grad(total), floats)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in expected.values())
    assert all(gradient["cell"][name] is None for name in constants)
    return {
        name: float(jnp.linalg.norm(gradient["cell"][name] - g) / (1e-12 + jnp.linalg.norm(g)))
        for name, g in expected.items()
    }


def init(**shapes):
    shapes = shapes or {"w": (X, N), "r": (N, N), "b": (N,)}

    def make(key):
        keys = jax.random.split(key, len(shapes))
        return {
            name: 0.5 * jax.random.normal(k, shape, dtype)
            for k, (name, (*shape, dtype)) in zip(
                keys,
                ((n, s if isinstance(s[-1], type) else (*s, float)) for n, s in shapes.items()),
            )
        }

    return make


def simple(step, **shapes):
    """A cell of N units that starts at zero."""
    return Cell(init(**shapes), lambda: jnp.zeros(N), step)


def skip(p, h, x):
    summand = x @ p["w"]
    h = jnp.tanh(summand + h @ p["r"] + p["b"])
    return h, h + summand


def output_gate(p, h, x):
    z = x @ p["w"] + h @ p["r"] + p["b"]
    return jnp.tanh(z), jax.nn.sigmoid(z + p["c"] * x[0] + h @ p["v"]) * h


def reads_the_whole(p, h, x):
    """The state takes the parts of a product, the output the whole."""
    whole = jnp.concatenate([x, h]) @ p["w"]
    gate, candidate = jnp.split(whole, 2)
    return jax.nn.sigmoid(gate) * jnp.tanh(candidate), jnp.sin(whole)


@jax.custom_vjp
def mixing_spike(v):
    return (v > 0).astype(v.dtype)


mixing_spike.defvjp(
    lambda v: (mixing_spike(v), v),
    lambda v, g: ((g + 0.5 * jnp.roll(g, 1)) / (1 + jnp.abs(v)) ** 2,),
)


@jax.custom_vjp
def silent(v):
    return jnp.ones_like(v)


silent.defvjp(lambda v: (silent(v), v), lambda v, g: (g * jax.nn.sigmoid(v),))


@jax.custom_jvp
def dense_rule(v):
    return jnp.tanh(v)


dense_rule.defjvp(lambda p, t: (dense_rule(*p), t[0] + jnp.mean(t[0] * p[0])))


@jax.custom_vjp
def looped_rule(v):
    return jnp.tanh(v)


# Linear, though no form of it says so.
looped_rule.defvjp(
    lambda v: (looped_rule(v), None),
    lambda _, g: (jax.lax.scan(lambda s, x: (0.5 * s + x, s + x), 0.0 * g[0], g)[1],),
)


def with_function(f):
    def step(p, h, x):
        h = 0.8 * h + x @ p["w"] + f(h) @ p["r"] + p["b"]
        return h, h

    return simple(step)


def complex_inside(p, s, x):
    decay = jnp.exp(-jnp.exp(p["nu"]) + 1j * p["theta"])
    z = decay * jax.lax.complex(*s) + jax.lax.complex(p["u"] @ x, p["v"] @ x)
    return (z.real, z.imag), z.real


def complex_lru(p, z, x):
    """Complex parameters and carry; holomorphic."""
    z = jnp.exp(-jnp.exp(p["nu"]) + 1j * p["theta"]) * z + x @ p["b"]
    return z, z @ p["c"]


def not_holomorphic(p, z, x):
    z = jnp.tanh(jnp.abs(z) + (x @ p["b"]).real) * jnp.conj(z @ p["r"]) + p["c"] / (2 + x[0])
    return z / (1 + jnp.abs(z)), z * jnp.conj(z) + p["c"]


def fourier(p, h, x):
    spectrum = jnp.fft.rfft(h) * p["gain"]
    h = jnp.tanh(jnp.fft.irfft(spectrum, N) + x @ p["w"])
    return h, h


def complex_scan(p, h, x):
    """The iterations carry complex numbers and parameters meet them there."""

    def one(z, _):
        return jnp.tanh(z.real) + 1j * (z @ p["r"]).imag, None

    z, _ = jax.lax.scan(one, h + 1j * (x @ p["w"]), None, length=3)
    return jnp.tanh(z.real + z.imag), z


def root(p, h, x):
    """The derivative of the square root is infinite at the first state."""
    h = jnp.tanh(x @ p["w"] + jnp.sqrt(h) @ p["r"] + p["b"]) ** 2
    return h, h


def unit_length(p, h, x):
    h = jnp.tanh(x @ p["w"] + h / (jnp.linalg.norm(h) + 1e-6) @ p["r"] + p["b"])
    return h, h


def untaken(p, h, x):
    """Of the branch that is not taken the value, or its derivative, is infinite."""

    def taken(v):
        return v @ p["r"] + p["b"]

    def infinite(v):
        return jnp.sqrt(v - v) @ p["r"] + 1 / (v - v) * p["b"] + jnp.sqrt((v - v) @ p["r"])

    h = jnp.tanh(x @ p["w"] + jax.lax.cond(jnp.sum(h) > -9, taken, infinite, h))
    return h, h


def untaken_in_a_loop(p, h, x):
    def one(i, v):
        return jax.lax.cond(jnp.sum(v) > -9, jnp.sin, lambda v: jnp.sqrt(v - v), v)

    h = jnp.tanh(x @ p["w"] + jax.lax.fori_loop(0, 3, one, h) @ p["r"] + p["b"])
    return h, h


def switched(p, h, x):
    which = jnp.clip((2 * x[0]).astype(int) + 1, 0, 2)
    branches = [lambda v: v @ p["r"], lambda v: v * p["b"], lambda v: jnp.log(1 + v**2) + p["b"]]
    h = jnp.tanh(x @ p["w"] + jax.lax.switch(which, branches, h))
    return h, h


def wired(p, h, x):
    h = jnp.where(p["on"], jnp.tanh(x @ p["w"] + h[p["perm"]] @ p["r"] + p["b"]), 0.5 * h)
    return h + 0.1 * jax.random.normal(p["key"], (N,)), h


def wired_init(key):
    constants = {
        "perm": jnp.arange(N)[::-1],
        "on": jnp.arange(N) != 1,
        "key": jax.random.key(5),
    }
    return {**init()(key), **constants}


def noisy(make_key):
    def step(p, carry, x):
        h, key = carry
        key, now = jax.random.split(key)
        h = jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"] + jax.random.normal(now, (N,)))
        return (h, key), h

    return Cell(init(), lambda: (jnp.zeros(N), make_key(0)), step)


def many_heads(p, h, x):
    heads = jnp.einsum("hi,hio->ho", h.reshape(70, 2), p["r"]).reshape(-1)
    h = jnp.tanh(x @ p["w"] + heads)
    return h, h[:N]


def long_scan(p, h, x):
    # Many small steps, after which something of the past is left.
    def small(v, _):
        return v + 0.01 * jnp.tanh(v @ p["r"] + p["b"]), None

    h = jax.lax.scan(small, h, None, length=100)[0]
    return jnp.tanh(h + x @ p["w"]), h


def long_loop(p, h, x):
    for _ in range(70):
        h = h + 0.01 * jnp.tanh(p["r"].T @ h + p["b"])
    return jnp.tanh(h + x @ p["w"]), h


def printing_alike(p, h, x):
    """Loops over the same parameter, with tables that their jaxprs do not print."""
    first, second = IN_A_LOOP
    h = jnp.tanh(x @ p["w"] + first(p["b"]) * (h @ p["r"]) + second(p["b"]))
    return h, h


def tables_alike(p, h, x):
    """The same of a constant, read by the output alone: no derivative depends on it."""
    h = jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"])
    return h, jnp.concatenate([h + table(jnp.ones(N)) for table in IN_A_LOOP])


EXACT = {
    "output reads a summand": (simple(skip), N),
    "output gate": (simple(output_gate, w=(X, N), r=(N, N), b=(N,), c=(N,), v=(N, N)), N),
    "output reads the whole of what is split": (simple(reads_the_whole, w=(X + N, 2 * N)), 2 * N),
    "rule mixes neighbours": (with_function(mixing_spike), N),
    "rule of a constant": (with_function(silent), N),
    "rule is denser than its function": (with_function(dense_rule), N),
    "rule is linear by trial": (with_function(looped_rule), N),
    "complex numbers inside": (
        Cell(
            init(nu=(N,), theta=(N,), u=(N, X), v=(N, X)),
            lambda: (jnp.zeros(N), jnp.zeros(N)),
            complex_inside,
        ),
        N,
    ),
    "complex parameters and carry": (
        Cell(
            init(nu=(N,), theta=(N,), b=(X, N, complex), c=(N, N, complex)),
            lambda: jnp.zeros(N, complex),
            complex_lru,
        ),
        2 * N,
    ),
    "not holomorphic": (
        Cell(
            init(b=(X, N, complex), r=(N, N, complex), c=(N, complex)),
            lambda: jnp.zeros(N, complex),
            not_holomorphic,
        ),
        2 * N,
    ),
    "Fourier transform": (simple(fourier, gain=(N // 2 + 1,), w=(X, N)), N),
    "complex scan": (simple(complex_scan, w=(X, N), r=(N, N)), 2 * N),
    "infinite derivative at the first state": (simple(root), N),
    "no derivative at the first state": (simple(unit_length), N),
    "infinite branch": (simple(untaken), N),
    "infinite branch in a loop": (simple(untaken_in_a_loop), N),
    "switch": (simple(switched), N),
    "constants among the parameters": (Cell(wired_init, lambda: jnp.zeros(N), wired), N),
    "typed key in the carry": (noisy(jax.random.key), N),
    "raw key in the carry": (noisy(jax.random.PRNGKey), N),
    "many heads": (
        Cell(init(w=(X, 140), r=(70, 2, 2)), lambda: jnp.zeros(140), many_heads),
        N,
    ),
    "loops that print alike": (simple(printing_alike), N),
    "tables that print alike": (simple(tables_alike), 2 * N),
    "long scan": (simple(long_scan), N),
    "long loop": (simple(long_loop), N),
}


@pytest.mark.parametrize("name", [name for name in EXACT if name != "long loop"])  # for time
def test_gradients_are_those_of_the_unrolled_loss(name):
    cell, size = EXACT[name]
    found = errors(cell, size, estimators.rtrl(), segment_length=3)
    assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize("name", ["output reads a summand", "complex parameters and carry"])
def test_a_segment_of_all_steps_is_plain_backpropagation(name):
    cell, size = EXACT[name]
    found = errors(cell, size, estimators.truncated(), STEPS)
    assert max(found.values()) < 1e-9, found


@pytest.mark.self_check
@pytest.mark.parametrize("name", some(list(EXACT)[:-1], 8))  # the last one is a long loop
def test_the_library_checks_them_itself(name):
    report = linearization.check(EXACT[name][0], jnp.zeros(X))
    assert report.precision == "float64"
    assert report.points >= 2
    assert max([report.jacobian, report.segment, *report.parameters.values()]) < 1e-9


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_keys_of_either_form_differ_between_lanes_and_outlive_restarts(make):
    cell = noisy(make)
    params = cell.init(jax.random.key(1))
    one = jax.vmap(lambda carry: cell.step(params, carry, jnp.zeros(X))[0])
    first = one(initial_lanes(cell, 2))
    again = one(restarted(cell, first, jnp.ones(2, bool)))
    assert not np.allclose(first[0][0], first[0][1])
    assert not np.allclose(first[0], again[0])


def test_many_heads_are_one_site():
    structure = make_linearizer(EXACT["many heads"][0], jnp.zeros(X), 1).structure
    estimators.kf_rtrl().init(structure)
    (site,) = structure.sites
    assert (site.input_size, site.output_size) == (X + 140, 140)
    assert site.weights_mask.array.sum() == (X + 2) * 140


def test_a_long_scan_stays_one():
    structure = make_linearizer(EXACT["long scan"][0], jnp.zeros(X), 1).structure
    estimators.kf_rtrl().init(structure)
    assert sorted(site.uses for site in structure.sites) == [1, 100]


def test_operations_past_the_limit_are_not_followed_one_by_one():
    structure = make_linearizer(EXACT["long loop"][0], jnp.zeros(X), 1).structure
    assert len(structure.sites) <= 3
    with pytest.raises(UnsupportedCellError, match="more than 64 times"):
        estimators.kf_rtrl().init(structure)


def clipped(v):
    return v


CLIPPED = jax.custom_vjp(clipped)
CLIPPED.defvjp(lambda v: (v, None), lambda _, g: (jnp.clip(g, -1, 1),))
NORMALIZED = jax.custom_vjp(clipped)
NORMALIZED.defvjp(lambda v: (v, None), lambda _, g: (g / (1e-6 + jnp.linalg.norm(g)),))


@pytest.mark.parametrize("rule", [CLIPPED, NORMALIZED])
def test_rules_that_are_no_linear_map_are_refused_by_name(rule):
    with pytest.raises(
        UnsupportedCellError, match=r"custom_vjp_call at test_idioms.py:\d+.*linear"
    ):
        make_linearizer(with_function(rule), jnp.zeros(X), 1)


def test_loops_without_a_derivative_are_refused_by_name():
    def step(p, h, x):
        h = jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"])
        h = jax.lax.while_loop(lambda v: jnp.sum(v) > 1, lambda v: 0.5 * v, h)
        return h, h

    with pytest.raises(UnsupportedCellError, match=r"while at test_idioms.py:\d+"):
        make_linearizer(simple(step), jnp.zeros(X), 1)


def test_integers_that_look_like_a_key_and_keys_that_do_not_are_refused():
    def counting(p, carry, x):
        h, count = carry
        return (jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"] + count[0]), count + 1), h

    cell = Cell(init(), lambda: (jnp.zeros(N), jnp.zeros(2, jnp.uint32)), counting)
    with pytest.raises(UnsupportedCellError, match=r"carry: 1 is uint32\[2\], the form of a raw"):
        make_linearizer(cell, jnp.zeros(X), 1)

    def drawing(p, carry, x):
        h, bits = carry
        noise = jax.random.normal(bits[:2], (N,))
        return (jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"] + noise), bits + 1), h

    cell = Cell(init(), lambda: (jnp.zeros(N), jnp.zeros(3, jnp.uint32)), drawing)
    with pytest.raises(UnsupportedCellError, match=r"carry: 1 is uint32\[3\] and is read as a raw"):
        make_linearizer(cell, jnp.zeros(X), 1)


def folded(p, carry, x):
    """A step that folds numbers of its carry into a key; what is kept of them is not changed."""
    h, key, numbers = carry
    noise = jax.random.normal(jax.random.fold_in(key, numbers[0]), (N,))
    h = jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"] + noise)
    return (h, key, numbers), h


def folded_and_counted(p, carry, x):
    (h, key, numbers), output = folded(p, carry, x)
    return (h, key, numbers + 1), output


def folded_in_a_loop(p, carry, x):
    h, key, numbers = carry

    def one(h, _):
        noise = jax.random.normal(jax.random.fold_in(key, numbers[0]), (N,))
        return jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"] + noise), None

    h, _ = jax.lax.scan(one, h, None, length=70)
    return (h, key, numbers + 1), h


def read_as_an_index(p, carry, x):
    h, key, numbers = carry
    h = jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"][numbers[0]])
    return (h, key, numbers), h


def handed_out(p, carry, x):
    h, key, numbers = carry
    return (jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"]), key, numbers), (h, numbers)


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize(
    "step", [folded, folded_and_counted, folded_in_a_loop, read_as_an_index, handed_out]
)
def test_numbers_in_the_form_of_a_raw_key_are_none(step, make):
    """They would be drawn anew for each lane, and outlive restarts."""
    cell = Cell(init(), lambda: (jnp.zeros(N), make(0), jnp.zeros(2, jnp.uint32)), step)
    with pytest.raises(UnsupportedCellError, match=r"carry: 2 is uint32\[2\], the form of a raw"):
        make_linearizer(cell, jnp.zeros(X), 1)


def drawn_in_a_loop(p, carry, x):
    h, key = carry

    def one(carry, _):
        h, key = carry
        key, now = jax.random.split(key)
        noise = jax.random.normal(now, (N,))
        return (jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"] + noise), key), None

    (h, key), _ = jax.lax.scan(one, (h, key), None, length=70)
    return (h, key), h


def drawn_while(p, carry, x):
    h, key = carry

    def body(state):
        count, key = state
        key, now = jax.random.split(key)
        return count + jax.random.bernoulli(now), key

    count, key = jax.lax.while_loop(lambda state: state[0] < 3, body, (0, key))
    h = jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"] * count)
    return (h, key), h


def drawn_in_a_branch(p, carry, x):
    h, key = carry
    key, noise = jax.lax.cond(
        h[0] > 0,
        lambda key: (jax.random.split(key)[0], jax.random.normal(key, (N,))),
        lambda key: (key, jnp.zeros(N)),
        key,
    )
    return (jnp.tanh(x @ p["w"] + h @ p["r"] + p["b"] + noise), key), h


@pytest.mark.parametrize("step", [drawn_in_a_loop, drawn_while, drawn_in_a_branch])
def test_a_raw_key_is_one_wherever_it_is_read(step):
    cell = Cell(init(), lambda: (jnp.zeros(N), jax.random.PRNGKey(0)), step)
    make_linearizer(cell, jnp.zeros(X), 1)


def test_parts_without_elements_are_none():
    def step(p, h, x):
        scale, z = jax.lax.associative_scan(
            lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (jax.nn.sigmoid(p["b"]), h @ p["r"])
        )
        h = jnp.tanh(scale * z + x @ p["w"])
        return h, h

    found = errors(simple(step), N, estimators.rtrl(), segment_length=2)
    assert max(found.values()) < 1e-9, found


def test_optimizers_never_see_constants_and_descend_along_complex_parameters():
    cell, _ = EXACT["constants among the parameters"]
    before, after = trained(cell, N, optax.adamw(0.01, weight_decay=1.0))
    for name in ("perm", "on"):
        np.testing.assert_array_equal(before[name], after[name])
    assert not np.allclose(before["w"], after["w"])


def trained(cell, output_size, optimizer, steps=1):
    learner = make_learner(
        cell,
        readout_for(output_size),
        estimators.rtrl(),
        optimizer,
        batch_size=LANES,
        example_input=jnp.zeros(X),
        loss=squared_error,
    )
    state = evaluated(learner.init, jax.random.key(0))
    before = state.parameters["cell"]
    x = jax.random.normal(jax.random.key(1), (1, LANES, X))
    batch = Batch(x, jnp.ones((1, LANES, 2)), jnp.ones((1, LANES), bool))
    for _ in range(steps):
        state, _ = evaluated(learner.step, state, batch)
    return before, state.parameters["cell"]


def test_steps_descend_along_the_imaginary_parts_too():
    cell, size = EXACT["complex parameters and carry"]
    before, after = trained(cell, size, optax.sgd(1e-4))
    x = jax.random.normal(jax.random.key(1), (1, LANES, X))[0]
    readout = readout_for(size)
    weights = readout.init(jax.random.split(jax.random.key(0), 3)[1])

    def loss(imaginary):
        params = {**before, "b": jax.lax.complex(before["b"].real, imaginary)}
        start = cell.initial_carry()
        outputs = jax.vmap(lambda x: cell.step(params, start, x)[1])(x)
        return jnp.mean(jax.vmap(lambda o: squared_error(readout.apply(weights, o), 1.0))(outputs))

    slope = evaluated(jax.grad(loss), before["b"].imag)
    np.testing.assert_allclose((after["b"] - before["b"]).imag, -1e-4 * slope, rtol=1e-6)


def test_a_lane_with_an_infinite_influence_recovers_when_it_starts_anew():
    cell = cells.vanilla(input_size=X, hidden_size=N)
    for estimator in (estimators.rtrl(), estimators.kf_rtrl(), estimators.uoro()):
        learner = make_learner(
            cell,
            readout_for(N),
            estimator,
            optax.sgd(0.1),
            batch_size=LANES,
            example_input=jnp.zeros(X),
            loss=squared_error,
        )
        state = learner.init(jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (1, LANES, X))
        step = jax.jit(learner.gradient)

        def batch(*reset, x=x):
            return Batch(x, jnp.ones((1, LANES, 2)), jnp.asarray([reset]))

        _, state, _ = step(state, batch(False, False))
        lost = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.inf), state.influence)
        state = state._replace(influence=lost)
        gradient, state, _ = step(state, batch(False, False))
        assert not jnp.all(jnp.isfinite(gradient["cell"]["weights"]))
        for reset in ((True, False), (False, False)):
            gradient, state, _ = step(state, batch(*reset))
            assert jnp.all(jnp.isfinite(gradient["cell"]["weights"]))
