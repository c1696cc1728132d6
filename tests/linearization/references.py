"""What JAX's own differentiation says of a cell as it is, and the library beside it.

References know nothing of the library: `jax.vjp` of `cell.step`, and `jax.grad` of a loss unrolled lane
by lane and step by step in Python.
"""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kfrtrl_jax import estimators, make_learner
from kfrtrl_jax._src.base import Batch, Cell
from kfrtrl_jax._src.lanes import initial_lanes
from kfrtrl_jax._src.matrices import places_of_bands
from kfrtrl_jax.readouts import Readout
from tests.helpers.interpreter import evaluated, traced

LANES, TARGETS = 2, 2


def cell_of(step, carry, **shapes):
    """A cell of these parameters, the same ones for any key."""
    generator = np.random.default_rng(0)
    params = {name: 0.5 * generator.normal(size=shape) for name, shape in shapes.items()}
    return Cell(lambda key: jax.tree.map(jnp.asarray, params), lambda: jnp.zeros(carry), step)


def is_float(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def is_key(leaf):
    """Whether a leaf of a random cell's carry is a PRNG key; no other is of this type."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or leaf.dtype == jnp.uint32


def parts(tree):
    """The real numbers that a pytree holds: a leaf's real parts, then its imaginary ones."""
    found = []
    for leaf in filter(is_float, jax.tree.leaves(tree)):
        complex_leaf = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        found += [leaf.real, leaf.imag] if complex_leaf else [leaf]
    return found


def with_parts(tree, values):
    """The pytree with other real numbers."""
    rest = iter(values)

    def replaced(leaf):
        if not is_float(leaf):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return jax.lax.complex(next(rest), next(rest))
        return next(rest)

    return jax.tree.map(replaced, tree)


def flat_parts(tree):
    return jnp.concatenate([part.reshape(-1) for part in parts(tree)])


def floats_of(params):
    """Those of a dict's leaves that have derivatives."""
    return {name: leaf for name, leaf in params.items() if is_float(leaf)}


class Point(NamedTuple):
    """Where a cell is looked at, and a sequence.

    Attributes:
      params: parameters.
      carry: of one lane.
      inputs: [T, B, X].
      targets: [T, B, Y].
      reset: [T, B]: lane 1 starts anew in the middle; at the very start both do without being told.
    """

    params: Any
    carry: Any
    inputs: Any
    targets: Any
    reset: np.ndarray

    @property
    def steps(self):
        return len(self.inputs)


def with_fixed_parameters(cell, seed=0):
    """The cell with the parameters of one key, whichever key is asked for, as `assert_exact` needs."""
    params = cell.init(jax.random.key(seed))
    return cell._replace(init=lambda key: params)


def random_point(cell, input_size, steps=3, seed=0, dtype=jnp.float64):
    """A point; integers and keys in the carry are the initial ones."""
    generator = np.random.default_rng(seed)
    start = cell.initial_carry()
    values = [jnp.asarray(generator.normal(size=v.shape), v.dtype) for v in parts(start)]
    inputs = generator.normal(size=(steps, LANES, input_size))
    targets = generator.normal(size=(steps, LANES, TARGETS))
    reset = np.zeros((steps, LANES), bool)
    reset[1, 1] = True
    return Point(
        jax.tree.map(jnp.asarray, cell.init(jax.random.key(0))),
        with_parts(start, values),
        jnp.asarray(inputs, dtype),
        jnp.asarray(targets, dtype),
        reset,
    )


class Derivatives(NamedTuple):
    """Of the new state, flat: by each parameter [n, ...] as `jax.vjp` has it, by the old [n, n]."""

    by_params: Any
    by_carry: Any


def derivatives(cell, point):
    """At the point's carry and first input."""
    x = point.inputs[0, 0]

    def new_state(floats, values):
        carry = with_parts(point.carry, values)
        return flat_parts(jax.jit(cell.step)(point.params | floats, carry, x)[0])

    def all_rows(floats, values):
        state, pullback = jax.vjp(new_state, floats, values)
        return jax.vmap(pullback)(jnp.eye(len(state), dtype=state.dtype))

    by_params, by_carry = evaluated(all_rows, floats_of(point.params), parts(point.carry))
    return Derivatives(by_params, jnp.concatenate([c.reshape(len(c), -1) for c in by_carry], 1))


def readout_of(output):
    """A linear readout of an output of this shape, of the real and imaginary parts of a complex one."""
    size = output.size * (2 if jnp.issubdtype(output.dtype, jnp.complexfloating) else 1)

    def init(key):
        del key
        weights = 0.5 * np.random.default_rng(1).normal(size=(size, TARGETS))
        return {"weights": jnp.asarray(weights, jnp.finfo(output.dtype).dtype)}

    return Readout(init, lambda params, output: flat_parts(output) @ params["weights"])


def loss(prediction, target):
    return jnp.sum((prediction - target) ** 2)


def output_shape(cell, point):
    return jax.eval_shape(cell.step, point.params, point.carry, point.inputs[0, 0])[1]


def unrolled_gradient(cell, point):
    """Of the sum over time of the mean loss over lanes, by {"cell": ..., "readout": ...}.

    Of the library it takes the PRNG keys that the lanes start from, which are no more than its choice.
    """
    lanes = initial_lanes(cell, LANES)
    readout = readout_of(output_shape(cell, point))
    step = jax.jit(cell.step)

    def total(floats):
        params, sum_of_losses = point.params | floats["cell"], 0.0
        for lane in range(LANES):
            carry = jax.tree.map(lambda leaf, lane=lane: leaf[lane], lanes)
            for t in range(point.steps):
                if point.reset[t, lane]:
                    carry = jax.tree.map(
                        lambda new, old: old if is_key(old) else new, cell.initial_carry(), carry
                    )
                carry, output = step(params, carry, point.inputs[t, lane])
                prediction = readout.apply(floats["readout"], output)
                sum_of_losses += loss(prediction, point.targets[t, lane])
        return sum_of_losses / LANES

    floats = {"cell": floats_of(point.params), "readout": readout.init(jax.random.key(0))}
    return evaluated(jax.grad(total), floats)


def learner_of(cell, point, estimator, segment_length, **options):
    """The library's learner; what it checks by itself is not asked of it, for time."""
    if "check" in inspect.signature(make_learner).parameters:
        options = {"check": False, **options}
    return make_learner(
        cell,
        readout_of(output_shape(cell, point)),
        estimator,
        optax.sgd(0.0),
        segment_length=segment_length,
        batch_size=LANES,
        example_input=point.inputs[0, 0],
        loss=loss,
        **options,
    )


def learned_gradient(learner, point, segment_length):
    """The sum of the learner's gradients over the sequence, in the measure of `unrolled_gradient`."""
    state = learner.init(jax.random.key(0))
    whole = Batch(point.inputs, point.targets, jnp.asarray(point.reset))

    def segment(start):
        return jax.tree.map(lambda leaf: leaf[start : start + segment_length], whole)

    def gradient(state, segment):
        return learner.gradient(state, segment)[:2]

    run = traced(gradient, state, segment(0))
    total = None
    for start in range(0, point.steps, segment_length):
        found, state = run(state, segment(start))
        found = jax.tree.map(lambda leaf: segment_length * leaf, found)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total


def assert_close(got, want, atol, what):
    """Equal relative to the largest entry."""
    got, want = np.asarray(got), np.asarray(want)
    if got.dtype.kind not in "fc":  # bfloat16
        got, want = got.astype(float), want.astype(float)
    scale = 1 + np.abs(want).max(initial=0)
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=atol, err_msg=what)


