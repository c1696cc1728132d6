"""What a run would be, without running it: its config, its network, its memory, its program."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import jax

from kfrtrl_jax._src import xla
from kfrtrl_jax._src.compositions.notation import written
from kfrtrl_jax.base import Site
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import memory, program
from kfrtrl_jax.training.config import RunFields


def describe(config: Any, check: Callable[[program.Experiment], None] = lambda _: None) -> str:
    """What a run of a resolved config would be. Nothing is compiled, allocated or written.

    The lines give the sections as text and the other fields that are not at their defaults; the sites
    that the linearization finds in the cell; the number of parameters; the memory of the run's state;
    and how long it took to trace and lower the program, which precedes compiling.

    Args:
      config: from `config.resolve`.
      check: called with the experiment that is built.

    Raises:
      ConfigError, DataError, UnsupportedCellError: of `program.build`, `memory.check` or `check`.
    """
    begun = time.monotonic()
    experiment = program.build(config)
    memory.check(experiment, config)
    check(experiment)
    built = time.monotonic()
    state = jax.eval_shape(lambda: experiment.init(0))
    xla.jit(experiment.run_chunk, donate_argnums=0).lower(state)
    lowered = time.monotonic()
    structure = experiment.about.structure
    needed, share = memory.needed(experiment)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.learner.parameters))
    cell = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.learner.parameters["cell"]))
    rows = [
        ("run", _run_fields(config)),
        *((name, configs.shown(config, name)) for name in configs.SECTIONS),
        ("state", f"{structure.state_size:,} variables in each of {structure.batch_size:,} lanes"),
        *(("sites" if i == 0 else "", _site(site)) for i, site in enumerate(structure.sites)),
        ("parameters", f"{count:,}, {cell:,} of them in the cell"),
        (
            "memory",
            f"{memory.size(needed)} for two copies of the run's state, {memory.size(share)} of it for "
            f"the estimator; {memory.size(memory.available())} are available",
        ),
        (
            "program",
            f"analysed in {built - begun:.1f} s, traced and lowered in {lowered - built:.1f} s; not "
            "compiled, which takes longer, and temporary arrays come on top of the memory",
        ),
    ]
    return "\n".join(f"{name:<12}{text}" for name, text in rows if text)


def _run_fields(config: Any) -> str:
    """The fields outside the sections that are not at their defaults."""
    chosen = {
        name: config[name]
        for name in RunFields._fields
        if config[name] != RunFields._field_defaults.get(name)
        and not (name in ("update_every", "window") and config[name] == config.segment_length)
    }
    return ", ".join(f"{name}={written(value)}" for name, value in chosen.items())


def _site(site: Site) -> str:
    uses = f", used {site.uses} times a step" if site.uses > 1 else ""
    masks = [
        f"{mask.density:.1%} of {what} can be non-zero"
        for what, mask in (("its weights", site.weights_mask), ("D", site.derivative_mask))
        if mask is not None
    ]
    problem = [site.problem] if site.problem else []
    rest = "; ".join([*masks, *problem])
    return (
        f"{site.label}: [{site.input_size} x {site.output_size}]{uses}{f'; {rest}' if rest else ''}"
    )
