"""Weights that a step uses many times: one site, a term for each use."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kfrtrl_jax import estimators
from kfrtrl_jax.errors import UnsupportedCellError
from kfrtrl_jax.linearization import explain, make_linearizer
from tests.estimators import monte_carlo
from tests.helpers.nights import some
from tests.linearization.references import assert_exact, cell_of, random_point

X = 3


def conv(image, kernel, strides=(1, 1), padding="SAME", **options):
    """Of one image [height, width, features]."""
    layout = options.pop("layout", ("NHWC", "HWIO", "NHWC"))
    return jax.lax.conv_general_dilated(
        image[None], kernel, strides, padding, dimension_numbers=layout, **options
    )[0]


def one_dimensional(p, h, x):
    h = jnp.tanh(jnp.convolve(h, p["kernel"], mode="same") + x @ p["w"])
    return h, h


def gated(p, h, x):
    z = conv(h, p["kernel"]) + conv(x[:, None, None], p["input"]) + p["bias"]
    new, gate = jnp.split(z, 2, axis=-1)
    h = jax.nn.sigmoid(gate) * h + jnp.tanh(new)
    return h, h.reshape(-1)


def reset_gated(p, h, x):
    r = jax.nn.sigmoid(conv(h, p["gate"]) + p["bias"])
    h = jnp.tanh(conv(r * h, p["kernel"]) + jnp.outer(x, x)[..., None] * p["scale"])
    return h, h.reshape(-1)


def strided_and_back(p, h, x):
    few = jnp.tanh(conv(h, p["down"], (2, 1), [(1, 0), (2, -1)], rhs_dilation=(1, 2)))
    up = conv(few, p["up"], (1, 1), [(1, 1), (1, 1)], lhs_dilation=(2, 1))
    h = jnp.tanh(up[:3, :2] + x[0] * h)
    return h, h.reshape(-1)


def features_first(p, h, x):
    layout = ("CWHN", "OIWH", "NCHW")
    z = jax.lax.conv_general_dilated(
        h[..., None], p["kernel"], (1, 1), "SAME", dimension_numbers=layout
    )
    h = jnp.tanh(z[0].transpose(0, 2, 1) + x[0])
    return h, h.reshape(-1)


def irregular_cut(p, h, x):
    z = conv(h, p["kernel"]).reshape(-1)[1:12]
    h = jnp.tanh(jnp.pad(z, (3, 4))).reshape(3, 3, 2) * x[0]
    return h, h.reshape(-1)


def two_in_a_sum(p, h, x):
    z = conv(h, p["kernel"]) + (x @ p["w"]).reshape(3, 3, 2) + p["bias"]
    h = jnp.tanh(z + p["whole"])
    return h, h.reshape(-1)


def cut_to_fit(p, h, x):
    """The positions of one convolution are the first of another's."""
    z = conv(h, p["kernel"]) + conv(h, p["other"], padding=[(1, 1), (0, 1)])[:3]
    h = jnp.tanh(z * x[0])
    return h, h.reshape(-1)


def one_bias_for_all(p, h, x):
    h = jnp.tanh(conv(h, p["kernel"]) * x[0] + conv(h, p["other"]) + p["bias"])
    return h, h.reshape(-1)


def tokens(p, h, x):
    h = jnp.tanh(h @ p["w"] + jnp.einsum("kd,tk->td", p["u"], jnp.sin(h)) + p["bias"] + x[0])
    return h, h.reshape(-1)


def weights_first(p, h, x):
    h = jnp.tanh(jnp.einsum("dk,td->kt", p["w"], h).T * x[0])
    return h, h.reshape(-1)


def heads_of_tokens(p, h, x):
    h = jnp.tanh(jnp.einsum("hde,thd->the", p["w"], h) + x[0])
    return h, h.reshape(-1)


def tied(p, h, x):
    for _ in range(2):
        h = jnp.tanh(h @ p["u"] + x @ p["w"] + p["bias"])
    return h, h


def tied_to_its_transpose(p, h, x):
    h = jnp.tanh(jnp.tanh(h @ p["u"] + x @ p["w"]) @ p["u"].T)
    return h, h


