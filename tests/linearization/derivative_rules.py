"""More operations of random cells: derivative rules of their own, and what is to be refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import complex as pair

from tests.linearization.operations import MASK, N, bounded, which

MIX = np.sin(np.arange(N * N)).reshape(N, N)


def by_rule(forward, backward):
    """A function with a rule (cotangent, *arguments) -> cotangents of the arguments."""
    function = jax.custom_vjp(lambda *a: forward(*a))
    function.defvjp(lambda *a: (forward(*a), a), lambda a, g: backward(g, *a))
    return function


def by_tangents(forward, tangent):
    """A function with a rule (tangents, arguments) -> tangent."""
    function = jax.custom_jvp(lambda *a: forward(*a))
    function.defjvp(lambda x, t: (function(*x), tangent(t, x)))
    return function


def heaviside(v):
    return (v > 0).astype(v.dtype)


def surrogate(g, v):
    return (g / (1 + jnp.abs(v)) ** 2,)


spike = by_rule(heaviside, surrogate)
mixing_spike = by_rule(heaviside, lambda g, v: surrogate(g + 0.5 * jnp.roll(g, 1), v))
dense_rule = by_rule(jnp.tanh, lambda g, v: ((g @ MIX.astype(v.dtype)) * jnp.cos(v),))
zero = by_rule(jnp.zeros_like, lambda g, v: (g * jax.nn.sigmoid(v),))
# Not `jnp.zeros_like`: JAX itself cannot differentiate that in a scan of a vmap.
zero_by_tangents = by_tangents(lambda v: 0 * v, lambda t, x: t[0] * jax.nn.sigmoid(x[0]))
ones = by_rule(jnp.ones_like, lambda g, v: (g * v,))
stopped = by_rule(jnp.sin, lambda g, v: (jnp.zeros_like(g),))
stopped_by_tangents = by_tangents(jnp.sin, lambda t, x: jnp.zeros_like(t[0]))
reversed_rule = by_rule(lambda v: v * 1, lambda g, v: (g[::-1],))
negated_rule = by_rule(lambda v: v * 1, lambda g, v: (-0.5 * g,))
elementwise_rule = by_rule(jax.nn.softmax, lambda g, v: (g,))
sign = by_tangents(jnp.sign, lambda t, x: t[0] / (1 + x[0] ** 2))
denser_tangent = by_tangents(jnp.tanh, lambda t, x: t[0] + 0.5 * jnp.roll(t[0], 1) * x[0])
mean_tangent = by_tangents(jnp.sign, lambda t, x: t[0].mean() * jnp.cos(x[0]))
rule_of_two = by_rule(lambda v, w: v * w, lambda g, v, w: (0.5 * g * w, jnp.roll(g, 1) * v))
rule_of_the_other = by_rule(lambda v, w: v * 1, lambda g, v, w: (jnp.zeros_like(g), g))
rule_of_results = by_rule(
    lambda v: (jnp.sin(v), jnp.cos(v)), lambda g, v: (g[0] * v + jnp.roll(g[1], 1),)
)
rule_of_cumsum = by_rule(jnp.cumsum, lambda g, v: (jnp.cumsum(g) + g * v,))
rule_of_scan = by_rule(
    jnp.tanh,
    lambda g, v: jax.lax.scan(lambda s, a: (0.5 * s + a, s + 2 * a), jnp.zeros_like(g[0]), g)[1:],
)
rule_of_solve = by_rule(
    jnp.tanh, lambda g, v: (jnp.linalg.solve(2 * jnp.eye(N) + jnp.diag(jnp.tanh(v)[1:], 1), g),)
)
rule_of_fourier = by_rule(jnp.tanh, lambda g, v: (jnp.fft.fft(g).real * v,))
rule_of_sort = by_rule(jnp.sort, lambda g, v: (g[jnp.argsort(v)],))
hard = by_rule(
    lambda v: jnp.clip(v, -1, 1), lambda g, v: (jnp.where(jnp.abs(v) < 1, g, jnp.zeros_like(g)),)
)
conditional_rule = by_rule(
    heaviside, lambda g, v: (jax.lax.cond(v[0] > 0, lambda c: c * v, lambda c: c[::-1], g),)
)
with_integer = by_rule(lambda v, i: jnp.roll(v, i), lambda g, v, i: (g * (1 + i), None))
composed = by_rule(lambda v: spike(sign(v)), lambda g, v: (denser_tangent(v) * g,))
pruned = by_rule(lambda w: w * MASK, lambda g, w: (g,))
identity = by_tangents(lambda w: jnp.zeros_like(w), lambda t, x: t[0])
complex_rule = by_rule(lambda z: z / (1 + jnp.abs(z)), lambda g, z: (0.5 * g * jnp.conj(z),))
conjugating_rule = by_rule(lambda z: 1j * z, lambda g, z: (jnp.conj(g) + g * z.real,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def with_static(v, shift):
    return heaviside(v) + shift


with_static.defvjp(
    lambda v, shift: (with_static(v, shift), v), lambda shift, v, g: (g * jnp.roll(v, shift),)
)

RULES = {
    "spike": lambda p, k, v, w: spike(v) @ p(k, N, N) + w,
    "spike_of_product": lambda p, k, v, w: spike(v @ p(k, N, N)) * w,
    "mixing_spike": lambda p, k, v, w: mixing_spike(v) @ p(k, N, N) + w,
    "dense_rule": lambda p, k, v, w: dense_rule(v) * w,
    "zero_forward": lambda p, k, v, w: zero(v) @ p(k, N, N) + w,
    "zero_forward_by_tangents": lambda p, k, v, w: zero_by_tangents(v) * p(k, N) + w,
    "zero_alone": lambda p, k, v, w: zero(v),
    "constant_forward": lambda p, k, v, w: ones(v) * w,
    "zero_rule": lambda p, k, v, w: stopped(v) * w,
    "zero_rule_by_tangents": lambda p, k, v, w: stopped_by_tangents(v) * w,
    "reversed_rule": lambda p, k, v, w: reversed_rule(v) + p(k, N) * w,
    "negated_rule": lambda p, k, v, w: negated_rule(v) + p(k, N),
    "elementwise_rule": lambda p, k, v, w: elementwise_rule(v) * w,
    "sign": lambda p, k, v, w: sign(v) @ p(k, N, N) + w,
    "denser_tangent": lambda p, k, v, w: denser_tangent(v) * w,
    "mean_tangent": lambda p, k, v, w: mean_tangent(v) + w,
    "rule_of_two": lambda p, k, v, w: rule_of_two(v, w),
    "rule_of_the_other": lambda p, k, v, w: rule_of_the_other(v, w) @ p(k, N, N),
    "rule_of_results": lambda p, k, v, w: jnp.multiply(*rule_of_results(v)) + w,
    "rule_of_one_result": lambda p, k, v, w: rule_of_results(v)[1] * w,
    "rule_of_cumsum": lambda p, k, v, w: rule_of_cumsum(v) * w,
    "rule_of_scan": lambda p, k, v, w: rule_of_scan(v) * w,
    "rule_of_solve": lambda p, k, v, w: rule_of_solve(v) * w,
    "rule_of_fourier": lambda p, k, v, w: rule_of_fourier(v) * w,
    "rule_of_sort": lambda p, k, v, w: rule_of_sort(v) * w,
    "rule_of_choice": lambda p, k, v, w: hard(v) + w,
    "conditional_rule": lambda p, k, v, w: conditional_rule(v) * w,
    "rule_with_integer": lambda p, k, v, w: with_integer(v, which(w)) + w,
    "rule_with_static": lambda p, k, v, w: with_static(v, 2) * w,
    "composed_rule": lambda p, k, v, w: composed(v) * w,
    "rule_in_scan": lambda p, k, v, w: jax.lax.scan(
        lambda s, a: (mixing_spike(s @ p(k, N, N)) + a, None), v, jnp.stack([v, w])
    )[0],
    "rule_in_scan_of_data": lambda p, k, v, w: jax.lax.scan(
        lambda s, a: (0.5 * s + zero(a), spike(s) + a), w[0], v
    )[1],
    "rule_in_conditional": lambda p, k, v, w: jax.lax.cond(
        v[0] > 0, lambda s: mixing_spike(s) @ p(k, N, N), lambda s: zero(s) + s, w
    ),
    "rule_in_vmap": lambda p, k, v, w: jax.vmap(mixing_spike, in_axes=1, out_axes=1)(
        jnp.stack([v, w])
    ).sum(0),
    "rule_in_remat": lambda p, k, v, w: jax.checkpoint(lambda s: mixing_spike(s) * sign(s))(v) + w,
    "binary_weights": lambda p, k, v, w: v @ sign(p(k, N, N)),
    "zero_weights": lambda p, k, v, w: v @ zero(p(k, N, N)) + w,
    "zero_weights_by_tangents": lambda p, k, v, w: v @ identity(p(k, N, N)) + w,
    "pruned_weights": lambda p, k, v, w: v @ pruned(p(k, N, N)),
    "complex_rule": lambda p, k, v, w: complex_rule(pair(v, w)).imag + w,
    "conjugating_rule": lambda p, k, v, w: (
        conjugating_rule(bounded(v, w) * p.complex(k, N)).imag + w
    ),
}

SMOOTH_RULES = {
    name: RULES[name]
    for name in (
        "dense_rule",
        "zero_forward",
        "constant_forward",
        "zero_rule",
        "denser_tangent",
        "rule_of_two",
        "rule_of_the_other",
        "rule_of_results",
        "rule_of_cumsum",
        "rule_of_scan",
        "pruned_weights",
    )
}

clipped = by_rule(lambda v: v * 1, lambda g, v: (jnp.clip(g, -1, 1),))
normalized = by_rule(lambda v: v * 1, lambda g, v: (g / (1e-6 + jnp.linalg.norm(g)),))
sign_of_gradient = by_rule(jnp.tanh, lambda g, v: (jnp.sign(g) * v,))
shifted = by_rule(jnp.tanh, lambda g, v: (g + v,))
positive = by_rule(jnp.sin, lambda g, v: (jnp.where(g > 0, g, 0),))
squared = by_rule(jnp.sin, lambda g, v: (g * jnp.abs(g),))
clipped_by_norm = by_rule(
    lambda v: v * 1, lambda g, v: (g * jnp.minimum(1.0, 1 / jnp.linalg.norm(g)),)
)

# Rules that are no linear map of the cotangent: there is no Jacobian.
NOT_LINEAR = {
    "clipped": lambda p, k, v, w: clipped(v) + w,
    "clipped_product": lambda p, k, v, w: clipped(v @ p(k, N, N)),
    "clipped_by_norm": lambda p, k, v, w: clipped_by_norm(v) * w,
    "normalized": lambda p, k, v, w: normalized(v) @ p(k, N, N),
    "sign_of_gradient": lambda p, k, v, w: sign_of_gradient(v) + w,
    "shifted": lambda p, k, v, w: shifted(v) + w,
    "positive": lambda p, k, v, w: positive(v) + w,
    "squared": lambda p, k, v, w: squared(v) + w,
    "clipped_in_scan": lambda p, k, v, w: jax.lax.scan(lambda s, a: (clipped(s * a), s), w[0], v)[
        1
    ],
    "clipped_in_conditional": lambda p, k, v, w: jax.lax.cond(v[0] > 0, clipped, jnp.sin, w),
    "clipped_in_remat": lambda p, k, v, w: jax.checkpoint(lambda s: jnp.sin(clipped(s)))(v) + w,
    "clipped_in_vmap": lambda p, k, v, w: jax.vmap(clipped)(jnp.outer(v, w)).sum(0),
    "clipped_weights": lambda p, k, v, w: v @ clipped(p(k, N, N)),
    "clipped_complex": lambda p, k, v, w: normalized(pair(v, w)).imag,
}

own_product = by_tangents(lambda w, v: v @ w, lambda t, x: 3 * x[1] @ t[0] + t[1] @ x[0])
own_backward_product = by_rule(lambda w, v: v @ w, lambda g, w, v: (3 * jnp.outer(v, g), w @ g))

# Parameters in no product nor sum with data: with the primitive that the refusal has to name.
UNSUPPORTED = {
    "max": ("max", lambda p, k, v, w: jnp.maximum(p(k, N), v)),
    "power": ("pow", lambda p, k, v, w: (1 + jnp.tanh(v) ** 2) ** p(k, N)),
    "own_rule": ("custom_jvp_call", lambda p, k, v, w: own_product(p(k, N, N), v)),
    "own_backward_rule": (
        "custom_vjp_call",
        lambda p, k, v, w: own_backward_product(p(k, N, N), v),
    ),
    "logaddexp": ("custom_jvp_call", lambda p, k, v, w: jnp.logaddexp(p(k, N), v)),
    "grouped_convolution": (
        "conv_general_dilated",
        lambda p, k, v, w: jax.lax.conv_general_dilated(
            v.reshape(1, 2, 2), p(k, 2, 1, 1), (1,), "SAME", feature_group_count=2
        ).reshape(-1),
    ),
    "gathered": ("gather", lambda p, k, v, w: p(k, N)[jnp.argsort(v)] * w),
    "slice_of_parameters": (
        "dynamic_slice",
        lambda p, k, v, w: jax.lax.dynamic_slice(p(k, N + 1), (which(v),), (N,)) * w,
    ),
    "scattered": ("scatter", lambda p, k, v, w: v.at[which(w)].set(p(k))),
    "chosen_by_parameters": (
        "select_n",
        lambda p, k, v, w: jnp.where(p(k, N) > 0, p(k + "b", N), v),
    ),
    "solved": (
        "custom_linear_solve",
        lambda p, k, v, w: jnp.linalg.solve(jnp.eye(N) + jnp.diag(jnp.tanh(v)[1:], 1), p(k, N)),
    ),
    "long_scan": (
        "scan",
        lambda p, k, v, w: jax.lax.scan(lambda s, m: (s + 0.1 * m * v, None), w, p(k, 70, N))[0],
    ),
    "complex_power": ("pow", lambda p, k, v, w: ((2 + bounded(v, w)) ** p.complex(k, N)).imag),
}
