"""What `--help` prints: one screen about a program, and about a config if one is given."""

from __future__ import annotations

import ast
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl.flags import Flag

from kfrtrl_jax._src.compositions import composed
from kfrtrl_jax._src.compositions.factories import KINDS, REQUIRED, Field, Kind, fields, find
from kfrtrl_jax._src.compositions.notation import written
from kfrtrl_jax._src.compositions.values import type_name
from kfrtrl_jax.training import config as configs

WIDTH = 100
# So many names stand in their row; more of them, below it.
_FEW = 4
# Configs whose names begin so stand in rows without their titles.
_FAMILIES = ("reproduce_", "sweep_")
_FLAGS = {
    "--config=FILE": "a config file, or the name of one in configs/",
    "--config.FIELD=VALUE": 'replaces a field, such as --config.estimator="ok(rank=8)"',
    "--workdir=DIR": "folder for the results; runs/NAME for configs/NAME.py by default",
    "--helpfull": "all flags, also those of the libraries",
}


def overview(program: str, flags: Mapping[str, str] | None = None) -> str:
    """What can be chosen: the configs in configs/, and the names of factories.

    Args:
      program: its module.
      flags: what further flags of the program do.
    """
    lines = _usage(program, {"--help --config=FILE": "the fields of a config", **(flags or {})})
    files = configs.named()
    alone = [path for name, path in files.items() if not name.startswith(_FAMILIES)]
    lines += ["", "configs", *_columns([[path.stem, _title(path)] for path in alone])]
    for family in _FAMILIES:
        members = {name: path for name, path in files.items() if name.startswith(family)}
        lines += _wrapped("  ", list(members))
    lines += ["", "names"]
    for kind in (KINDS[section] for section in configs.SECTIONS):
        if "" not in kind.factories:
            lines += _listed(f"  {kind.word:<10}", kind)
    return "\n".join(lines)


def of_plain(program: str, flags: Iterable[Flag]) -> str:
    """The flags of a program without a config.

    Args:
      program: its module.
      flags: as absl has them.
    """
    described = (sys.modules[program].__doc__ or "").strip()
    title, _, rest = described.partition("\n")
    rows = [[f"--{flag.name}", flag.help or "", "", _default(flag)] for flag in flags]
    lines = [f"{_command(program)} [--FLAG=VALUE ...]", f"{title.partition(':')[0].rstrip('.')}."]
    return "\n".join([*lines, *([rest.rstrip()] if rest else []), "", *_columns(rows)])


def of_config(program: str, path: str, config: Any, flags: Mapping[str, str] | None = None) -> str:
    """The fields of a config by section, with their types, values and defaults.

    Args:
      program: the module of the program that takes it.
      path: of the config file, or its name.
      config: resolved.
      flags: what further flags of the program do.
    """
    file = configs.find_file(path)
    run = {
        name: Field(annotation, configs.RunFields._field_defaults.get(name, REQUIRED))
        for name, annotation in configs.run_types().items()
    }
    for name in ("update_every", "window"):
        run[name] = run[name]._replace(default=config["segment_length"])
    rows = [["FIELD", "TYPE", "VALUE"]]
    rows += [_row(name, field, config[name]) for name, field in run.items()]
    after: dict[int, list[str]] = {}
    for section in configs.SECTIONS:
        kind, whole = KINDS[section], config[section].to_dict()
        folded = _at_defaults(kind, whole, section) if kind.shown else {}
        if len(kind.factories) > _FEW:
            after[len(rows)] = _listed("    one of ", kind)
        rows += _section(kind, {key: whole[key] for key in whole if key not in folded}, section)
        if folded:
            items = [f"{key}={written(value)}" for key, value in folded.items()]
            after[len(rows) - 1] = _wrapped("    and by default ", items)
    lines = _columns(rows)
    for start, others in sorted(after.items(), reverse=True):
        lines[start + 1 : start + 1] = others
    title = textwrap.shorten(f"{file}: {_title(file)}", WIDTH, placeholder="...")
    further = {"--help": f"alone, says what {', '.join(flags)} are for"} if flags else {}
    return "\n".join([*_usage(program, further), "", title, *lines])


def of_study(program: str, path: str, config: Mapping[str, Any]) -> str:
    """The fields of a config that is not one of an experiment, with their values."""
    file = configs.find_file(path)
    rows = [[f"--config.{key}", written(value)] for key, value in config.items()]
    return "\n".join([*_usage(program, {}), "", f"{file}: {_title(file)}", *_columns(rows)])