def solver(p, h, x):
    def substep(y, _):
        return y + 0.3 * (jnp.tanh(y @ p["u"] + x @ p["w"] + p["bias"]) - p["leak"] * y), None

    h, _ = jax.lax.scan(substep, h, None, length=5)
    return h, h


def steered(p, h, x):
    """The new state is no element-wise function of the first use, but one of the second."""
    first = jnp.tanh(h @ p["u"])
    h = 0.5 * first + jnp.tanh((first * x) @ p["u"])
    return h, h


def loop_over_data(p, h, x):
    """Backward over vectors of data, with a sum of what the iterations give, and weights outside."""
    around, start = jnp.sin(h @ p["v"]), (h * x) @ p["u"]

    def one(carry, seen):
        count, y = carry
        y = jnp.tanh(y @ p["u"] + seen + around * p["scale"]) + 0.01 * count
        return (count + 1, y), (y * seen)[::-1]

    scanned = jnp.outer(jnp.arange(1.0, 7.0), x)
    (_, y), stacked = jax.lax.scan(one, (0, start), scanned, reverse=True)
    h = y + jnp.cos(stacked * jnp.arange(6.0)[:, None]).sum(0)
    return h, h


def loop_in_a_loop(p, h, x):
    def inner(i, y):
        return jnp.tanh(y @ p["u"] + i * x @ p["w"])

    def outer(i, y):
        return 0.5 * jax.lax.fori_loop(0, 5, inner, y) + jnp.sin(y @ p["v"])

    h = jax.lax.fori_loop(0, 6, outer, h)
    return h, h


def convolving_loop(p, h, x):
    def one(y, _):
        return jnp.tanh(conv(y, p["kernel"]) + p["bias"]), None

    h = jax.lax.scan(one, h * x[:, None, None], None, length=5)[0]
    return h, h.reshape(-1)


def tied_convolution(p, h, x):
    h = jnp.tanh(conv(h, p["kernel"])) + jnp.sin(conv(h * x[0], p["kernel"]))
    return h, h.reshape(-1)


def output_reads_inside(p, h, x):
    """The output reads a summand inside of the loop, and parameters there."""

    def one(y, _):
        summand = y @ p["u"]
        return jnp.tanh(summand + x @ p["w"]), summand * p["scale"]

    h, seen = jax.lax.scan(one, h, None, length=5)
    return h, h + seen.sum(0)


def root_in_a_loop(p, h, x):
    """Of infinite derivative at the initial state."""

    def one(y, _):
        return jnp.sqrt(jnp.abs(y)) * p["scale"] + x @ p["w"], None

    h = jax.lax.scan(one, h, None, length=5)[0]
    return h, h


