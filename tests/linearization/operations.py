"""Operations that random cells are made of.

Each takes (parameters, a fresh name, two vectors of data) to a vector of data, all of N elements. A sum
that an output may read beside the state is told to `parameters.note`; `parameters.state` are vectors of
the carry.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import complex as pair

N = 4
MASK = np.arange(N * N).reshape(N, N) % 3 == 0
PERMUTATION = np.array([2, 0, 3, 1])


def bounded(v, w):
    """A complex vector with parts between -1 and 1."""
    return pair(jnp.tanh(v), jnp.tanh(w))


def in_a_loop(table):
    """A function that goes through a loop, whose jaxpr does not print its table."""
    times = jax.jit(lambda v: v * jnp.asarray(table))
    return lambda v: jax.lax.fori_loop(0, 2, lambda _, v: times(v), v)


def with_slope(slope):
    """The sine, with a derivative rule of its own."""
    sine = jax.custom_jvp(jnp.sin)
    sine.defjvps(lambda tangent, _, v: slope * tangent)
    return sine


IN_A_LOOP = [in_a_loop([0.5, 1.0, -1.0, 0.8]), in_a_loop([1.2, 0.3, -0.5, 1.0])]
WITH_SLOPE = [with_slope(1.0), with_slope(-0.7)]


def layer_norm(v):
    return (v - v.mean()) / jnp.sqrt(v.var() + 0.1)


def which(v):
    """0 or 1; not by the sign of what is 0 but for rounding."""
    return (v[0] > 1e-7).astype(int)


def split(v):
    return jnp.split(v, 2)


def scanned(p, k, v, _):
    w = p(k, N, N)
    return jax.lax.scan(lambda s, _: (jnp.tanh(s @ w), None), v, None, length=2)[0]


def noted(p, v):
    p.note(v)
    return v


PRODUCTS = {
    "product": lambda p, k, v, w: v @ p(k, N, N),
    "product_from_the_left": lambda p, k, v, w: p(k, N, N) @ v,
    "transposed": lambda p, k, v, w: p(k, N, N).T @ v,
    "fused": lambda p, k, v, w: jnp.multiply(*split(v @ p(k, N, 2 * N))),
    "sliced": lambda p, k, v, w: v @ p(k, N, 2 * N)[:, 1 : N + 1],
    "concatenated_input": lambda p, k, v, w: jnp.concatenate([v, w]) @ p(k, 2 * N, N),
    "two_matrices": lambda p, k, v, w: v @ p(k, N, N) + w @ p(k + "b", N, N) + p(k + "c", N),
    "split_sums": lambda p, k, v, w: sum(
        a * b for a, b in zip(split(v @ p(k, N, 2 * N)), split(w @ p(k + "b", N, 2 * N)))
    ),
    "shared": lambda p, k, v, w: v @ p("shared", N, N),
    "tied": lambda p, k, v, w: v @ p("shared", N, N).T,
    "low_rank": lambda p, k, v, w: v @ (p(k, N, 2) @ p(k + "b", 2, N)),
    "normalized": lambda p, k, v, w: v @ (p(k, N, N) / jnp.linalg.norm(p(k, N, N))),
    "scaled": lambda p, k, v, w: jnp.exp(p(k)) * v,
    "bias": lambda p, k, v, w: v + p(k, N),
    "negative_bias": lambda p, k, v, w: p(k, N) - v,
    "peephole": lambda p, k, v, w: p(k, N) * v + w @ p(k + "b", N, N),
    "quotient": lambda p, k, v, w: v / (1 + p(k, N) ** 2),
    "rows": lambda p, k, v, w: (jnp.stack([v, w]) @ p(k, N, N)).sum(0),
    "heads": lambda p, k, v, w: jnp.ravel(jnp.einsum("hi,hij->hj", v.reshape(2, 2), p(k, 2, 2, 2))),
    "heads_from_the_left": lambda p, k, v, w: jnp.ravel(
        jnp.einsum("hij,hj->hi", p(k, 2, 2, 2), v.reshape(2, 2))
    ),
    "heads_of_one": lambda p, k, v, w: jnp.ravel(
        jnp.einsum("hi,hij->hj", v[:, None], p(k, N, 1, 1))
    ),
    "shared_heads": lambda p, k, v, w: jnp.ravel(
        jnp.einsum("hi,ij->hj", v.reshape(2, 2), p(k, 2, 2))
    ),
    "convolution": lambda p, k, v, w: jnp.convolve(v, p(k, 3), mode="same") + w @ p(k + "b", N, N),
    "convolved_image": lambda p, k, v, w: jnp.ravel(
        jax.lax.conv_general_dilated(
            jnp.stack([v, w]).reshape(1, 2, 2, 2),
            p(k, 2, 2, 2, 2),
            (1, 2),
            [(1, 0), (0, 0)],
            dimension_numbers=("NCHW", "HWIO", "NHWC"),
        )
        + p(k + "b", 2)
    ),
    "bilinear": lambda p, k, v, w: jnp.einsum("i,ijk,j->k", v, p(k, N, N, N), w),
    "weighted_weights": lambda p, k, v, w: (p(k, N, N) * w) @ v,
    "outer": lambda p, k, v, w: (p(k, N, N) * jnp.outer(v, w)).sum(0),
    "vmapped": lambda p, k, v, w: jax.vmap(lambda row: row @ v)(p(k, N, N)),
    "vmapped_heads": lambda p, k, v, w: jnp.ravel(
        jax.vmap(jnp.matmul)(v.reshape(2, 2), p(k, 2, 2, 2))
    ),
    "look_up": lambda p, k, v, w: p(k, 3, N)[which(v)] * w,
    "look_up_or_fill": lambda p, k, v, w: (
        w * jnp.take(p(k, 3, N), 4 * which(v), axis=0, mode="fill", fill_value=0.5)
    ),
    "loops_that_print_alike": lambda p, k, v, w: (
        v * IN_A_LOOP[0](p(k, N)) + w * IN_A_LOOP[1](p(k, N))
    ),
    "rules_that_print_alike": lambda p, k, v, w: (
        v * WITH_SLOPE[0](p(k, N)) + w * WITH_SLOPE[1](p(k, N))
    ),
    "numbers_that_print_alike": lambda p, k, v, w: (
        1e6 * v * (jnp.asarray(0.3) * p(k, N) - jnp.asarray(0.3 + 4e-9) * p(k, N)) + w
    ),
    "choice": lambda p, k, v, w: jnp.where(v > 0, p(k, N), w),
    "choice_by_parameters": lambda p, k, v, w: jnp.where(p(k, N) > 0, v, w),
    "diagonal": lambda p, k, v, w: jnp.diag(p(k, N)) @ v,
    "decay": lambda p, k, v, w: (
        jnp.exp(-jnp.exp(p(k, N))) * v + jnp.sqrt(1 - jnp.exp(-2 * jnp.exp(p(k, N)))) * w
    ),
    "alone": lambda p, k, v, w: p(k, N),
    "twice": lambda p, k, v, w: v @ p(k, N, N) + jnp.sin(v @ p(k, N, N)) * w,
    "subtracted": lambda p, k, v, w: w - v @ p(k, N, N),
    "spread": lambda p, k, v, w: p(k, N) * v[0] + (p(k + "b") - w[1]) * w,
    "layer_norm": lambda p, k, v, w: layer_norm(v) * p(k, N),
    "product_of_sums": lambda p, k, v, w: jnp.tanh(v @ p(k, N, N) + 1) * (w - 2.0),
    "masked": lambda p, k, v, w: v @ (p(k, N, N) * MASK),
    "triangular": lambda p, k, v, w: jnp.tril(p(k, N, N), -1) @ v + jnp.triu(p(k + "b", N, N)) @ w,
    "sparse": lambda p, k, v, w: jnp.zeros((N, N)).at[:2, [0, 3]].set(jnp.tanh(p(k, 2, 2))) @ v,
    "padded": lambda p, k, v, w: (
        w * jnp.pad(p(k, 2), (1, 1)) + jnp.concatenate([v[:1], p(k + "b", 3)])
    ),
    "permuted_weights": lambda p, k, v, w: v @ p(k, N, N)[PERMUTATION],
    "stopped_weights": lambda p, k, v, w: v @ jax.lax.stop_gradient(p(k, N, N)),
    "remat": lambda p, k, v, w: jax.checkpoint(lambda m, s: jnp.sin(s @ m))(p(k, N, N), v),
    "jit": lambda p, k, v, w: jax.jit(lambda m, s: s @ m)(p(k, N, N), v),
    "solve": lambda p, k, v, w: jnp.linalg.solve(jnp.eye(N) + 0.1 * p(k, N, N) * jnp.tanh(v), w),
}

# Partial sums that enter the state and that an output may read too.
NOTED = {
    "noted_summand": lambda p, k, v, w: jnp.tanh(
        noted(p, v @ p(k, N, N)) + w @ p(k + "b", N, N) + p(k + "c", N)
    ),
    "noted_sum": lambda p, k, v, w: noted(p, v @ p(k, N, N) + p(k + "b", N)) + w @ p(k + "c", N, N),
    "noted_bias": lambda p, k, v, w: noted(p, v + p(k, N)) + p(k + "b", N),
    "noted_scaling": lambda p, k, v, w: noted(p, p(k, N) * v) + w @ p(k + "b", N, N),
    "noted_difference": lambda p, k, v, w: noted(p, p(k, N) - v) + w @ p(k + "b", N, N),
    "noted_gate": lambda p, k, v, w: jnp.multiply(
        *map(lambda part: noted(p, part), split(v @ p(k, N, 2 * N) + p(k + "b", 2 * N)))
    ),
    "noted_whole": lambda p, k, v, w: noted(p, v @ p(k, N, N))[::-1] + w,
    "noted_row": lambda p, k, v, w: noted(p, p(k, 3, N)[which(v)]) + w @ p(k + "b", N, N),
    "noted_heads": lambda p, k, v, w: (
        noted(p, jnp.einsum("hi,hij->hj", v.reshape(2, 2), p(k, 2, 2, 2)).reshape(-1))
        + w @ p(k + "b", N, N)
    ),
    "noted_products": lambda p, k, v, w: jnp.tanh(noted(p, v @ p(k, N, N))) * w,
    "noted_complex": lambda p, k, v, w: (lambda z: z.real + noted(p, z.imag) * w)(
        pair(v, w) @ pair(p(k, N, N), p(k + "b", N, N))
    ),
}

CHOICES = {
    "conditional": lambda p, k, v, w: jax.lax.cond(
        v[0] > 0, lambda s: s @ p(k, N, N), lambda s: s + p(k + "b", N), w
    ),
    "conditional_of_two": lambda p, k, v, w: jax.lax.cond(
        v[0] > 0, lambda: v * p(k, N) + w, lambda: w @ p(k + "b", N, N) + v @ p(k + "c", N, N)
    ),
    "conditional_by_parameters": lambda p, k, v, w: jax.lax.cond(
        p(k) > 0, lambda s: s @ p(k + "b", N, N), jnp.sin, w
    ),
    "nested_conditional": lambda p, k, v, w: jax.lax.cond(
        v[0] > 0,
        lambda s: jax.lax.cond(s[0] > 0, lambda t: t @ p(k, N, N), jnp.sin, s),
        lambda s: s * p(k + "b", N),
        w,
    ),
    "switch": lambda p, k, v, w: jax.lax.switch(
        (2 * v[0]).astype(int) + 1,
        [lambda s: s @ p(k, N, N), lambda s: s * p(k + "b", N), jnp.sin],
        w,
    ),
    "switch_of_products": lambda p, k, v, w: jax.lax.switch(
        jnp.argmax(v), [lambda s, i=i: s @ p(f"{k}{i}", N, N) for i in range(3)], w
    ),
    "parameter_or_data": lambda p, k, v, w: jax.lax.cond(v[0] > 0, lambda: p(k, N), lambda: w),
    # In the branch that is not taken the derivative, or the value, is infinite or no number.
    "branch_of_root": lambda p, k, v, w: jax.lax.cond(
        jnp.all(v > 0),
        lambda s: jnp.sqrt(s) @ p(k, N, N),
        lambda s: s @ p(k + "b", N, N) + w,
        jax.nn.relu(v),
    ),
    "branch_of_inverse": lambda p, k, v, w: jax.lax.cond(
        jnp.all(jnp.abs(v) > 0.2), lambda s: (1 / s) @ p(k, N, N), lambda s: s * p(k + "b", N), v
    ),
    "branch_of_norm": lambda p, k, v, w: jax.lax.cond(
        v @ v > 0.01, lambda s: s / jnp.linalg.norm(s), lambda s: s, v
    ),
    "branch_of_log": lambda p, k, v, w: jax.lax.cond(
        jnp.all(v > 0.1), lambda s: p(k, N) * jnp.log(s), lambda s: s + w, v
    ),
    "branch_of_division": lambda p, k, v, w: jax.lax.switch(
        jnp.all(jnp.abs(w) > 0.2) * (1 + which(v)),
        [lambda a, b: a + b, lambda a, b: jnp.sin(a / b), lambda a, b: b @ p(k, N, N) / b],
        v,
        w,
    ),
    "conditional_in_scan": lambda p, k, v, w: jax.lax.scan(
        lambda s, a: (jax.lax.cond(a > 0, lambda t: jnp.tanh(t @ p(k, N, N)), jnp.sin, s), None),
        v,
        w[:2],
    )[0],
    "root_in_scan": lambda p, k, v, w: jax.lax.scan(
        lambda s, a: (s + jax.lax.cond(a > 0, jnp.sqrt, jnp.sin, a), s), v[0], jax.nn.relu(w)
    )[1],
    "scan_in_conditional": lambda p, k, v, w: jax.lax.cond(
        v[0] > 0,
        lambda s: jax.lax.fori_loop(0, 2, lambda i, t: jnp.tanh(t @ p(k, N, N)), s),
        lambda s: s,
        w,
    ),
    "vmapped_conditional": lambda p, k, v, w: jax.vmap(
        lambda a, b: jax.lax.cond(a > 0, lambda s: s * b, jnp.sin, a)
    )(v, w),
    "conditional_in_remat": lambda p, k, v, w: jax.checkpoint(
        lambda m, s: jax.lax.cond(s[0] > 0, lambda t: t @ m, jnp.sin, s)
    )(p(k, N, N), v),
    "safe_root": lambda p, k, v, w: (
        jnp.where(v > 0, jnp.sqrt(jnp.where(v > 0, v, 1.0)), 0.0) @ p(k, N, N)
    ),
    "safe_quotient": lambda p, k, v, w: jnp.where(
        jnp.abs(v) > 0.2, w / jnp.where(jnp.abs(v) > 0.2, v, 1.0), p(k, N)
    ),
    "select": lambda p, k, v, w: jnp.select([v > 0.5, v > 0], [v, w], v * w),
}

LOOPS = {
    "scan": scanned,
    "loop": lambda p, k, v, w: jax.lax.fori_loop(0, 2, lambda i, s: jnp.tanh(s @ p(k, N, N)), v),
    "scan_over_weights": lambda p, k, v, w: (lambda end, seen: end + seen.sum(0) * w)(
        *jax.lax.scan(lambda s, m: (jnp.tanh(s @ m), s), v, p(k, 2, N, N))
    ),
    "scan_over_data": lambda p, k, v, w: jax.lax.scan(
        lambda s, a: (jnp.tanh(s @ p(k, N, N) + a), s * a), v, jnp.stack([v, w])
    )[1].sum(0),
    "reverse_scan": lambda p, k, v, w: jax.lax.scan(
        lambda s, a: (0.5 * s + a * p(k), s * a), w[0], v, reverse=True
    )[1],
    "scan_of_data": lambda p, k, v, w: jax.lax.scan(lambda s, a: (0.5 * s + a, s * a), w[0], v)[1],
    "associative_scan": lambda p, k, v, w: jax.lax.associative_scan(
        lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (jax.nn.sigmoid(v), w)
    )[1],
    "loop_of_data": lambda p, k, v, w: jax.lax.fori_loop(0, 3, lambda i, s: jnp.sin(s) + w * i, v),
    "map": lambda p, k, v, w: jax.lax.map(lambda a: jnp.sin(a) * a, v),
}

OF_DATA = {
    "tanh": lambda p, k, v, w: jnp.tanh(v),
    "sigmoid": lambda p, k, v, w: jax.nn.sigmoid(v) * w,
    "relu": lambda p, k, v, w: jax.nn.relu(v) + 0.1 * v,
    "silu": lambda p, k, v, w: jax.nn.silu(v),
    "gelu": lambda p, k, v, w: jax.nn.gelu(v) * w,
    "gate": lambda p, k, v, w: jax.nn.sigmoid(v) * v + (1 - jax.nn.sigmoid(v)) * w,
    "power_of_data": lambda p, k, v, w: (1 + jnp.tanh(v) ** 2) ** 0.7 - jnp.tanh(w) ** 3,
    "clip": lambda p, k, v, w: jnp.clip(v, -0.5, 0.5) + 0.1 * w,
    "remainder": lambda p, k, v, w: jnp.mod(v, 0.7) + jnp.floor(w),
    "angle": lambda p, k, v, w: jnp.arctan2(v, 1 + w**2),
    "maximum": lambda p, k, v, w: jnp.maximum(v, w),
    "roll": lambda p, k, v, w: jnp.roll(v, 1) * w,
    "reverse": lambda p, k, v, w: v[::-1] + w,
    "halves": lambda p, k, v, w: jnp.concatenate([v[2:] * w[:2], w[:2]]),
    "softmax": lambda p, k, v, w: jax.nn.softmax(v),
    "mean": lambda p, k, v, w: v.mean() + w,
    "largest": lambda p, k, v, w: v.max() * w,
    "product_of_elements": lambda p, k, v, w: jnp.prod(jnp.tanh(v) + 1.5) * w,
    "logsumexp": lambda p, k, v, w: jax.nn.logsumexp(v) - w,
    "attention": lambda p, k, v, w: jax.nn.softmax(jnp.outer(v, w)) @ w,
    "stopped": lambda p, k, v, w: jax.lax.stop_gradient(v) * w,
    "straight_through": lambda p, k, v, w: v + jax.lax.stop_gradient(jnp.sign(v) - v) * w,
    "cumsum": lambda p, k, v, w: jnp.cumsum(v) * w,
    "cumprod": lambda p, k, v, w: jnp.cumprod(jnp.tanh(v)) + w,
    "cummax": lambda p, k, v, w: jax.lax.cummax(v) * w,
    "sort": lambda p, k, v, w: jnp.sort(v),
    "sort_of_two": lambda p, k, v, w: jax.lax.sort((v, w), num_keys=1)[1],
    "argsort": lambda p, k, v, w: w[jnp.argsort(v)],
    "top_k": lambda p, k, v, w: jnp.concatenate([jax.lax.top_k(v, 2)[0], w[:2]]),
    "element": lambda p, k, v, w: v[jnp.argmax(w)] * w,
    "gather": lambda p, k, v, w: v[jnp.where(w > 0, 1, 3)],
    "dynamic_slice": lambda p, k, v, w: jnp.tile(jax.lax.dynamic_slice(v, (which(w),), (2,)), 2),
    "dynamic_update_slice": lambda p, k, v, w: jax.lax.dynamic_update_slice(v, w[:2], (which(w),)),
    "scatter": lambda p, k, v, w: v.at[which(w)].set(w[3]),
    "scatter_add": lambda p, k, v, w: jnp.zeros_like(v).at[jnp.where(w > 0, 1, 3)].add(v) + w,
    "convolved": lambda p, k, v, w: jnp.convolve(v, jnp.array([0.5, -1, 0.2]), mode="same"),
    "cholesky": lambda p, k, v, w: jnp.linalg.cholesky(jnp.eye(N) + jnp.outer(v, v))[-1] * w,
    "vmapped_data": lambda p, k, v, w: jax.vmap(lambda a, b: a * jnp.sin(b))(v, w),
}

# The derivative at the initial state is infinite, or no number; what comes before it has none.
SINGULAR = {
    "root_of_state": lambda p, k, v, w: jnp.sqrt(sum(map(jnp.abs, p.state))) @ p(k, N, N) + v,
    "unit_state": lambda p, k, v, w: p.state[1] / (jnp.linalg.norm(p.state[1]) + 1e-6) * w + v,
    "power_of_state": lambda p, k, v, w: sum(s**2 for s in p.state) ** 0.25 * p(k, N) + v,
    "direction_of_state": lambda p, k, v, w: jnp.arctan2(*p.state) @ p(k, N, N) + v,
}

CONSTANTS = {
    "permutation": lambda p, k, v, w: v[p.constant(k, PERMUTATION)] + w,
    "weights_by_permutation": lambda p, k, v, w: v @ p(k + "b", N, N)[p.constant(k, PERMUTATION)],
    "row_by_integer": lambda p, k, v, w: p(k + "b", 3, N)[p.constant(k, np.array(2))] * w,
    "scatter_by_integers": lambda p, k, v, w: w.at[p.constant(k, np.array([0, 0, 2, 1]))].add(v),
    "branch_by_integer": lambda p, k, v, w: jax.lax.switch(
        p.constant(k, np.array(1)), [jnp.sin, lambda s: s @ p(k + "b", N, N)], v
    ),
    "integer_power": lambda p, k, v, w: jnp.tanh(v) ** p.constant(k, np.array([1, 2, 3, 2])),
    "choice_by_booleans": lambda p, k, v, w: jnp.where(p.constant(k, MASK[0]), v, w),
    "mask_of_booleans": lambda p, k, v, w: v @ (p(k + "b", N, N) * p.constant(k, MASK)),
    "scaled_by_key": lambda p, k, v, w: v * jax.random.normal(p.key(k), (N,), v.dtype),
    "maximum_by_key": lambda p, k, v, w: jnp.maximum(v, jax.random.normal(p.key(k), (N,), v.dtype)),
    "weights_by_raw_key": lambda p, k, v, w: (
        v @ jax.random.normal(p.constant(k, np.array([5, 8], np.uint32)), (N, N), v.dtype)
    ),
}

COMPLEX = {
    "lru": lambda p, k, v, w: (lambda z: z.real + z.imag)(
        jnp.exp(-jnp.exp(p(k, N)) + 1j * p(k + "b", N)) * pair(v, w)
        + pair(p(k + "c", N, N) @ v, p(k + "d", N, N) @ w)
    ),
    "complex_weights": lambda p, k, v, w: (lambda z: z.real + z.imag)(v @ p.complex(k, N, N)),
    "complex_product": lambda p, k, v, w: (pair(v, w) @ pair(p(k, N, N), p(k + "b", N, N))).imag,
    "complex_by_real": lambda p, k, v, w: (lambda z: z.real * z.imag)(bounded(v, w) @ p(k, N, N)),
    "complex_from_the_left": lambda p, k, v, w: (p.complex(k, N, N).T @ pair(v, w)).real,
    "complex_scaling": lambda p, k, v, w: (p.complex(k, N) * pair(v, w)).real,
    "complex_bias": lambda p, k, v, w: jnp.abs(pair(v, w) + p.complex(k, N)),
    "complex_difference": lambda p, k, v, w: (
        (p.complex(k, N) - pair(v, w) @ p.complex(k + "b", N, N)).imag
    ),
    "rotation": lambda p, k, v, w: (jnp.exp(1j * p(k)) * pair(v, w)).imag,
    "complex_quotient": lambda p, k, v, w: (pair(v, w) / (3 + p.complex(k, N))).imag,
    "quotient_by_complex": lambda p, k, v, w: (p.complex(k, N) / (2 + bounded(v, w))).real,
    "conjugate": lambda p, k, v, w: (jnp.conj(pair(v, w)) * p.complex(k, N)).imag,
    "conjugate_weights": lambda p, k, v, w: (pair(v, w) @ jnp.conj(p.complex(k, N, N)).T).real,
    "conjugate_product": lambda p, k, v, w: (jnp.conj(bounded(v, w)) * pair(w, v)).imag,
    "modulus": lambda p, k, v, w: jnp.abs(pair(v, w) + 0.5),
    "modulus_gate": lambda p, k, v, w: (
        lambda z: (jax.nn.relu(jnp.abs(z) + p(k, N)) * z / (jnp.abs(z) + 0.1)).imag
    )(pair(v, w) + 0.2j),
    "gate_of_real_part": lambda p, k, v, w: (lambda z: (jax.nn.sigmoid(z.real) * z).imag)(
        pair(v, w) @ p.complex(k, N, N)
    ),
    "complex_tanh": lambda p, k, v, w: jnp.tanh(bounded(v, w)).real,
    "complex_functions": lambda p, k, v, w: (
        lambda z: (jnp.sqrt(z + 3) * jnp.exp(z) / jnp.log(z + 3) + z**3).imag
    )(bounded(v, w)),
    "complex_function_of_product": lambda p, k, v, w: (
        jnp.tanh(0.2 * bounded(v, w) @ p.complex(k, N, N)).imag
    ),
    "complex_function_of_scaled": lambda p, k, v, w: (
        jnp.exp(0.5 * jnp.tanh(v) * p.complex(k, N)).imag
    ),
    "complex_rows": lambda p, k, v, w: (
        (jnp.stack([pair(v, w), pair(w, -v)]) @ p.complex(k, N, N)).sum(0).imag
    ),
    "complex_heads": lambda p, k, v, w: jnp.einsum(
        "hi,hij->hj", pair(v, w).reshape(2, 2), p.complex(k, 2, 2, 2)
    ).real.reshape(-1),
    "complex_row": lambda p, k, v, w: (p.complex(k, 3, N)[which(v)] * pair(v, w)).imag,
    "complex_scan": lambda p, k, v, w: (
        jax.lax.scan(
            lambda s, a: (s * p.complex(k, N) + a, None),
            pair(v, w),
            jnp.stack([pair(v, w), pair(w, v)]),
        )[0].imag
    ),
    "complex_scan_of_data": lambda p, k, v, w: (
        jax.lax.scan(lambda s, a: (0.5j * s + a, s * jnp.conj(a)), pair(v[0], w[0]), bounded(v, w))[
            1
        ].imag
    ),
    "complex_conditional": lambda p, k, v, w: (
        jax.lax.cond(
            v[0] > 0,
            lambda z: z @ p.complex(k, N, N),
            lambda z: jnp.conj(z) * p(k + "b", N),
            pair(v, w),
        ).imag
    ),
    "complex_choice": lambda p, k, v, w: jnp.where(v > 0, p.complex(k, N), pair(v, w)).imag,
    "complex_moves": lambda p, k, v, w: (
        lambda z: jnp.concatenate([jnp.cumsum(z)[2:].real, jnp.roll(z, 1)[::-1][:2].imag])
    )(pair(v, w)),
    "complex_padded": lambda p, k, v, w: (
        (
            jnp.pad(p.complex(k, 2), (1, 1)) * pair(v, w)
            + jnp.concatenate([pair(v, w)[:3], p.complex(k + "b", 1)])
        ).real
    ),
    "complex_norm": lambda p, k, v, w: (lambda z: (z / jnp.sqrt(jnp.vdot(z, z).real + 1)).imag)(
        pair(v, w)
    ),
    "complex_solve": lambda p, k, v, w: (
        jnp.linalg.solve(
            2 * jnp.eye(N) + jnp.outer(bounded(v, w), bounded(w, v)) / N, pair(v, w)
        ).imag
    ),
    # With v = w it is not 0 but for rounding.
    "complex_stopped": lambda p, k, v, w: (
        (jax.lax.stop_gradient(pair(v, w)) * pair(w, 0.3 * v)).real
    ),
    "fourier": lambda p, k, v, w: (lambda z: z.real + z.imag * w)(jnp.fft.fft(v)),
    "fourier_of_product": lambda p, k, v, w: jnp.fft.fft(v @ p.complex(k, N, N)).imag,
    "fourier_in_two": lambda p, k, v, w: jnp.ravel(
        jnp.fft.fft2(pair(v, w).reshape(2, 2) * p.complex(k, 2, 2)).real
    ),
    "fourier_filter": lambda p, k, v, w: jnp.fft.ifft(jnp.fft.fft(v) * p.complex(k, N)).real,
    "real_fourier_filter": lambda p, k, v, w: jnp.fft.irfft(
        jnp.fft.rfft(v) * p.complex(k, N // 2 + 1), N
    ),
    "circular": lambda p, k, v, w: jnp.fft.ifft(jnp.fft.fft(v) * jnp.fft.fft(w)).real,
    "circular_weights": lambda p, k, v, w: jnp.fft.ifft(jnp.fft.fft(v) * jnp.fft.fft(p(k, N))).real,
}
