"""Compositions in configs: as text and as dicts, of the library's factories and of a user's own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kfrtrl_jax._src.compositions.notation import Written, parse
from kfrtrl_jax.base import Cell
from kfrtrl_jax.cells import CELLS
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training import outcomes, program, sweep, workdir
from kfrtrl_jax.training.command_line import split_overrides
from kfrtrl_jax.training.config import float_fields, make, resolve, shown
from tests.training.small import COPY

OF_FOUR = {"name": "average", "estimator": {"name": "kf_rtrl"}, "copies": 4}
LAYERS = "layers([vanilla(hidden_size=3), lru(hidden_size=5), vanilla(hidden_size=2)])"
OWN = """
import functools
import jax, jax.numpy as jnp, optax
from kfrtrl_jax import cells, credit, estimators, tasks
from kfrtrl_jax.base import Cell, InfluenceEstimator

def my_cell(input_size, units, offset=-1, activation=jnp.tanh, options=None):
    return cells.vanilla(input_size=input_size, hidden_size=units)

def around(*, cell: Cell, scale: float = 1.0):
    return cell._replace(step=lambda p, c, x: (cell.step(p, c, x)[0], scale * cell.step(p, c, x)[1]))

def my_estimator(inner: InfluenceEstimator | None = None):
    return inner or estimators.rtrl()

def my_optimizer(learning_rate: float): return optax.sgd(learning_rate)
def my_credit(units: int = 3): return credit.dni(hidden_units=units)
def my_task(batch_size: int, lists: tuple[int, str] = (1, "a")):
    return tasks.copy(batch_size=batch_size)
def broken(): raise KeyError("no such\\nthing")
def scalar(input_size): return cells.vanilla(input_size=3, hidden_size=2)._replace(
    step=lambda p, c, x: (c, c[0]))
