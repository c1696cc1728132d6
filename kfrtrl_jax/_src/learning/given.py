"""What users hand to `make_learner`, as the library's own types, or what is wrong with it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax
import optax

from kfrtrl_jax._src import brought_readouts
from kfrtrl_jax._src.base import Cell, InfluenceEstimator, Loss, Readout
from kfrtrl_jax._src.cells.equinox_cells import from_equinox
from kfrtrl_jax._src.cells.flax_cells import from_flax
from kfrtrl_jax._src.errors import ConfigError
from kfrtrl_jax._src.losses import cross_entropy
from kfrtrl_jax._src.one_step import shown


def as_cell(given: Any, example_input: Any) -> Cell:
    """A cell from one of ours, of Flax or of Equinox, or from a function that makes one of these.

    Args:
      given: a `Cell`; an NNX, Linen or Equinox module; or a function of `rngs` or of `key` alone that
        makes an NNX or an Equinox module.
      example_input: one lane's input.

    Raises:
      ValueError: if it is something else, saying what to pass instead.
      TypeError, ValueError: as `cells.from_flax` and `cells.from_equinox`.
    """
    if isinstance(given, Cell):
        return given
    _require_instance("cell", given)
    if _is_flax(given, "RNN"):
        raise ValueError(
            f"cell is a {_name(given)}, which runs a cell over whole sequences; pass its cell, rnn.cell"
        )
    if _is_flax(given, "Bidirectional"):
        raise ValueError(
            f"cell is a {_name(given)}, which reads the future; online learning needs a cell that "
            f"reads the past alone, such as the cell of its forward RNN"
        )
    if _is_flax(given):
        return from_flax(given, example_input)
    if _is_equinox(given) or (isinstance(given, tuple) and given and _is_equinox(given[0])):
        return from_equinox(given)
    maker = _maker(given)
    if maker == "rngs":
        return from_flax(lambda rngs: given(rngs=rngs), example_input)
    if maker == "key":
        return from_equinox(lambda key: given(key=key))
    if callable(given) and len(_needed(given)) == 3:
        raise ValueError(
            f"cell is the function {_name(given)}; a step (params, carry, x) -> (carry, output) "
            f"becomes a cell by cells.from_function(step, init, initial_carry)"
        )
    raise ValueError(
        _not_made("cell", given)
        or "cell must be a Cell, such as cells.lstm(input_size=8, hidden_size=64), or a recurrent cell "
        f"of Flax or Equinox, got {_kind(given)}"
    )


def as_readout(given: Any, output: Any) -> tuple[Readout, Any]:
    """(a readout from one of ours, of Flax or of Equinox; the shapes and types of a prediction).

    Args:
      given: a `Readout`; an NNX, Linen or Equinox module; or a function of `rngs` or of `key` alone
        that makes an NNX or an Equinox module.
      output: the shapes and types of one lane's output of the cell.

    Raises:
      ValueError: if it is something else, or if it does not take the cell's output.
      TypeError, ValueError: as `readouts.from_flax` and `readouts.from_equinox`.
    """
    readout = given
    if not isinstance(given, Readout):
        _require_instance("readout", given)
        maker = _maker(given)
        if _is_flax(given):
            readout = brought_readouts.from_flax(given, output)
        elif _is_equinox(given):
            readout = brought_readouts.from_equinox(given)
        elif maker == "rngs":
            readout = brought_readouts.from_flax(lambda rngs: given(rngs=rngs))
        elif maker == "key":
            readout = brought_readouts.from_equinox(lambda key: given(key=key))
        else:
            raise ValueError(
                _not_made("readout", given)
                or "readout must be a Readout, such as readouts.linear(input_size=64, output_size=4), "
                f"or a module of Flax or Equinox, got {_kind(given)}"
            )
    try:
        prediction = jax.eval_shape(
            lambda key, output: readout.apply(readout.init(key), output), jax.random.key(0), output
        )
    except (TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the readout does not take the cell's output, {shown(output)}: {reason}"
        ) from error
    return readout, prediction


def as_estimator(given: Any) -> InfluenceEstimator:
    """An estimator from one of ours, or from its text: "average(kf_rtrl, copies=4)".

    Raises:
      ValueError: if it is something else, saying what to pass instead.
      ConfigError: if the text names none.
    """
    if isinstance(given, InfluenceEstimator):
        return given
    if isinstance(given, str):
        # What reads text is imported only where there is some.
        from kfrtrl_jax._src.compositions.composed import read

        try:
            estimator: InfluenceEstimator = read("estimator", given)
        except ConfigError as error:
            raise ConfigError(f'estimator "{given}": {error}') from None
        return estimator
    raise ValueError(
        _not_made("estimator", given)
        or "estimator must be an InfluenceEstimator, such as estimators.kf_rtrl(), or text, such as "
        f'"ok(rank=8)", got {_kind(given)}'
    )


def as_optimizer(given: Any) -> optax.GradientTransformation:
    """An optax transformation.

    Raises:
      ValueError: if it is something else, saying what to pass instead.
    """
    functions = (getattr(given, name, None) for name in ("init", "update"))
    if all(map(callable, functions)) and not _is_flax(given, "Optimizer"):
        transformation: optax.GradientTransformation = given
        return transformation
    if callable(given):
        raise ValueError(
            f"optimizer is the function {_name(given)}, which makes one: call it, as "
            f"{_name(given)}(learning_rate=1e-3)"
        )
    raise ValueError(
        f"optimizer must be an optax transformation, such as optax.adam(1e-3), got {_kind(given)}"
    )


def as_loss(given: Any) -> Loss:
    """A loss; the cross-entropy of logits with integer labels, in bits, if None.

    Raises:
      ValueError: if it is no function of a prediction and a target.
    """
    if given is None:
        return cross_entropy()
    if isinstance(given, Loss):
        return given
    if not callable(given):
        raise ValueError(
            f"loss must be (prediction, target) -> scalar, or a Loss, such as losses.squared_error(), "
            f"got {_kind(given)}"
        )
    try:
        inspect.signature(given).bind("prediction", "target")
    except TypeError:
        raise ValueError(
            f"loss must be (prediction, target) -> scalar, or a Loss; if {_name(given)} makes one, "
            f"call it: {_name(given)}()"
        ) from None
    except ValueError:
        pass  # A function without a signature may well be right.
    return Loss(given)


def _require_instance(what: str, given: Any) -> None:
    if inspect.isclass(given):
        name = given.__name__
        arguments = "..."
        if _is_of(given, "flax.nnx", "Module"):
            arguments = "..., rngs=nnx.Rngs(0)"
        elif _is_equinox(given):
            arguments = "..., key=jax.random.key(0)"
        raise ValueError(f"{what} is the class {name}; pass an instance, {name}({arguments})")


def _is_equinox(given: Any) -> bool:
    """Whether it is an Equinox module, or a class of these."""
    return _is_of(given, "equinox", "Module")


def _is_flax(given: Any, kind: str = "Module") -> bool:
    """Whether it is of a class of NNX or Linen."""
    return _is_of(given, "flax.nnx", kind) or _is_of(given, "flax.linen", kind)


def _is_of(given: Any, module: str, kind: str) -> bool:
    """Whether it is of a module's class, or such a class; whoever has one has imported the module."""
    found = getattr(sys.modules.get(module), kind, None)
    return found is not None and issubclass(given if inspect.isclass(given) else type(given), found)


def _needed(function: Callable[..., Any]) -> list[str]:
    """The arguments without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


def _maker(given: Any) -> str:
    """ "rngs" or "key" for a function that needs this alone; "" for anything else."""
    if isinstance(given, functools.partial) and inspect.isclass(given.func):
        # The classes of NNX do not tell their arguments.
        kinds = {"rngs": _is_flax(given.func), "key": _is_equinox(given.func)}
        return next((name for name, own in kinds.items() if own and name not in given.keywords), "")
    needed = _needed(given) if callable(given) else []
    return needed[0] if needed in (["rngs"], ["key"]) else ""


def _not_made(what: str, given: Any) -> str:
    """What to do about a function that makes the thing; "" if it is none."""
    if not inspect.isroutine(given):
        return ""
    call = ", ".join(f"{name}=..." for name in _needed(given))
    article = "an" if what[0] in "aeiou" else "a"
    return (
        f"{what} is the function {_name(given)}, which makes {article} {what}: call it, as "
        f"{_name(given)}({call})"
    )


def _name(given: Any) -> str:
    return getattr(given, "__name__", type(given).__name__)


def _kind(given: Any) -> str:
    return "None" if given is None else f"a value of type {type(given).__name__}"