def _command(program: str) -> str:
    """How a program was started: as `kfrtrl NAME`, or as `python -m experiments.NAME` in a clone."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = program.rpartition(".")[2]
    thin = f"experiments.{name}"
    return f"python -m {thin}" if spec and spec.name == thin else f"kfrtrl {name}"


def _usage(program: str, flags: Mapping[str, str]) -> list[str]:
    about = (sys.modules[program].__doc__ or "").strip().split(":")[0].split("\n")[0]
    pairs = {**_FLAGS, **flags}
    return [
        f"{_command(program)} --config=FILE [--config.FIELD=VALUE ...] [--workdir=DIR]",
        *([f"{about.rstrip('.')}."] if about else []),
        *_columns([[flag, text] for flag, text in pairs.items()]),
    ]


def _default(flag: Flag) -> str:
    return f"default {flag.default}" if flag.default not in (None, "", False) else ""


def _section(kind: Kind, section: Mapping[str, Any], path: str) -> Iterator[list[str]]:
    """A row for the name of a section's factory, and one for each of its fields."""
    name = section.get("name", "")
    schema = fields(kind, find(kind, name, path))
    if name:
        few = len(kind.factories) <= _FEW
        yield [f"{path}.name", " | ".join(kind.factories) if few else "name", name]
    for key, field in schema.items():
        if key in section:
            yield _row(f"{path}.{key}", field, section[key])


def _at_defaults(kind: Kind, section: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The fields of a section that have their defaults, in the order of the signature."""
    schema = fields(kind, find(kind, section["name"], path))
    return {
        key: section[key]
        for key, field in schema.items()
        if key in section and section[key] == field.default
    }


def _row(path: str, field: Field, value: Any) -> list[str]:
    """Path, type, value, and the default where the value is another one."""
    kind = _type(field)
    if field.nested is None or value is None:
        shown = written(value)
    elif field.nested.many:
        inner = KINDS[field.nested.kind]
        shown = ", ".join(composed.shown(inner, value[key]) for key in sorted(value, key=int))
        shown = f"[{shown}]"
    else:
        shown = composed.shown(KINDS[field.nested.kind], value)
    if field.default is REQUIRED:
        default = "required"
    elif field.nested or field.default == value:
        default = ""
    else:
        default = f"default {written(field.default)}"
    return [path, kind, shown, default]


def _type(field: Field) -> str:
    """The type of a field in words, without an article, or its choices."""
    if typing.get_origin(field.annotation) is typing.Literal:
        return " | ".join(map(str, typing.get_args(field.annotation)))
    text = str(field.nested) if field.nested else type_name(field.annotation)
    return text.removeprefix("a ").removeprefix("an ")


def _columns(rows: list[list[str]]) -> list[str]:
    """Rows as lines of equal columns, cut at the width of a screen."""
    cells = [[*row, *[""] * (4 - len(row))] for row in rows]
    last = max(len(row[3]) for row in cells)
    widths = [max(len(row[i]) for row in cells) for i in range(2)]
    widths.append(max(0, min(max(len(row[2]) for row in cells), WIDTH - sum(widths) - last - 8)))
    widths.append(last)
    lines = []
    for row in cells:
        texts = [
            f"{_cut(row[2], width) if i == 2 else text:<{width}}"
            for i, (text, width) in enumerate(zip(row, widths))
        ]
        lines.append(_cut("  ".join(["", *texts]).rstrip(), WIDTH))
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _listed(head: str, kind: Kind) -> list[str]:
    """The names of factories after a head, in as many lines as they need."""
    names = list(kind.factories)
    if kind.shown:
        others = len(names) - kind.shown
        names = [*names[: kind.shown], f"and {others} more of optax, see docs/configs.md"]
    return _wrapped(head, names)


def _wrapped(head: str, items: Sequence[str]) -> list[str]:
    return textwrap.wrap(
        ", ".join(items), WIDTH, initial_indent=head, subsequent_indent=" " * len(head)
    )


def _title(path: Path) -> str:
    """The first line of a config's description that is no command; nothing if it cannot be read."""
    try:
        described = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    except (OSError, SyntaxError, ValueError):
        return ""
    lines = [
        line
        for line in described.splitlines()
        if line and not line.startswith(("python -m", "kfrtrl "))
    ]
    return lines[0] if lines else ""
