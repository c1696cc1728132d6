"""The influence inside of each layer alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kfrtrl_jax import cells, estimators, readouts
from kfrtrl_jax.base import Batch, Cell
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.learning import make_learner
from kfrtrl_jax.linearization import compose, make_linearizer
from kfrtrl_jax.studies import fidelity
from tests.cells.test_stack import mixed
from tests.estimators.test_snap import entries
from tests.helpers.interpreter import evaluated, traced
from tests.helpers.learners import segments
from tests.helpers.nights import some
from tests.trajectories import BATCH_SIZE, CLASSES, INPUT_SIZE, SMALL_CELLS, run, sequence

STEPS = 8


def lru_stack():
    """Three layers of linear recurrent units as in the paper: mix, skip and norm."""
    return cells.stack_of(
        lambda size: cells.lru(input_size=size, hidden_size=2, max_phase=3.0),
        3,
        input_size=INPUT_SIZE,
        skip=True,
        norm="layer",
        mix="glu",
        width=4,
    )


CELLS = {
    "mixed": mixed,
    "lru": lru_stack,
    "one": lambda: cells.stack([SMALL_CELLS["lstm"]], input_size=INPUT_SIZE, norm="rms"),
}


@functools.cache
def along(name):
    """(structure, linearizations of all steps, in order)."""
    path = run(CELLS[name](), STEPS)
    points = [
        (path.params, *jax.tree.map(lambda x, t=t: x[t], (path.carries, path.inputs, path.keep)))
        for t in range(STEPS)
    ]
    linearize = traced(path.linearizer.linearize, *points[0])
    return path.linearizer.structure, [linearize(*point) for point in points]


@functools.cache
def influence(estimator, name, length=1):
    """All of G after the last step, by an estimator given as text: for every site [B n, m, g]."""
    structure, steps = along(name)
    estimator = fidelity.named(estimator).estimator
    shape = structure.batch_size, structure.state_size
    state, key = estimator.init(structure), jax.random.key(0)

    def push_all(state, *steps):
        return estimator.push(state, compose(steps), key)

    push = traced(push_all, state, *steps[:length])
    for t in range(0, STEPS, length):
        state = push(state, *steps[t : t + length])
    cotangents = jnp.eye(shape[0] * shape[1]).reshape(-1, *shape)
    return evaluated(jax.vmap(estimator.pull, in_axes=(None, 0)), state, cotangents)


def is_in_layer(label, layer):
    return f"{layer}/cell" in label


def test_on_one_layer_it_is_the_inner_estimator():
    chex.assert_trees_all_close(
        influence("layerwise(rtrl)", "one"),
        influence("rtrl", "one"),
        rtol=1e-12,
    )


@pytest.mark.parametrize("name", some(["mixed", "lru"]))
def test_it_holds_the_exact_influence_of_a_layer_s_weights_on_its_own_state(name):
    """As J is block-triangular, all that is missing is between layers."""
    structure, _ = along(name)
    exact, got = influence("rtrl", name), influence("layerwise(rtrl)", name)
    sizes = np.array(structure.leaf_sizes)
    layers = np.repeat(structure.leaf_entries, sizes)
    layers, missing = np.tile(layers, structure.batch_size), 0
    for site, g, e in zip(structure.sites, got, exact, strict=True):
        columns = [label for number, label in site.parts for _ in range(number)]
        for column, label in enumerate(columns):
            own = np.array([is_in_layer(label, layer) for layer in layers])[:, None]
            np.testing.assert_allclose(g[..., column], np.where(own, e[..., column], 0), atol=1e-12)
            missing += np.abs(np.where(own, 0, e[..., column])).max()
            if label.startswith("2/cell"):  # the top
                np.testing.assert_allclose(g[..., column], e[..., column], atol=1e-12)
    assert missing > 0.1


def test_a_block_of_steps_is_as_much_as_single_ones():
    blocks, singles = (influence("layerwise(rtrl)", "mixed", length) for length in (4, 1))
    chex.assert_trees_all_close(blocks, singles, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("length", [1, 4])
def test_diagonal_rtrl_takes_a_stack_in_memory_of_its_parameters(length):
    estimator = estimators.layerwise(estimators.diagonal_rtrl())
    chex.assert_trees_all_close(
        influence("layerwise(diagonal_rtrl)", "lru", length),
        influence("layerwise(rtrl)", "lru"),
        rtol=1e-10,
        atol=1e-13,
    )
    structure, _ = along("lru")
    weights = sum(
        site.input_size * number
        for site in structure.sites
        for number, label in site.parts
        if "/cell" in label
    )
    assert entries(estimator, structure) == structure.batch_size * 2 * weights
    with pytest.raises(UnsupportedCellError, match="reaches more than unit_size=2"):
        estimators.diagonal_rtrl().init(structure)


def deep(layers, shifts, carry, x):
    """A step of `lru_stack` written out, with shifts added to the new states.

    Returns:
      The new states, the inputs of the layers, and the output.
    """
    new, inputs = [], []
    for p, shift, (real, imaginary) in zip(layers, shifts, carry):
        inputs.append(x)
        unit = p["cell"]
        size, phase = jnp.exp(-jnp.exp(unit["nu"])), jnp.exp(unit["theta"])
        cos, sin = size * jnp.cos(phase), size * jnp.sin(phase)
        u, v = (jnp.exp(unit["log_gamma"]) * (x @ unit[k]) for k in ("real", "imaginary"))
        z = cos * real - sin * imaginary + u + shift[0], sin * real + cos * imaginary + v + shift[1]
        new.append(z)
        value, gate = jnp.split(jnp.concatenate(z) @ p["mix"]["weights"] + p["mix"]["bias"], 2)
        y = value / (1 + jnp.exp(-gate)) + (x @ p["skip"] if "skip" in p else x)
        y = (y - jnp.mean(y)) / jnp.sqrt(jnp.var(y) + 1e-5)
        x = p["norm"]["scale"] * y + p["norm"]["bias"]
    return new, inputs, x


def traced_gradient(unit, traces, delta):
    """The gradient of a unit's parameters, for delta = dL/dRe z - i dL/dIm z."""
    eigenvalues = np.exp(-np.exp(unit["nu"]) + 1j * np.exp(unit["theta"]))
    by_exponent = delta * traces["eigenvalues"] * eigenvalues
    return {
        "nu": -(by_exponent * np.exp(unit["nu"])).real,
        "theta": (by_exponent * 1j * np.exp(unit["theta"])).real,
        "log_gamma": (delta * traces["gamma"] * np.exp(unit["log_gamma"])).real,
        "real": (delta * traces["input"]).real,
        "imaginary": (delta * traces["input"] * 1j).real,
    }


