"""Runs what JAX traced one operation after the other, in NumPy where it can.

A random cell runs but a few times: to compile it, as XLA would, takes longer than all the rest. What
NumPy has no short form for is left to JAX, which compiles each operation but once for all cells.
"""

import string

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

_TRANSPARENT = frozenset(
    """checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vmap_call jit pjit
    remat2""".split()
)
_ELEMENTWISE = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "ceil": np.ceil,
    "conj": np.conj,
    "copy": np.array,
    "copy_p": np.array,
    "cos": np.cos,
    "eq": np.equal,
    "exp": np.exp,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "imag": np.imag,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "real": np.real,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sign": np.sign,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": np.array,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
}
_REDUCTIONS = {
    "reduce_and": np.all,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_or": np.any,
    "reduce_prod": np.prod,
    "reduce_sum": np.sum,
}


def traced(function, *example):
    """The function, traced once, as one that runs its operations one by one."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*example)

    def run(*args):
        with np.errstate(all="ignore"):
            leaves = _run(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return run


def evaluated(function, *args):
    """The function's value, its operations run one by one."""
    return traced(function, *args)(*args)


def _run(jaxpr, inputs):
    consts, jaxpr = (jaxpr.consts, jaxpr.jaxpr) if hasattr(jaxpr, "consts") else ((), jaxpr)
    variables, given = [*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs]
    values = dict(zip(variables, map(_array, given), strict=True))

    def read(atom):
        if isinstance(atom, core.Literal):
            return np.asarray(atom.val, atom.aval.dtype)
        return values[atom]

    for eqn in jaxpr.eqns:
        results = _results(eqn, [read(v) for v in eqn.invars])
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _array(value):
    """As NumPy has it, but for typed PRNG keys."""
    if isinstance(value, np.ndarray) or jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value
    return np.asarray(value)


def _results(eqn, inputs):
    name, params = eqn.primitive.name, eqn.params
    if name in _TRANSPARENT:
        wrapped = next(name for name in ("jaxpr", "call_jaxpr", "call") if name in params)
        return _run(params[wrapped], inputs)
    if name == "cond":
        branches = params["branches"]
        return _run(branches[np.clip(int(inputs[0]), 0, len(branches) - 1)], inputs[1:])
    if name == "scan":
        return _scan(eqn, inputs)
    if name == "split":
        ends = np.cumsum(params["sizes"])[:-1]
        return np.split(inputs[0], ends, params["axis"])
    if name == "unstack" and isinstance(inputs[0], np.ndarray):
        return list(np.moveaxis(inputs[0], params["axis"], 0))
    if all(isinstance(x, np.ndarray) for x in inputs):
        numbers = [x.astype(np.float32) if x.dtype == jnp.bfloat16 else x for x in inputs]
        result = _of_numpy(name, params, numbers, eqn.outvars[0].aval)
        if result is not None:
            return [np.asarray(result, eqn.outvars[0].aval.dtype)]
    results = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(params))
    return list(map(_array, results if eqn.primitive.multiple_results else [results]))


def _scan(eqn, inputs):
    params, body = eqn.params, eqn.params["jaxpr"]
    inner = body.jaxpr if hasattr(body, "consts") else body

    # What is scanned over has one axis more outside.
    def first_scanned(outside, inside):
        return len(outside) - sum(v.aval.ndim > a.aval.ndim for v, a in zip(outside, inside))

    num_carry = first_scanned(eqn.outvars, inner.outvars)
    last = first_scanned(eqn.invars, inner.invars)
    first = last - num_carry
    consts, carry, xs = inputs[:first], inputs[first:last], inputs[last:]
    order = range(params["length"])
    rows = [None] * params["length"]
    for i in reversed(order) if params["reverse"] else order:
        results = _run(body, [*consts, *carry, *(x[i] for x in xs)])
        carry, rows[i] = results[:num_carry], results[num_carry:]
    return [*carry, *(_stacked(column) for column in zip(*rows))]


def _stacked(arrays):
    return (np if isinstance(arrays[0], np.ndarray) else jnp).stack(arrays)


def _of_numpy(name, params, inputs, result):
    """The value of an operation; None for one that is left to JAX."""
    x = inputs[0] if inputs else None
    inexact = jnp.issubdtype(result.dtype, jnp.inexact)
    if name in _ELEMENTWISE:
        return _ELEMENTWISE[name](*inputs)
    if name in _REDUCTIONS:
        return _REDUCTIONS[name](x, axis=tuple(params["axes"]))
    if name == "div" and inexact:
        return np.divide(*inputs)
    if name == "integer_pow" and inexact:
        return x ** params["y"]
    if name == "complex":
        value = np.empty(result.shape, result.dtype)
        value.real, value.imag = inputs
        return value
    if name == "convert_element_type" and (x.dtype.kind != "c" or result.dtype.kind == "c"):
        return x.astype(result.dtype)
    if name == "reshape" and params["dimensions"] is not None:
        x = x.transpose(params["dimensions"])
    if name in ("reshape", "squeeze", "expand_dims"):
        return x.reshape(result.shape)
    if name == "broadcast_in_dim" and len(inputs) == 1:
        shape = [1] * len(result.shape)
        for axis, size in zip(params["broadcast_dimensions"], x.shape):
            shape[axis] = size
        return np.broadcast_to(x.reshape(shape), result.shape)
    if name == "transpose":
        return x.transpose(params["permutation"])
    if name == "rev":
        return np.flip(x, params["dimensions"])
    if name == "slice":
        strides = params["strides"] or [None] * x.ndim
        return x[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]
    if name == "stack":
        return np.stack(inputs, params["axis"])
    if name == "concatenate":
        return np.concatenate(inputs, params["dimension"])
    if name == "pad":
        return _padded(x, inputs[1], params["padding_config"], result.shape)
    if name == "select_n":
        index, cases = x.astype(int), np.stack(np.broadcast_arrays(*inputs[1:]))
        return np.take_along_axis(cases, np.broadcast_to(index, result.shape)[None], 0)[0]
    if name == "iota":
        shape = [1] * len(result.shape)
        shape[params["dimension"]] = -1
        count = np.arange(result.shape[params["dimension"]])
        return np.broadcast_to(count.reshape(shape), result.shape)
    if name == "dot_general":
        return _product(params["dimension_numbers"], *inputs)
    return None


def _padded(x, value, config, shape):
    """Widths may be negative, and elements apart."""
    padded, old, new = np.full(shape, value), [], []
    for count, size, (before, _, between) in zip(x.shape, shape, config):
        places = before + np.arange(count) * (1 + between)
        kept = np.flatnonzero((places >= 0) & (places < size))
        old.append(kept)
        new.append(places[kept])
    padded[np.ix_(*new)] = x[np.ix_(*old)]
    return padded


def _product(dimension_numbers, x, y):
    (contracted, batch), letters = dimension_numbers, iter(string.ascii_letters)
    of_x, of_y = [None] * x.ndim, [None] * y.ndim
    for i, j in [*zip(*contracted), *zip(*batch)]:
        of_x[i] = of_y[j] = next(letters)
    first = [of_x[i] for i in batch[0]]
    free = []
    for names in (of_x, of_y):
        for i, name in enumerate(names):
            if name is None:
                names[i] = next(letters)
                free.append(names[i])
    return np.einsum("".join(of_x) + "," + "".join(of_y) + "->" + "".join([*first, *free]), x, y)
