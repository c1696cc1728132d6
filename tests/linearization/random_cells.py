"""Random cells: what they are drawn from, and how one is made of a draw."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from kfrtrl_jax.base import Cell
from tests.linearization.derivative_rules import RULES, SMOOTH_RULES, UNSUPPORTED
from tests.linearization.operations import (
    CHOICES,
    COMPLEX,
    CONSTANTS,
    LOOPS,
    NOTED,
    OF_DATA,
    PRODUCTS,
    SINGULAR,
    N,
)

X = 3
SUPPORTED = {
    **PRODUCTS,
    **NOTED,
    **CHOICES,
    **LOOPS,
    **OF_DATA,
    **SINGULAR,
    **CONSTANTS,
    **COMPLEX,
    **RULES,
}
ALL = SUPPORTED | {name: operation for name, (_, operation) in UNSUPPORTED.items()}
# Smooth enough for half precision, and with no complex numbers nor LAPACK inside.
HALF = [
    name
    for name in {**PRODUCTS, **NOTED, **LOOPS, **OF_DATA, **SMOOTH_RULES}
    if name not in ("solve", "noted_complex", "cholesky", "remainder")
]
CARRIES = ("two", "one", "complex", "typed_key", "raw_key", "counter")


class Parameters:
    """Hands out parameters by name while a step runs, and records in a dry run how they are made."""

    def __init__(self, values=None, dtype=jnp.float64):
        self.values, self.dtype, self.made, self.notes, self.state = values, dtype, {}, [], ()

    def __call__(self, name, *shape):
        def make(generator):
            return jnp.asarray(0.7 * generator.normal(size=shape), self.dtype)

        return self._get(name, make)

    def complex(self, name, *shape):
        """A complex parameter."""

        def make(generator):
            real, imaginary = 0.7 * generator.normal(size=(2, *shape))
            return jnp.asarray(real + 1j * imaginary)

        return self._get(name, make)

    def constant(self, name, value):
        """A parameter of integers or booleans."""
        return self._get(name, lambda generator: jnp.asarray(value))

    def key(self, name):
        """A parameter that is a PRNG key."""
        return self._get(name, lambda generator: jax.random.key(3))

    def note(self, v):
        """Tells of a vector that an output may read."""
        self.notes.append(v)

    def _get(self, name, make):
        self.made[name] = make
        return make(np.random.default_rng(0)) if self.values is None else self.values[name]


Operation = tuple[str, int, int]


class Draw(NamedTuple):
    """A cell, as drawn.

    Attributes:
      program: (operation, which vector, which other one); the last two results are the new state.
      tail: the same, for results that the output alone reads.
      picks: which vectors the output adds up.
      carry: of CARRIES.
      complex_output: whether the output is complex.
      seed: of the parameters and of where the cell is looked at.
      adds_up: whether the new state is made of all results but the first.
    """

    program: tuple[Operation, ...]
    tail: tuple[Operation, ...] = ()
    picks: tuple[int, ...] = (0,)
    carry: str = "two"
    complex_output: bool = False
    seed: int = 0
    adds_up: bool = False


def draws(operations, tail=tuple(ALL), carries=CARRIES):
    """Draws of cells of the named operations, the output made of any."""
    index = st.integers(0, 9)

    def some(names, least, most):
        operation = st.tuples(st.sampled_from(list(names)), index, index)
        return st.lists(operation, min_size=least, max_size=most).map(tuple)

    return st.builds(
        Draw,
        program=some(operations, 2, 6),
        tail=some(tail, 0, 2),
        picks=st.lists(index, min_size=1, max_size=3).map(tuple),
        carry=st.sampled_from(carries),
        complex_output=st.sampled_from([False, False, True]),
        seed=st.integers(0, 2**16),
    )


def side_by_side(names):
    """A cell of operations that all read a recurrent product and the state, and are all read."""
    program = [("two_matrices", 0, 2), *((name, i, i + 2) for i, name in enumerate(names))]
    return Draw(tuple(program), picks=tuple(range(20)), adds_up=True)


def initial_carry(kind, dtype):
    """The carry that the sequences of a kind of cell start from."""
    zeros = jnp.zeros(N, dtype)
    if kind == "one":
        return zeros
    if kind == "complex":
        return jnp.zeros(N // 2, complex), zeros
    further = {
        "two": (),
        "typed_key": (jax.random.key(0),),
        "raw_key": (jax.random.PRNGKey(0),),
        "counter": (jnp.zeros((), jnp.int32), jnp.zeros((), bool)),
    }
    return zeros, zeros, *further[kind]


def read(kind, carry, dtype):
    """(c, h, further vectors of data, the further leaves of the new carry)."""
    if kind == "one":
        return carry, carry, [], ()
    c, h, *further = carry
    if kind == "complex":
        return jnp.concatenate([c.real, c.imag]), h, [], ()
    if kind == "counter":
        count, flag = further
        return c, h, [jnp.where(flag, c, 0.5 * h) * (count % 2)], (count + 1, ~flag)
    if kind == "two":
        return c, h, [], ()
    key, noise = jax.random.split(further[0])
    return c, h, [jax.random.normal(noise, (N,), dtype) / 3], (key,)


def written(kind, p, carry, v, w):
    """The float leaves of the new carry."""
    if kind == "one":
        return jnp.tanh(v + w)
    if kind == "complex":
        turned = p.complex("turn", N // 2) * carry[0]
        return turned + jax.lax.complex(v[: N // 2], v[N // 2 :]), jnp.tanh(w)
    return v, jnp.tanh(w)


def make_cell(draw, operations=ALL, dtype=jnp.float64):
    """The cell of a draw."""

    def run(p, carry, x):
        c, h, further, rest = read(draw.carry, carry, dtype)
        p.state = (c, h)
        vectors = [h, c, *further, jnp.tanh(x @ p("input", X, N))]

        def extend(vectors, program, prefix):
            for i, (name, first, second) in enumerate(program):
                v, w = (vectors[-1 - j % len(vectors)] for j in (first, second))
                vectors.append(operations[name](p, f"{prefix}{i}", v, w).astype(dtype))

        extend(vectors, draw.program, "")
        v, w = vectors[-2:]
        if draw.adds_up:
            results = vectors[-len(draw.program) :]
            v, w = sum(results[1::2]), sum(results[2::2], results[0])
        new = written(draw.carry, p, carry, v, w)
        # What the output can read: the new state, all of these, partial sums.
        read_by_output = [*vectors, new if draw.carry == "one" else new[1]]
        extend(read_by_output, draw.tail, "tail")
        seen = [*p.notes, *read_by_output[: len(vectors) + 1]]
        output = sum(
            np.cos(i + 0.5).item() * seen[-1 - j % len(seen)] for i, j in enumerate(draw.picks)
        )
        if draw.tail:
            output = output + read_by_output[-1]
        if draw.complex_output:
            output = jax.lax.complex(output, seen[-1 - draw.picks[0] % len(seen)] * vectors[-1])
        return (new if draw.carry == "one" else (*new, *rest)), output

    def start():
        return initial_carry(draw.carry, dtype)

    dry = Parameters(dtype=dtype)
    jax.eval_shape(lambda: run(dry, start(), jnp.ones(X, dtype)))

    def init(key):
        del key
        return {
            name: make(np.random.default_rng([draw.seed, zlib.crc32(name.encode())]))
            for name, make in dry.made.items()
        }

    def step(params: Any, carry: Any, x: Any):
        return run(Parameters(params, dtype), carry, x)

    return Cell(init, start, step)