def zucchet_gradients(readout, parameters, initial, batches):
    """Spatial backpropagation to each state, times the layer's own traces.

    Returns:
      The gradient of each step's loss, the mean over lanes.
    """

    def loss(parameters, shifts, carry, x, target):
        new, inputs, output = deep(parameters["cell"], shifts, carry, x)
        logits = readout.apply(parameters["readout"], output)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, target)
        return value, (new, inputs)

    units = jax.tree.map(np.asarray, [layer["cell"] for layer in parameters["cell"]])
    none = [{"eigenvalues": 0, "gamma": 0, "input": 0}] * len(units)
    first = (parameters, initial, initial, batches.inputs[0, 0], batches.targets[0, 0])
    spatial = traced(jax.grad(loss, argnums=(0, 1), has_aux=True), *first)
    lanes, found = [(initial, none)] * BATCH_SIZE, []
    for t in range(len(batches.reset)):
        gradients = []
        for lane, (carry, traces) in enumerate(lanes):
            if batches.reset[t, lane]:
                carry, traces = initial, none
            (gradient, deltas), (new, inputs) = spatial(
                parameters, initial, carry, batches.inputs[t, lane], batches.targets[t, lane]
            )
            own, after = [], []
            for unit, old, z, x, delta in zip(units, traces, carry, inputs, deltas):
                eigenvalues = np.exp(-np.exp(unit["nu"]) + 1j * np.exp(unit["theta"]))
                drive = {
                    "eigenvalues": z[0] + 1j * z[1],
                    "gamma": x @ (unit["real"] + 1j * unit["imaginary"]),
                    "input": np.outer(x, np.exp(unit["log_gamma"])),
                }
                after.append({k: eigenvalues * old[k] + drive[k] for k in drive})
                own.append(traced_gradient(unit, after[-1], delta[0] - 1j * delta[1]))
            layers = tuple({**g, "cell": c} for g, c in zip(gradient["cell"], own))
            gradients.append({**gradient, "cell": layers})
            lanes[lane] = new, after
        found.append(jax.tree.map(lambda *g: np.mean(g, axis=0), *gradients))
    return found


