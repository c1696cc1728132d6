"""Raw PRNG keys in the carry: arrays of uint32 from which the step draws random numbers.

The dtype of a typed key (`jax.random.key`) shows that it is a key. A raw key (`jax.random.PRNGKey`) is
recognized by its shape and dtype, as in JAX itself; the step is read to verify that exactly the leaves
of this form are used as keys.
"""

from __future__ import annotations

from typing import Any

import jax

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.lanes import is_raw_key
from kfrtrl_jax._src.linearization.patterns import MOVES
from kfrtrl_jax._src.linearization.program import TracedStep, Variable


def check_raw_keys(program: TracedStep, carry: Any) -> None:
    """Refuses a carry with a leaf that looks like a raw key and is not used as one, or the reverse.

    Raises:
      UnsupportedCellError: for a leaf in the form of a raw key from which nothing is drawn, or a leaf
        of another form that is read as a raw key.
    """
    leaves = jax.tree_util.tree_flatten_with_path(carry)[0]
    variables = iter(program.carry)
    places = iter(range(len(program.carry)))
    for path, leaf in leaves:
        variable, place = next(variables), next(places)
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.complexfloating):
            next(variables), next(places)
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "it"
        kind = f"{leaf.dtype}{list(leaf.shape)}"
        unused = program.new_carry[place] is variable
        if is_raw_key(leaf) and not unused and not _drawn_from(program, variable, moved=False):
            raise UnsupportedCellError(
                f"carry: {name} is {kind}, the form of a raw PRNG key, but the step draws nothing from "
                f"it; keep it in another type, such as int32"
            )
        integers = leaf.dtype == jax.numpy.uint32 and not is_raw_key(leaf)
        if integers and _drawn_from(program, variable, moved=True):
            raise UnsupportedCellError(
                f"carry: {name} is {kind} and is read as a raw PRNG key, but does not have the form of "
                f"one; use jax.random.key"
            )


def _drawn_from(program: TracedStep, variable: Variable, *, moved: bool) -> bool:
    """Whether random numbers are drawn from a variable.

    Args:
      program: the step.
      variable: in its carry.
      moved: whether to count only elements that reach the draw unchanged, perhaps at another place.
    """
    reached = {variable}
    for equation in program.equations:
        if reached.isdisjoint(equation.inputs):
            continue
        inside = {
            inner.primitive.name
            for jaxpr in jax_internals.inner_jaxprs(equation.params)
            for inner in jax_internals.all_equations(jaxpr)
        }
        if not jax_internals.READS_RAW_KEYS.isdisjoint({equation.name, *inside}):
            return True
        if not moved or equation.name in MOVES:
            reached.update(equation.outputs)
    return False