IMAGE = (3, 3, 2)
KERNEL = {"kernel": (2, 2, 2, 2)}
CELLS = {
    "one-dimensional": (cell_of(one_dimensional, 5, kernel=(3,), w=(X, 5)), 5),
    "gated": (
        cell_of(gated, (3, 1, 2), kernel=(3, 3, 2, 4), input=(3, 1, 1, 4), bias=(4,)),
        3,
    ),
    "reset gate": (
        cell_of(
            reset_gated,
            (3, 3, 1),
            gate=(2, 2, 1, 1),
            kernel=(3, 3, 1, 1),
            bias=(1,),
            scale=(3, 3, 1),
        ),
        9,
    ),
    "strided and back": (
        cell_of(strided_and_back, (3, 2, 2), down=(2, 2, 2, 1), up=(2, 1, 1, 2)),
        12,
    ),
    "features first": (cell_of(features_first, (2, 3, 2), kernel=(2, 2, 2, 1)), 6),
    "irregular cut": (cell_of(irregular_cut, IMAGE, **KERNEL), 9),
    "two in a sum": (
        cell_of(two_in_a_sum, IMAGE, **KERNEL, w=(X, 18), bias=(2,), whole=IMAGE),
        9,
    ),
    "cut to fit": (cell_of(cut_to_fit, IMAGE, **KERNEL, other=(2, 2, 2, 2)), 12),
    "one bias for all": (
        cell_of(one_bias_for_all, IMAGE, **KERNEL, other=(1, 1, 2, 2), bias=()),
        9,
    ),
    "tokens": (cell_of(tokens, (3, 2), w=(2, 2), u=(2, 2), bias=(2,)), 3),
    "weights first": (cell_of(weights_first, (3, 2), w=(2, 2)), 3),
    "heads of tokens": (cell_of(heads_of_tokens, (2, 3, 2), w=(3, 2, 2)), 2),
    "tied": (cell_of(tied, 3, u=(3, 3), w=(X, 3), bias=(3,)), 2),
    "tied to its transpose": (cell_of(tied_to_its_transpose, 3, u=(3, 4), w=(X, 4)), 1),
    "solver": (cell_of(solver, 3, u=(3, 3), w=(X, 3), bias=(3,), leak=(3,)), 5),
    "loop over data": (cell_of(loop_over_data, 3, u=(3, 3), v=(3, 3), scale=(3,)), 7),
    "loop in a loop": (cell_of(loop_in_a_loop, 3, u=(3, 3), w=(X, 3), v=(3, 3)), 30),
    "convolving loop": (cell_of(convolving_loop, (3, 1, 1), kernel=(2, 1, 1, 1), bias=(1,)), 15),
    "tied convolution": (cell_of(tied_convolution, IMAGE, **KERNEL), 18),
    "output reads inside": (cell_of(output_reads_inside, 3, u=(3, 3), w=(X, 3), scale=(3,)), 5),
    "root in a loop": (cell_of(root_in_a_loop, 3, w=(X, 3), scale=(3,)), 5),
    "steered": (cell_of(steered, 3, u=(3, 3)), 2),
}


# All are linearized; these learn too.
LEARNED = some(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_uses_are_terms_of_one_site_and_exact(name):
    cell, uses = CELLS[name]
    point, learned = random_point(cell, X, steps=4), name in LEARNED
    structure = assert_exact(cell, point, at_once=True, learned=learned).structure
    assert structure.problems == ()
    assert max(site.uses for site in structure.sites) == uses
    # Nothing is found twice.
    labels = [label for site in structure.sites for label in site.label.split(" + ")]
    assert len(labels) - len(set(labels)) == (name == "tied to its transpose")


@pytest.mark.parametrize(
    ("name", "estimator"),
    some(itertools.product(["gated", "reset gate", "solver"], ["kf_rtrl", "ok", "uoro"]), 4),
)
def test_the_mean_over_draws_is_the_exact_influence(name, estimator):
    made = {"kf_rtrl": estimators.kf_rtrl(), "ok": estimators.ok(2), "uoro": estimators.uoro()}
    z = monte_carlo.deviations(made[estimator], CELLS[name][0], draws=2048, steps=4)
    assert np.max(np.abs(z)) < 4


def test_a_bias_beside_a_kernel_is_a_row_of_its_site():
    structure = make_linearizer(CELLS["gated"][0], jnp.zeros(X), 2).structure
    (site,) = structure.sites
    assert (site.input_size, site.output_size, site.uses) == (9 * 2 + 3 + 1, 4, 3)
    assert "used 3 times a step" in str(explain(CELLS["gated"][0], jnp.zeros(X), check=False))


def test_what_is_followed_no_further_says_why():
    grouped = cell_of(
        lambda p, h, x: (conv(h, p["kernel"], feature_group_count=2),) * 2,
        IMAGE,
        kernel=(3, 3, 1, 2),
    )
    structure = make_linearizer(grouped, jnp.zeros(X), 1).structure
    with pytest.raises(UnsupportedCellError, match=r"conv_general_dilated at .*in groups"):
        estimators.kf_rtrl().init(structure)
    assert_exact(
        grouped._replace(step=lambda p, h, x: (grouped.step(p, h, x)[0], h.reshape(-1))),
        random_point(grouped, X, steps=4),
        at_once=True,
    )