def test_with_diagonal_rtrl_and_segments_of_one_step_it_is_the_rule_of_zucchet_et_al():
    cell, readout = lru_stack(), readouts.linear(input_size=4, output_size=CLASSES, init_scale=0.5)
    batches = Batch(*sequence(5))
    learner = make_learner(
        cell,
        readout,
        estimators.layerwise(estimators.diagonal_rtrl()),
        optax.sgd(0.1),
        batch_size=BATCH_SIZE,
        example_input=batches.inputs[0, 0],
    )
    state = learner.init(jax.random.key(0))
    initial = list(cell.initial_carry())
    wanted = zucchet_gradients(readout, state.parameters, initial, batches)

    def all_gradients(state, batches):
        def one(state, segment):
            gradient, state, _ = learner.gradient(state, segment)
            return state, gradient

        return jax.lax.scan(one, state, segments(batches, 1))[1]

    gradients = evaluated(all_gradients, state, batches)
    for t, want in enumerate(wanted):
        got = jax.tree.map(lambda g, t=t: g[t], gradients)
        chex.assert_trees_all_close(got, want, rtol=1e-7, atol=1e-11)


def linked():
    """Two layers by name, each of which reads the other's state of the step before."""

    def step(params, carry, x):
        low = jnp.tanh(x[:2] @ params["low"] + carry["high"])
        high = jnp.tanh(low @ params["high"] + carry["high"])
        return {"high": high, "low": low + carry["low"]}, high

    def init(key):
        return {"low": jnp.ones((2, 2)), "high": jnp.eye(2)}

    return Cell(init, lambda: {"high": jnp.zeros(2), "low": jnp.zeros(2)}, step)


def summed():
    """Parameters of both layers in one pre-activation."""

    def step(params, carry, x):
        a = jnp.tanh(x[:2] @ params[0] + carry[0])
        return (a, jnp.tanh(a @ params[1] + x[:2] @ params[0].T + carry[1])), a

    return Cell(
        lambda key: (jnp.ones((2, 2)), jnp.eye(2)), lambda: (jnp.zeros(2), jnp.zeros(2)), step
    )


def two_layers(low, high):
    """Two layers of these names, of which the second reads the first."""

    def step(params, carry, x):
        a = jnp.tanh(x[:2] @ params[low]["w"] + carry[low])
        return {low: a, high: jnp.tanh(a @ params[high]["w"] + carry[high])}, a

    def init(key):
        return {low: {"w": jnp.ones((2, 2))}, high: {"w": jnp.eye(2)}}

    return Cell(init, lambda: {low: jnp.zeros(2), high: jnp.zeros(2)}, step)


@pytest.mark.parametrize("names", [("p", "q"), ("enc/0", "enc/1"), ("1", "10"), ("b", "a/b")])
def test_layers_are_told_apart_whatever_their_names(names):
    structure = make_linearizer(two_layers(*names), jnp.zeros(INPUT_SIZE), 1).structure
    layers = estimators.layerwise(estimators.rtrl()).init(structure).layers
    assert sorted(layer.name for layer in layers) == sorted(names)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (two_layers("a", "a/b"), "a/b/w may be in each of its layers a and a/b; give .* without"),
        (SMALL_CELLS["gru"], "is in no layer.*none is named 'gates'.*cells.stack makes"),
        (
            linked(),
            "its layers high and low influence each other.*use the estimator without layerwise",
        ),
        (summed(), "different layers; use the estimator without layerwise"),
    ],
)
def test_cells_without_layers_that_feed_forward_are_refused_by_name(cell, message):
    structure = make_linearizer(cell, jnp.zeros(INPUT_SIZE), 1).structure
    with pytest.raises(UnsupportedCellError, match=message) as refusal:
        estimators.layerwise(estimators.rtrl()).init(structure)
    assert "\n" not in str(refusal.value)


def test_a_jacobian_of_which_no_zeros_are_known_is_refused_with_that_reason():
    structure, _ = along("mixed")
    with pytest.raises(UnsupportedCellError, match="either all entries of J can be non-zero, or"):
        estimators.layerwise(estimators.rtrl()).init(structure._replace(jacobian_mask=None))


def test_other_combinators_compose_with_it_and_its_diagnostics_name_the_layers():
    structure, steps = along("mixed")
    estimator = estimators.average(estimators.layerwise(estimators.kf_rtrl()), copies=2)
    names = jax.eval_shape(
        lambda: estimator.diagnostics(
            estimator.push(estimator.init(structure), compose(steps[:2]), jax.random.key(0))
        )
    )
    assert {name.split("/")[0] for name in names} == {"0", "1", "2"}


def test_its_text_form_is_read_and_claims_nothing():
    named = fidelity.named("layerwise(kf_rtrl())")
    assert not named.claims_unbiased
    named.estimator.init(along("mixed")[0])
