"""Malformed configs, at random: each must be refused in one line, or run.

python -m tests.faults.configs --count=10000 --seed=0

A case is a config file and a command line, made from an example config by one to three mutations. It
goes through the entry of `experiments.train` up to the moment when a run would begin; every 200th is a
process of its own with --dry_run. It fails unless it is refused (exit code 2, one line on stderr that
starts with "error: ", no workdir, within 5 seconds of processor time) or its config resolves. Of every
8th case the experiment is built too, and may be refused then.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from kfrtrl_jax._src.compositions.factories import KINDS, REQUIRED, Field, fields
from kfrtrl_jax.training import config as configs
from kfrtrl_jax.training import memory, program
from kfrtrl_jax.training.workdir import flatten
from tests.faults import entry

ROOT = Path(__file__).parents[2]
SECONDS = 5.0
# To build what is accepted.
SECONDS_OF_A_RUN = 60.0
# A process of its own also imports the library, on a machine that may be busy.
SECONDS_OF_A_PROCESS = 30.0
EVERY = 200
BUILDS = 8
STUDIES = ("__init__", "fidelity", "theory", "noise")

# Values as a config file may have them, as source.
VALUES = (
    *(
        "None",
        "True",
        "False",
        "-1",
        "0",
        "1",
        "2",
        "7",
        "3.5",
        "-0.5",
        "1e-3",
        "10**30",
        "10**400",
    ),
    *(
        "1e308",
        "1e-320",
        "float('nan')",
        "float('inf')",
        "-float('inf')",
        "1j",
        "2**31",
        "3_000_000",
    ),
    *(
        "'x'",
        "''",
        "' '",
        "'3'",
        "'None'",
        "'kf_rtrl'",
        "'copy'",
        "'a' * 10**6",
        "b'ab'",
        "'a.b:c'",
    ),
    *("'\\x1b[31m'", "'\\x00'", "'\\udcff'", "'a\\nb'", "'os:system'", "'json:dumps'", "'\\u202e'"),
    *("[]", "[1]", "(1, 2, 3)", "['kf_rtrl']", "[None] * 3", "{}", "{'name': 'x'}", "{1: 2}"),
    *("{(1, 2): 3}", "{'a.b': 1}", "{'': 1}", "{'\\x1b': 1}", "set()", "{'vanilla'}", "range(3)"),
    *("object()", "print", "dict", "lambda: 0", "NotImplemented", "...", "Decimal('1.5')"),
    *("np.int64(3)", "np.float32(0.5)", "np.float32('nan')", "np.array(4)", "np.zeros(3)"),
    *(
        "np.zeros((2, 2), int)",
        "np.bool_(True)",
        "np.str_('copy')",
        "np.array(['a'])",
        "np.int8(-3)",
    ),
    *(
        "np.array(object())",
        "np.zeros(10**6)",
        "np.datetime64('2020')",
        "jnp.zeros(())",
        "jnp.ones(2)",
    ),
    *(
        "FieldReference(3)",
        "FieldReference('copy')",
        "FieldReference(4) * 2",
        "FieldReference(None)",
    ),
    *("config_dict.placeholder(int)", "config_dict.placeholder(str, required=True)", "endless()"),
    *(
        "circular()",
        "circular_list()",
        "nested(10)",
        "nested(500)",
        "Odd()",
        "Fails()",
        "ConfigDict()",
    ),
)
TEXTS = (
    *(
        "rtrl",
        "kf_rtrl",
        "ok(rank=8)",
        "average(kf_rtrl, copies=4)",
        "antithetic(kf_rtrl, copies=4)",
    ),
    *("control_variate(kf_rtrl)", "ktp(rank=4)", "uoro(noise='pre_activation')", "snap(order=2)"),
    *("random_resets(0.05, rtrl)", "sketched(rank=4)", "random_transport(rtrl, paths=4)", "e_prop"),
    *(
        "reset_every(5, rtrl)",
        "mixture([kf_rtrl, uoro])",
        "shrink(ok(rank=2))",
        "truncated",
        "rflo",
    ),
    *("vanilla(hidden_size=8)", "stack([lru(hidden_size=8)] * 2)", "s5(hidden_size=4)", "alif(8)"),
    *(
        "stack([lstm(hidden_size=8), gru(hidden_size=4)])",
        "lstm_columns(num_columns=3, column_size=2)",
    ),
    *(
        "copy(batch_size=2)",
        "anbn(batch_size=2)",
        "text(batch_size=2, data_dir='/none')",
        "dni(0.5)",
    ),
    *(
        "adam(learning_rate=0.1)",
        "sgd(learning_rate=1)",
        "a:b",
        "os.path:join",
        "((((",
        "[]",
        "x" * 999,
    ),
)
LETTERS = "()[],=*:'\".- _abk01289\x00\x1b\u00e9\u202e\U0001d11e"

HEAD = """\
from decimal import Decimal
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FieldReference, FrozenConfigDict, config_dict