def assert_same_leaves(got, want, atol, what):
    """What has no derivative has None."""
    assert got.keys() >= want.keys()
    for name, leaf in got.items():
        if name in want:
            assert leaf.dtype == want[name].dtype, (what, name, leaf.dtype)
            assert_close(leaf, want[name], atol, f"{what}, by {name}")
        else:
            assert leaf is None, (what, name)


def assert_zero_outside(mask, matrix, what):
    assert mask is None or not np.any(np.asarray(matrix)[~mask.array]), what


def assert_linearized(linearizer, cell, point, want, atol):
    """J and what all sites give together are the derivatives; what the structure says is 0 is.

    A lane that starts anew has J = 0.
    """
    size, dtype = len(want.by_carry), want.by_carry.dtype
    assert linearizer.structure.state_size == size

    def found(params, carry, x):
        lanes = jax.tree.map(lambda leaf: jnp.stack([leaf] * LANES), (carry, x))
        keep = jnp.arange(LANES, 0, -1) == LANES
        linearization = linearizer.linearize(params, *lanes, keep.astype(dtype))
        derivatives = [site.derivatives.dense()[0] for site in linearization.sites]

        def pulled(i):
            sites = zip(linearization.sites, derivatives)
            rows = [s.inputs[0].T @ d[:, i] for s, d in sites]
            return linearizer.gradient(params, tuple(rows))

        jacobian = linearization.jacobian
        identity = jnp.broadcast_to(jnp.eye(size, dtype=dtype), (LANES, size, size))
        times = jacobian.times_few if jacobian.products else jacobian.times
        ways = [jacobian.dense(), times(identity)]
        return ways, jacobian.diagonal(), jax.vmap(pulled)(jnp.arange(size)), derivatives

    ways, diagonals, by_params, derivatives = evaluated(
        found, point.params, point.carry, point.inputs[0, 0]
    )
    for jacobian, *others in ways:
        assert_close(jacobian, want.by_carry, atol, "J")
        assert not np.any(others), "J of a lane that starts anew"
    assert_close(diagonals[0], np.diagonal(want.by_carry), atol, "the diagonal of J")
    assert_same_leaves(by_params, want.by_params, atol, "rows")
    structure = linearizer.structure
    assert_zero_outside(structure.jacobian_mask, ways[0][0], "J has more than its structure says")
    for site, derivative in zip(structure.sites, derivatives):
        anywhere = np.any(np.asarray(derivative) != 0, axis=0)
        assert_zero_outside(site.derivative_mask, anywhere, f"D of {site.label}")
        if site.columns is not None:
            bands = places_of_bands(site.columns.array, site.output_size)
            assert not np.any(anywhere & ~bands), f"D of {site.label} has more than its bands"


