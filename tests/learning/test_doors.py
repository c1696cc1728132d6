"""What users hand to a learner: taken as they have it, or refused in one line that says what to do."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

from kfrtrl_jax import cells, estimators, losses, readouts
from kfrtrl_jax.base import Batch, Cell
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.learning import make_learner
from tests.helpers.interpreter import evaluated
from tests.trajectories import flat

B, M, N, V = 4, 3, 5, 2
KEY = jax.random.key(0)
X = jnp.zeros(M)
F64 = {"param_dtype": jnp.float64}


def weights(key):
    return {"w": 0.3 * jax.random.normal(key, (M, N)), "r": 0.3 * jnp.eye(N)}


def step(params, h, x):
    h = jnp.tanh(x @ params["w"] + h @ params["r"])
    return h, h


def only_for_batches(params, h, x):
    both = jnp.concatenate([x, h], axis=1)
    h = jnp.tanh(both @ jnp.concatenate([params["w"], params["r"]]))
    return h, h


OURS = cells.vanilla(input_size=M, hidden_size=N)
LINEAR = readouts.linear(input_size=N, output_size=V)


def made(cell=OURS, readout=LINEAR, estimator="truncated", optimizer=None, x=X, **kwargs):
    return make_learner(
        cell,
        readout,
        estimator,
        optimizer or optax.sgd(0.1),
        batch_size=B,
        example_input=x,
        **kwargs,
    )


@pytest.mark.parametrize(
    ("cell", "same"),
    [
        (lambda: nnx.GRUCell(M, N, rngs=nnx.Rngs(3), **F64), None),
        (lambda: lambda rngs: nnx.GRUCell(M, N, rngs=rngs, **F64), cells.from_flax),
        (lambda: linen.GRUCell(N, **F64), lambda cell: cells.from_flax(cell, X)),
        (lambda: eqx.nn.GRUCell(M, N, key=KEY), None),
        (lambda: lambda key: eqx.nn.GRUCell(M, N, key=key), cells.from_equinox),
    ],
    ids=["NNX", "of rngs", "Linen", "Equinox", "of a key"],
)
def test_cells_of_flax_and_equinox_are_taken_as_they_are(cell, same):
    """A module keeps the parameters that it was made with; what draws them draws new ones."""
    cell = cell()
    learner = made(cell)
    found = evaluated(learner.init, KEY).parameters["cell"]
    if same is None:
        own = nnx.state(cell, nnx.Param) if isinstance(cell, nnx.Module) else cell
        assert jnp.array_equal(flat(found), flat(own))
    else:
        assert jnp.allclose(flat(found), flat(same(cell).init(jax.random.split(KEY, 3)[0])))


@pytest.mark.parametrize(
    "readout",
    [
        lambda: nnx.Linear(N, V, rngs=nnx.Rngs(3), **F64),
        lambda: functools.partial(nnx.Linear, N, V, **F64),
        lambda: linen.Dense(V, **F64),
        lambda: eqx.nn.Linear(N, V, key=KEY),
        lambda: lambda key: eqx.nn.MLP(N, V, 4, 1, key=key),
    ],
    ids=["NNX", "of rngs", "Linen", "Equinox", "of a key"],
)
def test_readouts_of_flax_and_equinox_learn(readout):
    learner = made(readout=readout())
    state = evaluated(learner.init, KEY)
    batch = Batch(jnp.ones((B, M)), jnp.zeros(B, int))
    after, metrics = evaluated(learner.step, state, batch)
    assert metrics.predictions.shape == (B, V)
    assert not jnp.allclose(flat(after.parameters["readout"]), flat(state.parameters["readout"]))


def test_an_estimator_may_be_text():
    text = made(estimator="average(ok(rank=2), copies=3)").linearizer.structure
    named = jax.eval_shape(made(estimator="average(ok(rank=2), copies=3)").init, KEY).influence
    own = estimators.average(estimators.ok(rank=2), copies=3)
    expected = jax.eval_shape(lambda: own.init(text))
    assert jax.tree.map(jnp.shape, named) == jax.tree.map(jnp.shape, expected)


BATCHED = functools.partial(Cell, weights, lambda: jnp.zeros((B, N)))
WRONG = {
    "a class of NNX": (
        {"cell": nnx.LSTMCell},
        r"class LSTMCell; pass an instance, .*rngs=nnx.Rngs\(0",
    ),
    "a class of Equinox": (
        {"cell": eqx.nn.GRUCell},
        r"class GRUCell; pass .*key=jax.random.key\(0\)",
    ),
    "a class as readout": (
        {"readout": nnx.Linear},
        "readout is the class Linear; pass an instance",
    ),
    "our cell uncalled": (
        {"cell": cells.lstm},
        r"call it, as lstm\(input_size=..., hidden_size=...\)",
    ),
    "a step": (
        {"cell": step},
        r"becomes a cell by cells.from_function\(step, init, initial_carry\)",
    ),
    "nnx.RNN": (
        {"cell": nnx.RNN(nnx.GRUCell(M, N, rngs=nnx.Rngs(0)))},
        "cell is a RNN, .*pass its cell",
    ),
    "linen.RNN": ({"cell": linen.RNN(linen.GRUCell(N))}, "cell is a RNN, .*pass its cell"),
    "no cell": ({"cell": 3}, "cell must be a Cell, such as .*got a value of type int"),
    "a readout uncalled": ({"readout": readouts.linear}, "which makes a readout: call it"),
    "a readout of another width": (
        {"readout": readouts.linear(input_size=N + 1, output_size=V)},
        r"must have shape \[6\], got float64\[5\]; input_size must be the length of the cell's output",
    ),
    "a Flax readout of another width": (
        {"readout": nnx.Linear(N + 1, V, rngs=nnx.Rngs(0), **F64)},
        r"the readout does not take the cell's output, float64\[5\]: ",
    ),
    "a readout with a state": (
        {"readout": nnx.BatchNorm(N, rngs=nnx.Rngs(0))},
        "BatchNorm keeps BatchStat beside its parameters",
    ),
    "kf_rtrl uncalled": ({"estimator": estimators.kf_rtrl}, r"call it, as kf_rtrl\(\)"),
    "ok uncalled": ({"estimator": estimators.ok}, r"call it, as ok\(rank=...\)"),
    "an unknown estimator": (
        {"estimator": "kf_rtl"},
        "no estimator 'kf_rtl'; did you mean kf_rtrl",
    ),
    "no estimator": ({"estimator": 3}, "must be an InfluenceEstimator, .*got a value of type int"),
    "adam uncalled": ({"optimizer": optax.adam}, r"call it, as adam\(learning_rate=1e-3\)"),
    "no optimizer": ({"optimizer": 3}, "optimizer must be an optax transformation"),
    "a loss uncalled": ({"loss": losses.squared_error}, r"call it: squared_error\(\)"),
    "no loss": ({"loss": 3}, r"loss must be \(prediction, target\) -> scalar"),
    "a cell for a batch": (
        {"cell": BATCHED(step)},
        r"written for a batch: its carry, float64\[4, 5\], .*one lane, whose carry is float64\[5\]",
    ),
    "a cell for batches alone": ({"cell": BATCHED(only_for_batches)}, "written for a batch"),
    "an example of a batch": (
        {"cell": linen.GRUCell(N, **F64), "x": jnp.zeros((B, M))},
        r"example_input must be the input of one lane, float64\[3\], .*got float64\[4, 3\]",
    ),
    "a step that returns its carry": (
        {"cell": Cell(weights, lambda: jnp.zeros(N), lambda *args: step(*args)[0])},
        r"returns the carry alone, float64\[5\]; .*return \(carry, carry\)",
    ),
    "a step that changes its carry": (
        {"cell": Cell(weights, lambda: jnp.zeros(N), lambda p, h, x: (h[:2], h))},
        r"must keep the carry's .*: float64\[5\] became float64\[2\]",
    ),
    "another input": (
        {"x": jnp.zeros(M + 1)},
        r"the cell's step fails on the input of one lane, float64\[4\], with the carry float64\[5\]",
    ),
    "float32 beside float64": (
        {"cell": nnx.GRUCell(M, N, rngs=nnx.Rngs(0))},
        r"float32\[5\] became float64\[5\], as jax_enable_x64 is on .*param_dtype= in Flax",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_in_one_line(what):
    arguments, message = WRONG[what]
    with pytest.raises(ValueError, match=message) as refusal:
        made(**arguments)
    assert "\n" not in str(refusal.value)


def test_an_unknown_estimator_is_an_error_of_configs():
    with pytest.raises(ConfigError):
        made(estimator="")


@functools.cache
def learner(length):
    return made(segment_length=length)


def segment(*axes):
    return Batch(jnp.zeros((*axes, M)), jnp.zeros(axes, int), jnp.zeros(axes, bool))


@pytest.mark.parametrize(
    ("length", "given", "message"),
    [
        (2, segment(B), r"must be float64\[2, 4, 3\], got float64\[4, 3\]; it has no time axis"),
        (2, segment(3, B), r"got float64\[3, 4, 3\]; the learner's segment_length is 2"),
        (2, segment(2, B + 1), r"got float64\[2, 5, 3\]; the learner's batch_size is 4"),
        (1, segment(B + 1), r"must be float64\[1, 4, 3\], got float64\[5, 3\]"),
        (1, segment(), r"must be float64\[1, 4, 3\], got float64\[3\]"),
        (1, segment(1, B)._replace(targets=jnp.zeros(B, int)), r"segment.targets must have the"),
        (1, segment(B)._replace(reset=jnp.zeros(B)), r"segment.reset must be bool\[1, 4\], got float"),
        (1, segment(B)._replace(targets=jnp.zeros((B, V + 1))), "the prediction of one lane, float64"),
        (1, tuple(segment(B)), r"a segment must be a Batch\(inputs, targets, reset\), got a tuple"),
        (1, segment(B)._replace(weight=jnp.ones(B + 1)), "segment.weight must have shape"),
    ],
)  # fmt: skip
def test_a_segment_of_other_shapes_is_refused_in_one_line(length, given, message):
    state = jax.eval_shape(learner(length).init, KEY)
    for function in (learner(length).step, learner(length).gradient):
        with pytest.raises(ValueError, match=message) as refusal:
            jax.eval_shape(function, state, given)
        assert "\n" not in str(refusal.value)
