"""Floors: the time the device needs for the work that an estimator cannot avoid.

That work is matrix products and passes over memory.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kfrtrl_jax._src import xla
from kfrtrl_jax.base import Array
from kfrtrl_jax.studies.benchmarking import timing
from kfrtrl_jax.studies.benchmarking.timing import Floor, Work

# The memory layouts of a product's two factors: its einsum, and whether J and A are transposed. The
# result always has the layout of A, so that it can be the A of the next step.
_LAYOUTS = (
    ("bij,bjk->bik", "J A"),
    ("bji,bjk->bik", "J A, J transposed"),
    ("bkj,bij->bki", "A^T J^T"),
    ("bkj,bji->bki", "A^T J^T, J transposed"),
)


def product(
    batch: int, rows: int, inner: int, widths: Sequence[int], dtype: Any, steps: int | None = None
) -> Floor:
    """The batched products J A_1, J A_2, ...: the fastest of the equivalent programs on this device.

    They differ in the memory layouts of J and the A; in whether each A is the previous product or stays
    the same (no step then waits for the previous one); in whether the A are concatenated; in whether
    the lanes are one batched product or separate products; and in the compiler options.

    Args:
      batch: B, lanes.
      rows: of J, [B, rows, inner].
      inner: columns of J and rows of every A, [B, inner, width].
      widths: columns of each A.
      dtype: of both.
      steps: products per call; chosen by their size if None.
    """
    work = 2 * batch * rows * inner * sum(widths)
    steps = steps or _even(5e9 / work)
    groupings = [(list(widths), "")]
    if len(widths) > 1:
        groupings.append(([sum(widths)], " side by side"))
    candidates = [
        (
            f"{words}{beside}, {kept}{named}",
            _product(equation, batch, rows, inner, group, dtype, steps, feed, options),
        )
        for named, options in option_sets().items()
        for group, beside in groupings
        for equation, words in _LAYOUTS
        for kept, feed in (("in turn", True), ("A kept", False))
        if rows == inner or not feed
    ]
    lanes = batch, rows, inner, sum(widths), dtype, steps
    candidates += [
        (f"J A lane by lane, A kept{named}", _lanes(*lanes, options))
        for named, options in option_sets().items()
    ]
    floor = timing.fastest(candidates)
    counted = collections.Counter(widths).items()
    columns = " + ".join(
        f"{count} * {width}" if count > 1 else f"{width}" for width, count in counted
    )
    shape = f"[{batch}, {rows}, {inner}] x [{batch}, {inner}, {columns}]"
    return floor._replace(words=f"product {shape}: {floor.words}")


def passes(shapes: Sequence[tuple[int, ...]], dtype: Any, steps: int | None = None) -> Floor:
    """One pass that reads and writes arrays of these shapes, as in x <- x + a.

    Args:
      shapes: of the arrays.
      dtype: of all arrays.
      steps: passes per call; chosen by their size if None.
    """
    size = sum(math.prod(shape) for shape in shapes)
    steps = steps or _even(1e8 / size)
    layouts = {
        "each by itself": shapes,
        "as one vector": [(size,)],
        "as one matrix": [(-(-size // 4096), min(size, 4096))],
    }
    candidates = [
        (words + named, _pass(layout, dtype, steps, options))
        for named, options in option_sets().items()
        for words, layout in layouts.items()
    ]
    floor = timing.fastest(candidates)
    total = size * jnp.dtype(dtype).itemsize
    return floor._replace(words=f"{total:,} bytes read and written once: {floor.words}")


def copy_bandwidth(size: int = 2**28, tries: int = 5) -> float:
    """Bytes read and written per second while copying an array of `size` bytes."""
    floor = timing.fastest([("copy", _pass([(size // 4,)], jnp.float32, 8, {}))], tries)
    return 2 * size / floor.seconds


def option_sets() -> dict[str, dict[str, Any]]:
    """The default compiler options and, if they differ, those that training chooses from."""
    ours = {f", {words}": options for words, options in xla.option_sets().items() if options}
    return {"": {}, **ours}


def _product(
    equation: str,
    batch: int,
    rows: int,
    inner: int,
    widths: list[int],
    dtype: Any,
    steps: int,
    feed: bool,
    options: dict[str, Any],
) -> Callable[[], Work]:
    left, right = equation.split("->")[0].split(",")
    first_is_j = "k" not in left
    sizes = {"b": batch, "i": rows, "j": inner}

    def arrays(letters: str) -> Iterator[Array]:
        for width in [0] if "k" not in letters else widths:
            yield _random([{**sizes, "k": width}[letter] for letter in letters], inner, dtype)

    def multiply(jacobian: Array, factor: Array) -> Array:
        first, second = (jacobian, factor) if first_is_j else (factor, jacobian)
        # Not einsum, which may swap the two.
        contract = (left.index("j"),), (right.index("j"),)
        return jax.lax.dot_general(first, second, (contract, ((0,), (0,))))

    def make() -> Work:
        (jacobian,) = arrays(left if first_is_j else right)
        factors = list(arrays(right if first_is_j else left))
        return _scan(
            lambda j, a: [multiply(j, x) for x in a], jacobian, factors, steps, feed, options
        )

    return make


def _lanes(
    batch: int, rows: int, inner: int, width: int, dtype: Any, steps: int, options: dict[str, Any]
) -> Callable[[], Work]:
    def make() -> Work:
        jacobians = list(_random((batch, rows, inner), inner, dtype))
        factors = list(_random((batch, inner, width), inner, dtype))
        step = lambda j, a: [x @ y for x, y in zip(j, a)]  # noqa: E731
        return _scan(step, jacobians, factors, steps, False, options)

    return make


def _scan(
    step: Callable[[Any, Any], Any],
    jacobian: Any,
    start: Any,
    steps: int,
    feed: bool,
    options: dict[str, Any],
) -> Work:
    """`steps` steps, each applied to the previous result (if feed) or to the same arrays."""

    def fed(jacobian: Any, arrays: Any) -> Any:
        # Two steps per iteration, so that their results can swap buffers without a copy.
        body = lambda a, _: (step(jacobian, a), None)  # noqa: E731
        return jax.lax.scan(body, arrays, length=steps, unroll=2)[0]

    def kept(jacobian: Any, arrays: Any) -> Any:
        def body(carry: Any, _: None) -> Any:
            # The barrier makes the product depend on the iteration; otherwise it is computed only once.
            arrays, _ = jax.lax.optimization_barrier(carry)
            return (arrays, step(jacobian, arrays)), None

        shapes = jax.eval_shape(step, jacobian, arrays)
        results = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(body, (arrays, results), length=steps)[0][1]

    # The factors are arguments; constants could be transposed at compile time.
    run = jax.jit(fed if feed else kept).lower(jacobian, start).compile(options)
    return Work(lambda: run(jacobian, start), steps)


def _pass(
    shapes: Sequence[tuple[int, ...]], dtype: Any, steps: int, options: dict[str, Any]
) -> Callable[[], Work]:
    def make() -> Work:
        arrays = [jnp.zeros(shape, dtype) for shape in shapes]
        one = jnp.ones((), dtype)

        def loop(arrays: Any, one: Array) -> Any:
            body = lambda _, xs: [x + one for x in xs]  # noqa: E731
            return jax.lax.fori_loop(0, steps, body, arrays)

        run = jax.jit(loop, donate_argnums=0).lower(arrays, one).compile(options)
        state = [arrays]

        def again() -> Any:
            state[0] = run(state[0], one)
            return state[0]

        return Work(again, steps)

    return make


def _random(shape: Sequence[int], inner: int, dtype: Any) -> Array:
    # J shrinks A only slowly: A stays in the range of normal floats, in which products are fast.
    return (jax.random.normal(jax.random.key(0), tuple(shape)) * (0.8 / inner**0.5)).astype(dtype)


def _even(steps: float) -> int:
    return 2 * min(100, max(2, round(steps / 2)))