def assert_exact(cell, point, atol=1e-9, at_once=False, length=None, learned=True, **options):
    """The linearization, backpropagation in a segment and exact RTRL over steps agree with JAX.

    Args:
      cell: the cell; its `init` gives the point's parameters for any key.
      point: where.
      atol: relative to the largest entry of what is compared.
      at_once: backpropagation and RTRL in one learner, with segments of two steps; takes half the time.
      length: of the learner's segments; None for two steps if at_once, else one.
      learned: False for the linearization alone, in half of the time.
      **options: of the learner.

    Returns:
      The linearizer; None where JAX's own derivatives are not finite.
    """
    want = derivatives(cell, point)
    gradient = unrolled_gradient(cell, point) if learned else ()
    if not all_finite((want, gradient)):
        return None
    length = length or (2 if at_once else 1)
    learner = learner_of(cell, point, estimators.rtrl(), length, **options)
    assert_linearized(learner.linearizer, cell, point, want, atol)
    if not learned:
        return learner.linearizer
    assert_learned(learner, point, length, gradient, atol, "rtrl")
    if not at_once:
        backward = learner_of(cell, point, estimators.truncated(), point.steps)
        assert_learned(backward, point, point.steps, gradient, atol, "the direct gradient")
    return learner.linearizer


def assert_learned(learner, point, segment_length, want, atol, what):
    """A learner's gradients add up to the gradient."""
    got = learned_gradient(learner, point, segment_length)
    for part in ("cell", "readout"):
        assert_same_leaves(got[part], want[part], atol, what)


def all_finite(tree):
    return all(bool(np.all(np.isfinite(leaf))) for leaf in jax.tree.leaves(tree))