half = functools.partial(my_cell, units=4)
number, a_cell = 3, cells.vanilla(input_size=2, hidden_size=2)
"""


def layers(cells: Sequence[Cell], *, skip: bool = False) -> Cell:
    """Cells one after another, each on the output of the one before it."""
    del skip

    def step(params, carries, x):
        new = []
        for cell, own, carry in zip(cells, params, carries):
            carry, x = cell.step(own, carry, x)
            new.append(carry)
        return new, x

    return Cell(
        lambda key: [cell.init(key) for cell in cells],
        lambda: [cell.initial_carry() for cell in cells],
        step,
    )


@pytest.fixture(autouse=True)
def _factories(monkeypatch, tmp_path):
    monkeypatch.setitem(CELLS, "layers", layers)
    (tmp_path / "own_parts.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import no_such_module\n")
    (tmp_path / "own_exit.py").write_text("raise SystemExit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)


def changed(overrides=None, **sections):
    return resolve({**COPY, **sections}, overrides)


def refusal(overrides=None, **sections):
    with pytest.raises(ConfigError) as raised:
        changed(overrides, **sections)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("average(kf_rtrl(), copies=4)", OF_FOUR),
        ("average( kf_rtrl, 4 )", OF_FOUR),
        ("average(copies=4, estimator='kf_rtrl')", {**OF_FOUR, "estimator": "kf_rtrl()"}),
        (
            "average(antithetic(ok(rank=8)), copies=2)",
            {"name": "average", "copies": 2, "estimator": {
                "name": "antithetic", "estimator": {"name": "ok", "rank": 8}, "copies": 2}},
        ),
        (
            "mixture([kf_rtrl, snap(order=2)], weights=(.5, 1))",
            {"name": "mixture", "weights": [0.5, 1.0], "estimators": [
                {"name": "kf_rtrl"}, {"name": "snap", "order": 2}]},
        ),
        (
            "mixture([uoro] * 2, [+5e-1, -1_0])",
            {"name": "mixture", "weights": [0.5, -10], "estimators": [{"name": "uoro"}] * 2},
        ),
    ],
)  # fmt: skip
def test_text_and_dicts_say_the_same(text, tree):
    config = changed(estimator=text)
    assert config == changed(estimator=tree) == changed({"estimator": Written(text)})
    assert config == resolve(json.loads(json.dumps(config.to_dict())))
    assert config == changed(estimator=shown(config, "estimator"))


def test_a_composition_is_shown_without_its_defaults():
    text = "average(antithetic(uoro(noise='pre_activation')), copies=4)"
    assert shown(changed(estimator=text), "estimator") == text
    two = changed(estimator="mixture(estimators=[kf_rtrl(), kf_rtrl()], weights=(0.5, 0.5))")
    assert shown(two, "estimator") == "mixture([kf_rtrl] * 2, weights=[0.5, 0.5])"


def test_a_part_is_overridden_by_its_path():
    config = changed({"estimator.estimator.rank": 8}, estimator="average(ok(rank=2), copies=4)")
    assert shown(config, "estimator") == "average(ok(rank=8), copies=4)"
    config = changed({"estimator.estimator.name": "uoro"}, estimator=config.estimator)
    assert shown(config, "estimator") == "average(uoro, copies=4)"
    config = changed({"estimator.name": "truncated"}, estimator=config.estimator)
    assert shown(config, "estimator") == "truncated"
    # The whole and a part of it, in any order.
    config = changed({"estimator.estimator": "ok(3)", "estimator": "average(kf_rtrl, 2)"})
    assert shown(config, "estimator") == "average(ok(rank=3), copies=2)"


def shapes(cell):
    return [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(cell.init, jax.random.key(0)))]


def test_cells_in_a_list_are_layers():
    overrides = {"cell.cells.2.hidden_size": 4, "cell.cells.3": "gru(hidden_size=7)"}
    made = make(changed(overrides, cell=LAYERS), "cell", input_size=9)
    parts = [
        CELLS["vanilla"](input_size=9, hidden_size=3),
        CELLS["lru"](input_size=3, hidden_size=5),
        CELLS["vanilla"](input_size=10, hidden_size=4),
        CELLS["gru"](input_size=4, hidden_size=7),
    ]
    assert shapes(made) == [shape for part in parts for shape in shapes(part)]
    sizes = range(1, 13)
    config = changed(cell=f"layers([{', '.join(f'vanilla(hidden_size={n})' for n in sizes)}])")
    made = make(config, "cell", input_size=5)
    assert shapes(made) == [(1 + before + n, n) for before, n in zip([5, *sizes], sizes)]
    inside = "layers([layers([lru(hidden_size=3)] * 2), vanilla(hidden_size=2)])"
    config = changed(cell=inside)
    assert shapes(make(config, "cell", input_size=1))[-1] == (6 + 2 + 1, 2)
    assert shown(config, "cell") == inside


def test_floats_inside_are_replaced_by_their_paths(monkeypatch):
    scales = []

    def recorded(*, input_size: int, scale: float = 0.5) -> Cell:
        scales.append(scale)
        return CELLS["vanilla"](input_size=input_size, hidden_size=2)

    monkeypatch.setitem(CELLS, "recorded", recorded)
    config = changed(cell="layers([recorded, recorded(scale=1)])")
    assert {"cell.cells.0.scale", "cell.cells.1.scale"} <= float_fields(config)
    make(config, "cell", {"cell.cells.0.scale": 2.0}, input_size=3)
    assert scales == [2.0, 1.0]


def test_a_users_own_factories_are_found_by_import_path():
    config = changed(
        {"cell.cell.offset": -5, "task.lists": Written("(2, 'b')")},
        cell="own_parts:around(cell=own_parts:my_cell(units=3), scale=2)",
        estimator="average(own_parts:my_estimator(inner=kf_rtrl), copies=2)",
        optimizer={"name": "own_parts:my_optimizer", "learning_rate": 0.1},
        credit="own_parts:my_credit",
        task={"name": "own_parts:my_task", "batch_size": 2},
    )
    assert config.cell.to_dict() == {
        "name": "own_parts:around",
        "cell": {"name": "own_parts:my_cell", "units": 3, "offset": -5, "options": None},
        "scale": 2.0,
    }
    assert config.task.lists == (2, "b")
    assert shown(config, "cell") == (
        "own_parts:around(cell=own_parts:my_cell(units=3, offset=-5), scale=2)"
    )
    assert not any("cell" in path or "optimizer" in path for path in float_fields(config))
    assert config == resolve(json.loads(json.dumps(config.to_dict())))
    assert shapes(make(config, "cell", input_size=4)) == [(8, 3)]
    for section in ("estimator", "optimizer", "credit", "task"):
        make(config, section)
    assert shapes(make(changed(cell="own_parts:half(units=5)"), "cell", input_size=1)) == [(7, 5)]
    assert changed(optimizer="optax:adam(1e-3)").optimizer.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_parts:my_cel", "config.cell.name: own_parts has no my_cel; did you mean my_cell?"),
        ("no_such_module:f", "config.cell.name: there is no module no_such_module in the current"),
        ("own_broken:f", "config.cell.name: importing own_broken fails: No module named 'no_such"),
        ("own_exit:f", "config.cell.name: importing own_exit fails: SystemExit: 1"),
        ("own_parts:", "config.cell.name: 'own_parts:' is not of the form module:name"),
        (":f", "config.cell.name: ':f' is not of the form module:name"),
        ("own_parts:a:b", "config.cell.name: 'own_parts:a:b' is not of the form module:name"),
        ("own_parts:number", "config.cell.name: own_parts:number must be a function that makes a cell, "
         "got a int"),
        ("own_parts:a_cell", "config.cell.name: own_parts:a_cell must be a function that makes a cell, "
         "got a cell itself"),
        ("own_parts:my_cell", "config.cell.hidden_size is not a field of cell own_parts:my_cell; one "
         "of name, units, offset, activation, options"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_refused_in_one_line(name, message):
    assert refusal({"cell.name": name, "cell.hidden_size": 4}).startswith(message)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("own_parts:my_estimator", "config.cell.name: own_parts:my_estimator must make a cell, got "),
        ("own_parts:broken", "config.cell: own_parts:broken fails: KeyError: 'no such"),
        ("own_parts:scalar", "config.cell: the output of the cell must be a vector, got shapes [()]"),
        ("layers([own_parts:scalar, lru(hidden_size=2)])", "config.cell.cells.0: the output of the"),
        ("layers([recurrent_highway(hidden_size=2, depth=0)])", "config.cell.cells.0: depth must be"),
        ("own_parts:my_cell(units='many')", "config.cell: own_parts:my_cell fails: TypeError: "),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_in_one_line(cell, message):
    with pytest.raises(ConfigError) as raised:
        program.build(changed(cell=cell))
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


DEEP = {"name": "average", "copies": 1}
DEEP["estimator"] = DEEP


MALFORMED = {
    "average(kfrtl, 2)": ".estimator.name: there is no estimator 'kfrtl'; did you mean kf_rtrl",
    "average(kf_rtrl, copees=2)": ".copees is not a field of estimator average; did you mean copies?",
    "average(kf_rtrl, 2, 3)": ": estimator average takes 2 arguments by position, got 3; write name=",
    "average(kf_rtrl, copies=2, copies=3)": " cannot be read: expected the name of another argument at",
    "average(kf_rtrl, 2, copies=3)": ".copies is given twice",
    "average(copies=2, kf_rtrl)": " cannot be read: expected name=value, as arguments by position come",
    "average(kf_rtrl(, copies=2)": " cannot be read: expected a value at ', copies=2)'; write it like ",
    "average(kf_rtrl": " cannot be read: expected , or ) at the end",
    "kf_rtrl)": " cannot be read: expected the end at ')'",
    "kf_rtrl().init": " cannot be read: expected the end at '.init'",
    "os.system('true')": " cannot be read: os.system is not the name of a factory",
    "__import__('os')": ".name: there is no estimator '__import__'",
    "average(*[kf_rtrl])": " cannot be read: expected a value",
    "average(" * 1000: " cannot be read: nested more than 32 deep",
    "ok(rank=" + "9" * 5000: " cannot be read: expected a number",
    "ok(rank=" + "9" * 99 + ")": ".rank must be at most 2147483647",
    "ok(rank=snap)": ".rank must be an integer, got snap",
    "mixture([kf_rtrl] * 99999, [1])": " cannot be read: expected how often to repeat",
    "mixture([kf_rtrl], ['a'])": ".weights must be a number",
    "mixture(kf_rtrl, [1])": ".estimators must be a list of estimators, got kf_rtrl",
    "average(lru(hidden_size=3), 2)": ".estimator.name: there is no estimator 'lru'",
    "[kf_rtrl]": " must be an estimator, got [kf_rtrl]",
}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        *(
            ({"estimator": text}, f"config.estimator{message}")
            for text, message in MALFORMED.items()
        ),
        ({"estimator": DEEP}, "config.estimator.estimator.estimator"),
        ({"estimator.copies": Written("4")}, "config.estimator.copies is not a field of estimator "
         'kf_rtrl; write config.estimator = "average(kf_rtrl, copies=4)"'),
        ({"estimator": None}, "config.estimator must be an estimator, got None"),
        ({"cell": "lru(64)"}, "config.cell: cell lru takes no argument by position, got 1; write "),
        ({"cell": LAYERS, "cell.cells.5": "lru"}, "config.cell.cells.5 is not an item"),
        ({"cell": LAYERS, "cell.cells.0.a": 1}, "config.cell.cells.0.a is not a field of cell vanilla"),
        ({"cell": "own_parts:my_cell(units=tanh)"}, "config.cell.units must be a plain value, text in "
         "quotes, got tanh"),
        ({"optimizer.learning_rate": Written("10" * 200)}, "config.optimizer.learning_rate must be a "
         "finite number, got 1010"),
        ({"num_steps": 10**5000}, "config.num_steps must be in [1, 2147483647], got a value too long"),
    ],
)  # fmt: skip
def test_a_malformed_composition_is_refused_in_one_line(overrides, message):
    assert refusal(overrides).startswith(message)


PIECES = st.sampled_from(
    ["kf_rtrl", "average", "ok", "mixture", "layers", "lru", "rank", "copies", "own_parts:my_cell",
     "own_parts:", "a.b", "None", "(", ")", "[", "]", ",", "=", "*", "**", "3", "-1.5", "'a'", '"', ".",
     ":", " ", "\\", "\n", "\0", "é", "²", "#", "lambda", "{", "}"]
)  # fmt: skip


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=20)))
def test_no_text_raises_anything_else(text):
    for path in ("estimator", "cell", "cell.hidden_size"):
        with contextlib.suppress(ConfigError):
            resolve(COPY, {path: Written(text)})


def test_trials_of_a_sweep_replace_whole_sections():
    own = {
        "estimator": {"name": "average", "estimator": "ok(2)", "copies": 4},
        "cell": "gru(hidden_size=2)",
    }
    common = {"estimator.rank": 3, "estimator.name": "ok", "cell.hidden_size": 9, "seed": 5}
    trial = sweep._trial(COPY, common, own, 0)
    assert shown(trial, "estimator") == "average(ok(rank=2), copies=4)"
    assert (trial.cell.hidden_size, trial.seed) == (2, 5)
    label = "average(ok(2), copies=4), gru(hidden_size=2)"
    assert outcomes.label_of(own) == label
    assert (
        outcomes.label_of({"cell.cells.1": "lru", "estimator.estimator.rank": 2})
        == "cells.1 lru, rank 2"
    )
    with pytest.raises(
        ConfigError, match=r"trial 3 of the sweep: config\.estimator cannot be read"
    ):
        sweep._trial(COPY, {}, {"estimator": "ok("}, 3)


def test_a_run_continues_only_with_the_same_composition(tmp_path):
    config = changed(cell=LAYERS).to_dict()
    workdir.claim(tmp_path, config)
    assert workdir.claim(tmp_path, config) == []
    with pytest.raises(
        workdir.WorkdirError, match=r"cell\.cells\.1\.hidden_size \(5 there, 6 now\)"
    ):
        workdir.claim(tmp_path, changed({"cell.cells.1.hidden_size": 6}, cell=LAYERS).to_dict())


def test_overrides_are_read_from_the_command_line():
    others, overrides = split_overrides(
        ["train", "--config=a.py", "--config.estimator=average(kf_rtrl, copies=4)", "--workdir", "x",
         "--config.seed", "3", "-config.cell.name=lru", "--config.a", "--noconfig.b", "--config.seed=4",
         "--config.c=x=y", "--", "--config.d=1"]
    )  # fmt: skip
    assert others == ["train", "--config=a.py", "--workdir", "x", "--", "--config.d=1"]
    assert overrides == {
        "estimator": "average(kf_rtrl, copies=4)", "seed": "4", "cell.name": "lru", "a": True,
        "b": False, "c": "x=y",
    }  # fmt: skip
    assert resolve(COPY, {"seed": Written("4")}).seed == 4


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("-1_0", -10), (".5", 0.5), ("1e-3", 1e-3), ("5.", 5.0), ("True", True), ("None", None),
     ("'a b'", "a b"), ('"it\'s"', "it's"), ("(1,)", [1]), ("(1)", 1), ("[]", []), ("()", []),
     ("[1, 'a',]", [1, "a"]), ("[[1] * 2] * 2", [[1, 1], [1, 1]]), (" [ 1 , 2 ] ", [1, 2])],
)  # fmt: skip
def test_values_are_read(text, value):
    assert parse(text, "x") == value
    assert Written(text).literal() == value


@pytest.mark.parametrize("text", ["data/dir", "lru", "[lru]", "2024-01-01", "a, b", "'", "mod:f"])
def test_what_is_no_value_is_itself(text):
    assert Written(text).literal() == text
