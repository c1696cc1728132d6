"""Raw PRNG keys in the carry: arrays of uint32 from which the step draws random numbers.

The dtype of a typed key (`jax.random.key`) shows that it is a key. A raw key (`jax.random.PRNGKey`) is
recognized by its shape and dtype, as in JAX itself; the step is read to verify that exactly the leaves
of this form are used as keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from kfrtrl_jax._src import jax_internals
from kfrtrl_jax._src.errors import UnsupportedCellError
from kfrtrl_jax._src.lanes import is_raw_key
from kfrtrl_jax._src.linearization.patterns import MOVES
from kfrtrl_jax._src.linearization.program import Loop, TracedStep


def check_raw_keys(program: TracedStep, carry: Any) -> None:
    """Refuses a carry with a leaf that looks like a raw key and is not used as one, or the reverse.

    Raises:
      UnsupportedCellError: for a leaf in the form of a raw key that is read, but not as a key, or of
        another form and read as a raw key.
    """
    leaves = jax.tree_util.tree_flatten_with_path(carry)[0]
    variables = iter(program.carry)
    places = iter(range(len(program.carry)))
    operations = [_Operation.of(equation) for equation in program.equations]
    for path, leaf in leaves:
        variable, place = next(variables), next(places)
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.complexfloating):
            next(variables), next(places)
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "it"
        kind = f"{leaf.dtype}{list(leaf.shape)}"
        elsewhere = [a for i, a in enumerate(program.new_carry) if i != place]
        read = any(variable in operation.inputs for operation in operations) or any(
            variable is atom for atom in (*elsewhere, *program.output)
        )
        unused = not read and program.new_carry[place] is variable
        if is_raw_key(leaf) and not unused and not _is_key(operations, variable, moved=False):
            raise UnsupportedCellError(
                f"carry: {name} is {kind}, the form of a raw PRNG key, but the step draws nothing from "
                f"it; keep it in another type, such as int32"
            )
        integers = leaf.dtype == jax.numpy.uint32 and not is_raw_key(leaf)
        if integers and _is_key(operations, variable, moved=True):
            raise UnsupportedCellError(
                f"carry: {name} is {kind} and is read as a raw PRNG key, but does not have the form of "
                f"one; use jax.random.key"
            )


class _Operation(NamedTuple):
    """An equation, of the step or of a jaxpr within it.

    Attributes:
      name: of its primitive.
      inputs: variables and constants.
      outputs: variables.
      equation: itself.
    """

    name: str
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    equation: Any

    @classmethod
    def of(cls, equation: Any) -> _Operation:
        """An equation of the flat program, or of a jaxpr."""
        if hasattr(equation, "invars"):
            return cls(equation.primitive.name, equation.invars, equation.outvars, equation)
        return cls(equation.name, equation.inputs, equation.outputs, equation)


def _is_key(operations: Iterable[_Operation], variable: Any, *, moved: bool) -> bool:
    """Whether a value is read as a raw key. Numbers that are folded into a key, or counted, are not.

    Args:
      operations: in order.
      variable: the value.
      moved: whether to count only elements that are read unchanged, perhaps at another place.
    """
    # A literal of a jaxpr has no hash.
    reached = [variable]

    def is_reached(atom: Any) -> bool:
        return any(atom is known for known in reached)

    for operation in operations:
        places = [i for i, atom in enumerate(operation.inputs) if is_reached(atom)]
        if not places:
            continue
        if operation.name in jax_internals.READS_RAW_KEYS:
            if min(places) < jax_internals.READS_RAW_KEYS[operation.name]:
                return True
            continue
        for inner, start in _within(operation):
            if any(_is_key(inner, start[i], moved=moved) for i in places if start[i] is not None):
                return True
        # What comes out of a generator of typed keys is not the number that went in.
        if operation.name.startswith("random_"):
            continue
        if not moved or operation.name in MOVES:
            reached.extend(operation.outputs)
    return False


def _within(operation: _Operation) -> Iterator[tuple[list[_Operation], Sequence[Any]]]:
    """The operations of each jaxpr within one, and what stands there for its inputs; None: nothing."""
    equation, count = operation.equation, len(operation.inputs)
    if isinstance(equation, Loop):
        start = equation.body.starts
        inside = list(map(_Operation.of, equation.body.equations))
        yield inside, [*start, *[None] * (count - len(start))]
        return
    for jaxpr in jax_internals.inner_jaxprs(equation.params):
        operations = list(map(_Operation.of, jaxpr.eqns))
        if operation.name == "while":
            conditions, others = (equation.params[f"{p}_nconsts"] for p in ("cond", "body"))
            own = jaxpr is jax_internals.closed(equation.params["body_jaxpr"]).jaxpr
            absent, before = (conditions, 0) if own else (others, conditions)
            values = jaxpr.invars
            yield operations, [*values[:before], *[None] * absent, *values[before:]]
        else:
            # The first input of a conditional chooses the branch.
            yield operations, [*[None] * (count - len(jaxpr.invars)), *jaxpr.invars]