def circular():
    tree = {'name': 'average'}
    tree['estimator'] = tree
    return tree

def circular_list():
    items = []
    items.append(items)
    return items

def endless():
    reference = FieldReference(1)
    return reference // 0

def nested(depth):
    tree = 'rtrl'
    for _ in range(depth):
        tree = {'name': 'average', 'estimator': tree, 'copies': 2}
    return tree

class Odd:
    def items(self):
        raise RuntimeError('no items')

class Fails:
    def __repr__(self):
        raise RuntimeError('no repr')
    __str__ = __repr__

"""


class Case(NamedTuple):
    """A config file and a command line.

    Attributes:
      source: of the file.
      arguments: of the command beside --config and --workdir; one of these here replaces it.
    """

    source: bytes
    arguments: tuple[str, ...]


class Draft:
    """A case that is being made: the lines of `get_config` and arguments."""

    def __init__(self, draw: random.Random, example: dict[str, Any]):
        self.draw, self.example = draw, example
        self.lines: list[str] = []
        self.arguments: list[str] = []
        self.result = draw.choice(["config", "config", "ConfigDict(config)", "locked(config)"])
        self.edits = 0

    def path(self, of: Callable[[Any], bool] = lambda value: True) -> list[str]:
        """The names that lead to a field of the example, or to a section."""
        flat = {path: value for path, value in flatten(self.example).items() if of(value)}
        paths = [*flat, *(name for name in self.example if of(self.example[name]))]
        return self.draw.choice(paths).split(".")

    def put(self, path: list[str], source: str) -> None:
        """Sets a field."""
        *parents, last = path
        tree = "config" + "".join(f".setdefault({name!r}, {{}})" for name in parents)
        self.lines.append(f"{tree}[{last!r}] = {source}")

    def case(self) -> Case:
        """The case as it is now."""
        body = [f"config = {self.example!r}", *self.lines]
        if self.result == "locked(config)":
            body += ["config = ConfigDict(config)", "config.lock()"]
            self.result = "config"
        body.append(f"return {self.result}")
        source = HEAD + "def get_config():\n" + "".join(f"    {line}\n" for line in body)
        written = bytearray(source.encode(errors="backslashreplace"))
        for _ in range(self.edits):
            start = self.draw.randrange(len(HEAD), len(written))
            what = bytes(self.draw.choices(range(256), k=self.draw.randrange(3)))
            written[start : start + self.draw.randrange(4)] = what
        return Case(bytes(written), tuple(self.arguments))


def _value(draft: Draft) -> None:
    draft.put(draft.path(), draft.draw.choice(VALUES))


def _number(draft: Draft) -> None:
    path = draft.path(lambda value: isinstance(value, (int, float)))
    draw = draft.draw
    numbers = (
        *(draw.randrange(-9, 200), draw.randrange(10**9), 10 ** draw.randrange(12)),
        *(draw.uniform(-1, 2), draw.random() ** 9, float(draw.randrange(9)), 2**31 - 1),
    )
    draft.put(path, repr(draw.choice(numbers)))


def _random_text(draft: Draft) -> None:
    draft.put(draft.path(), ascii(_letters(draft.draw)))


def _misspelt(draft: Draft) -> None:
    *parents, last = draft.path()
    draft.put([*parents, _edited(draft.draw, last)], draft.draw.choice(VALUES))


def _deleted(draft: Draft) -> None:
    *parents, last = draft.path()
    tree = "config" + "".join(f"[{name!r}]" for name in parents)
    draft.lines.append(f"{tree}.pop({last!r}, None)")


def _renamed(draft: Draft) -> None:
    kind = KINDS[draft.draw.choice([kind for kind in KINDS if kind != "readout"])]
    name = draft.draw.choice(list(kind.factories))
    if draft.draw.random() < 0.7:
        draft.arguments.append(f"--config.{kind.word}.name={name}")
    else:
        draft.put([kind.word, "name"], repr(name))


def _argument(draft: Draft) -> None:
    """An argument that a factory has, of its type."""
    draw = draft.draw
    kind = KINDS[draw.choice([kind for kind in KINDS if kind != "readout"])]
    section = draft.example.get(kind.word)
    name = section.get("name") if isinstance(section, dict) else None
    if name not in kind.factories or draw.random() < 0.5:
        name = draw.choice(list(kind.factories))
        draft.arguments.append(f"--config.{kind.word}.name={name}")
    schema = fields(kind, kind.factories[name])
    for key, field in schema.items():
        if field.default is REQUIRED or draw.random() < 0.2:
            draft.arguments.append(f"--config.{kind.word}.{key}={_of_type(draw, field)}")


def _of_type(draw: random.Random, field: Field) -> str:
    options = typing.get_args(field.annotation)
    if typing.get_origin(field.annotation) is typing.Literal:
        return str(draw.choice(options))
    if field.nested is not None:
        text = draw.choice([text for text in TEXTS if text.isprintable()])
        return f"[{text}] * 2" if field.nested.many else text
    small, large = draw.randrange(9), draw.choice([10**3, 10**5, 10**7, 2**31 - 1])
    numbers = {int: small if draw.random() < 0.8 else large, bool: draw.random() < 0.5}
    numbers[float] = draw.choice(
        [draw.random(), draw.random(), 10.0 ** draw.randrange(-40, 39), 0, -1]
    )
    return str(numbers.get(field.annotation, draw.choice(["x", "[1, 2]", "None", small])))


def _text(draft: Draft) -> None:
    section = draft.draw.choice(["estimator", "estimator", "cell", "task", "optimizer", "credit"])
    text = draft.draw.choice(TEXTS)
    for _ in range(draft.draw.choice([0, 0, 1, 2])):
        text = _edited(draft.draw, text)
    draft.put([section], ascii(text))


def _override(draft: Draft) -> None:
    draw = draft.draw
    path = ".".join(draft.path())
    if draw.random() < 0.3:
        path = _edited(draw, path)
    values = (draw.choice(TEXTS), _letters(draw), str(draw.randrange(-9, 99)), "1e9", "None", "")
    value = _shell(draw.choice(values))
    form = draw.choice(["={}", "={}", "={}", " {}", "", "no", "no={}"])
    name = _shell(f"--{'no' if form.startswith('no') else ''}config.{path}")
    form = form.removeprefix("no")
    if form.startswith(" "):
        draft.arguments += [name, value]
    else:
        draft.arguments.append(name + form.format(value))


def _flag(draft: Draft) -> None:
    draft.arguments.append(
        draft.draw.choice(
            [
                *(
                    "--workdir=",
                    "--config=",
                    "--config=configs",
                    "--config=/dev/null",
                    "extra",
                    "-x",
                ),
                *(
                    "--workdri=x",
                    "--config.=5",
                    "--config..a=1",
                    "--config.cell[0]=1",
                    "--config.a b=1",
                ),
                *(
                    "--flagfile=/none",
                    "--flagfile=configs/copy.py",
                    "--config=none",
                    "--",
                    "--seed=3",
                ),
                *(
                    f"--config={'x' * 5000}",
                    "--config=copy:3",
                    "--config.seed",
                    "--noconfig.seed=1",
                ),
                *(
                    "--config.seed=" + "9" * 30,
                    "--config.cell.hidden_size=3000000",
                    "--verbosity=x",
                ),
            ]
        )
    )


def _returned(draft: Draft) -> None:
    draft.result = draft.draw.choice(
        [
            *("None", "[config]", "dict", "ConfigDict", "3", "Odd()", "FrozenConfigDict(config)"),
            *(
                "exit(0)",
                "exit('bye')",
                "1 / 0",
                "endless()",
                "circular()",
                "{}",
                "config.values()",
            ),
            *(
                "(_ for _ in ()).throw(GeneratorExit)",
                "print('said') or config",
                "print",
                "object()",
            ),
        ]
    )


def _source(draft: Draft) -> None:
    draft.edits = draft.draw.randrange(1, 4)


MUTATIONS = [
    *[_value] * 3,
    *[_number] * 2,
    *[_argument] * 4,
    *[_text, _renamed, _override] * 2,
    *[_random_text, _misspelt, _deleted, _flag, _returned, _source],
]


def make_case(seed: str, examples: list[dict[str, Any]]) -> Case:
    """The case of a seed."""
    draw = random.Random(seed)
    draft = Draft(draw, draw.choice(examples))
    for mutate in draw.choices(MUTATIONS, k=draw.choice([1, 1, 2, 3])):
        mutate(draft)
    return draft.case()


def read_examples() -> list[dict[str, Any]]:
    """The example configs."""
    found = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in STUDIES)
    return [configs.call(str(path), "get_config").to_dict() for path in found]


def check(
    case: Case, folder: Path, begin: Any = None, *, process: bool = False, seconds: float = SECONDS
) -> tuple[str, str]:
    """Starts a case.

    Args:
      case: the case.
      folder: an empty one.
      begin: what a run is replaced by, see `entry.start`.
      process: whether as a process of its own, with --dry_run.
      seconds: that it may take.

    Returns:
      ("refused" or "accepted" or "failed", why it failed).
    """
    file, workdir = folder / "case.py", folder / "run"
    file.write_bytes(case.source)
    arguments = [f"--config={file}", f"--workdir={workdir}", *case.arguments]
    outcome = _in_process(arguments) if process else entry.start(arguments, begin)
    problems = []
    if outcome.code == 0:
        kind = "accepted"
    else:
        kind = "refused"
        lines = outcome.error.splitlines()
        if outcome.code != 2:
            problems.append(f"exit code {outcome.code}")
        if len(lines) != 1 or not lines[0].startswith("error: "):
            problems.append(f"{len(lines)} lines of error")
        elif not lines[0].isprintable():
            problems.append("characters that cannot be printed")
    if workdir.exists():
        problems.append("a workdir was made")
    if outcome.seconds > (seconds if kind == "refused" else SECONDS_OF_A_RUN):
        problems.append(f"{outcome.seconds:.1f} seconds")
    if problems:
        return "failed", f"{', '.join(problems)}: {outcome.error[-2000:]}"
    return kind, ""


def _begin(config: Any, workdir: Path, wandb: str = "") -> None:
    del workdir
    experiment = program.build(config)
    memory.check(experiment, config)


def _in_process(arguments: list[str]) -> entry.Outcome:
    begun = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.train", "--dry_run", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        errors="backslashreplace",
        check=False,
    )
    return entry.Outcome(ended.returncode, ended.stdout, ended.stderr, time.monotonic() - begun)


def _letters(draw: random.Random) -> str:
    return "".join(draw.choices(LETTERS, k=draw.randrange(12)))


def _edited(draw: random.Random, text: str) -> str:
    start = draw.randrange(len(text) + 1)
    return text[:start] + "".join(draw.choices(LETTERS, k=draw.randrange(3))) + text[start + 1 :]


def _shell(text: str) -> str:
    """A text that can be an argument of a command."""
    return text.replace("\x00", "")


def run(
    numbers: Iterable[int],
    seed: int,
    *,
    every: int = EVERY,
    seconds: float = SECONDS,
    builds: int = BUILDS,
) -> Iterator[tuple[str, str, str]]:
    """The cases of a seed, in order: (its own seed, what it was, why it failed).

    Args:
      numbers: of the cases.
      seed: of them all.
      every: of so many cases one is a process of its own; 0 for none.
      seconds: that a case may take.
      builds: of so many cases one's experiment is built too, if it resolves; 0 for none.
    """
    examples = read_examples()
    for number in numbers:
        own = f"{seed}/{number}"
        case = make_case(own, examples)
        process = bool(every) and number % every == every - 1
        limit = SECONDS_OF_A_PROCESS if process else seconds
        with tempfile.TemporaryDirectory() as folder:
            begin = _begin if builds and number % builds == 0 else None
            kind, why = check(case, Path(folder), begin, process=process, seconds=limit)
        yield own, kind, why
        if number % 500 == 499:
            # What JAX remembers of experiments that are gone.
            jax.clear_caches()


def main() -> int:
    """Checks many cases, prints how many were what, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="the seed of one case, such as 0/17, to show it")
    options = parser.parse_args()
    os.chdir(ROOT)
    if options.only:
        case = make_case(options.only, read_examples())
        print(case.source.decode(errors="replace")[len(HEAD) :], *case.arguments, sep="\n")
        with tempfile.TemporaryDirectory() as folder:
            print(*check(case, Path(folder), _begin))
        return 0
    counts: Counter[str] = Counter()
    numbers = range(options.first, options.first + options.count)
    for own, kind, why in run(numbers, options.seed):
        counts[kind] += 1
        if kind == "failed":
            print(f"case {own}: {why}", flush=True)
    shown = ", ".join(f"{counts[kind]} {kind}" for kind in ("refused", "accepted", "failed"))
    print(f"{options.count} checked: {shown}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
