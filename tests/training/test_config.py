from __future__ import annotations

import json
import pathlib
import re
import shlex

import ml_collections
import pytest

import configs
from configs import copy, ptb, sweep_copy, text
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.training.command_line import split_overrides
from kfrtrl_jax.training.config import call, float_fields, make, resolve, shown
from kfrtrl_jax.training.workdir import as_text
from tests.training.small import COPY, nested, small


def test_defaults_are_filled_in_from_the_factories():
    config = small()
    assert config.estimator.to_dict() == {"name": "kf_rtrl"}
    assert config.optimizer.clip_norm == 1.0
    assert config.readout.init_scale == 0.01
    assert config.credit.to_dict() == {"name": "none"}
    assert config.seed == 0
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()


def test_a_whole_config_resolves_to_itself():
    config = small()
    assert resolve(config.to_dict()) == config


def test_the_input_is_left_as_it_is():
    config = ml_collections.ConfigDict(COPY)
    before = config.to_dict()
    resolve(config)
    assert config.to_dict() == before


def test_an_integer_is_a_number():
    rate = small({"optimizer.learning_rate": 1}).optimizer.learning_rate
    assert rate == 1.0
    assert isinstance(rate, float)


DNI = {"credit.name": "dni"}
MESSAGES = [
    ({"num_step": 3}, "config.num_step is not a field of a config; did you mean num_steps?"),
    ({"num_steps": None}, "config.num_steps is missing (an integer)"),
    ({"num_steps": "60"}, "config.num_steps must be an integer, got '60'"),
    ({"num_steps": 60.0}, "config.num_steps must be an integer, got 60.0"),
    ({"num_steps": True}, "config.num_steps must be an integer, got True"),
    ({"num_steps": 0}, "config.num_steps must be in [1, 2147483647], got 0"),
    ({"seed": -1}, "config.seed must be in [0, 4294967295], got -1"),
    ({"num_steps": 65}, "config.num_steps must be a multiple of log_every (10), got 65; "
     "nearest: 60 or 70"),
    ({"segment_length": 3}, "config.log_every must be a multiple of segment_length (3), got 10; "
     "nearest: 9 or 12"),
    ({"segment_length": 5, "update_every": 2}, "config.segment_length must be a multiple of "
     "update_every (2), got 5; nearest: 4 or 6"),
    ({"segment_length": 5, "window": 7}, "config.window must be a multiple of segment_length (5), "
     "got 7; nearest: 5 or 10"),
    ({"segment_length": 5, "immediate": "estimated"}, "config.immediate = \"estimated\" pushes the "
     "influence at every step and keeps no steps: it needs segment_length = 1 and window = 1"),
    ({**DNI, "segment_length": 5, "update_every": 1}, "config.credit closes a segment with a single "
     "update: it needs update_every and window equal to segment_length (5)"),
    ({"eval_every": 5}, "config.eval_every must be a multiple of log_every (10), got 5; "
     "nearest: 10"),
    ({"immediate": "exakt"}, "config.immediate cannot be 'exakt'; did you mean exact?"),
    ({"estimator.name": None}, "config.estimator.name is missing; one of "),
    ({"estimator.name": "kfrtrl"}, "config.estimator.name: there is no estimator 'kfrtrl'; "
     "did you mean kf_rtrl"),
    ({"estimator.name": "zzz"}, "config.estimator.name: there is no estimator 'zzz'; one of rtrl, "),
    ({"estimator.name": 3}, "config.estimator.name: there is no estimator 3; one of rtrl, "),
    ({"estimator.rank": 3}, "config.estimator.rank is not a field of estimator kf_rtrl; one of name"),
    ({"estimator.copies": 4}, "config.estimator.copies is not a field of estimator kf_rtrl; write "
     'config.estimator = "average(kf_rtrl, copies=4)"'),
    ({"estimator.name": "ok", "estimator.rank": 8, "estimator.copies": 2, "estimator.reset_every": 9},
     "config.estimator.copies is not a field of estimator ok; write "
     'config.estimator = "average(reset_every(9, ok(rank=8)), copies=2)"'),
    ({"estimator.copies": 1}, "config.estimator.copies is not a field of estimator kf_rtrl; write "
     'config.estimator = "kf_rtrl"'),
    ({"estimator.name": "average", "estimator.copies": 2}, "config.estimator.estimator is missing "
     "(an estimator)"),
    ({"estimator.name": "average", "estimator.copies": 0, "estimator.estimator": "kf_rtrl"},
     "config.estimator.copies must be at least 1, got 0"),
    ({"estimator.name": "average", "estimator.copies": 2, "estimator.estimator.name": "okk"},
     "config.estimator.estimator.name: there is no estimator 'okk'; did you mean ok?"),
    ({"estimator.name": "ok(rank=8)"}, "config.estimator.name is a name alone, got 'ok(rank=8)'; give "
     "it to config.estimator itself"),
    ({"cell.hidden_size": None}, "config.cell.hidden_size is missing (an integer)"),
    ({"cell.hidden_size": 0}, "config.cell.hidden_size must be at least 1, got 0"),
    ({"cell.input_size": 3}, "config.cell.input_size is not a field of cell vanilla; "
     "did you mean hidden_size"),
    ({"cell.hidden_size": 2**40}, "config.cell.hidden_size must be at most 2147483647, "
     "got 1099511627776"),
    ({"cell.forget_bias": 1.0}, "config.cell.forget_bias is not a field of cell vanilla; one of "
     "name, hidden_size, init_scale, sparsity, mask_seed"),
    ({"task.batch_size": 0}, "config.task.batch_size must be at least 1, got 0"),
    ({"task.name": "copi"}, "config.task.name: there is no task 'copi'; did you mean copy?"),
    ({"optimizer.learning_rate": 0.0}, "config.optimizer.learning_rate must be more than 0, got 0.0"),
    ({"optimizer.learning_rate": "fast"}, "config.optimizer.learning_rate must be a number or None, "
     "got 'fast'"),
    ({"optimizer.learning_rate": float("nan")}, "config.optimizer.learning_rate must be a finite "
     "number, got nan"),
    ({"optimizer.b1": 1.0}, "config.optimizer.b1 must be in [0, 1), got 1.0"),
    ({"optimizer.name": "adamm"}, "config.optimizer.name: there is no optimizer 'adamm'; "
     "did you mean adam or radam or nadam?"),
    ({"credit.name": "dnl"}, "config.credit.name: there is no credit 'dnl'; did you mean dni?"),
    ({"credit.share": 0.5}, "config.credit.share is not a field of credit none; one of name"),
    ({**DNI, "credit.share": 1.5}, "config.credit.share must be in [0, 1], got 1.5"),
    ({**DNI, "credit.hidden_units": -1}, "config.credit.hidden_units must be at least 0, got -1"),
    (DNI, "config.credit.share = 1 leaves no part of the gradient to the influence estimator: use "
     'estimator.name = "truncated" or a share below 1'),
    ({**DNI, "immediate": "estimated"}, 'config.immediate = "estimated" does not backpropagate '
     'through segments, which a credit needs: use immediate = "exact" or credit.name = "none"'),
    ({"readout": 3}, "config.readout must be a section with fields, got 3"),
    ({"readout.name": "linear"}, "config.readout.name is not a field of config.readout; one of "
     "init_scale, feedback, feedback_scale"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), MESSAGES)
def test_a_refusal_is_one_line_that_names_the_field(changes, message):
    with pytest.raises(ConfigError) as raised:
        resolve(nested(changes))
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    if not message.endswith((" ", "rtrl", "size")):
        assert str(raised.value) == message


def test_a_config_must_be_a_mapping():
    with pytest.raises(ConfigError, match="a config must be a ConfigDict or a dict, got 3"):
        resolve(3)


def test_another_name_on_top_of_a_config_file_leaves_the_old_ones_fields_behind():
    highway = nested({"cell.name": "recurrent_highway", "cell.depth": 2})
    assert "depth" not in resolve(highway, {"cell.name": "vanilla"}).cell
    with pytest.raises(ConfigError, match=r"config\.cell\.depth is not a field of cell vanilla"):
        resolve(highway, {"cell.name": "vanilla", "cell.depth": 2})


def test_float_fields_are_those_that_the_factories_call_float():
    assert float_fields(small()) >= {
        "optimizer.learning_rate",
        "optimizer.clip_norm",
        "cell.init_scale",
        "task.threshold",
    }
    assert "cell.hidden_size" not in float_fields(small())


def test_a_credit_shares_the_gradient_with_an_estimator():
    config = small({**DNI, "credit.share": 0.5})
    expected = {"name": "dni", "hidden_units": 0, "learning_rate": 1e-3, "share": 0.5}
    assert config.credit.to_dict() == expected
    assert {"credit.share", "credit.learning_rate"} <= float_fields(config)
    assert small({**DNI, "estimator.name": "truncated"}).credit.share == 1.0
    assert resolve(config.to_dict()) == config


def test_a_section_is_shown_without_its_defaults():
    config = small({"cell.init_scale": 0.5, **DNI, "credit.share": 0.5})
    assert shown(config, "cell") == "vanilla(hidden_size=4, init_scale=0.5)"
    assert shown(config, "credit") == "dni(share=0.5)"


def test_floats_replace_those_of_the_config():
    given = {"credit.share": 0.25}
    assert make(small({**DNI, "credit.share": 0.5}), "credit", given).share == 0.25


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "estimtor.name",
            "config.estimtor is not a field of a config; did you mean estimator",
        ),
        ("estimator", "config.estimator must be an estimator, got 3"),
        ("cell.a.b", "config.cell.a is not a field of cell vanilla; one of name"),
        (
            "cell.hidden_size.b",
            "config.cell.hidden_size.b is not a field of a config; hidden_size has",
        ),
        ("cell.name.b", "config.cell.name.b is not a field of a config; name has no such subfield"),
        ("seed.a", "config.seed.a is not a field of a config; seed has no such subfield"),
    ],
)
def test_override_paths_are_checked(path, message):
    with pytest.raises(ConfigError) as raised:
        resolve(COPY, {path: 3})
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config():\n    return foo\n", "fails: NameError: name 'foo' is not defined"),
        ("x =\n", "fails: SyntaxError: "),
        ("x = 1\n", "defines no function get_config"),
    ],
)
def test_a_broken_config_file_is_one_line(tmp_path, source, message):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(ConfigError, match=message) as raised:
        call(str(path), "get_config")
    assert "\n" not in str(raised.value)


def test_a_missing_config_file_gets_the_nearest_names(tmp_path):
    (tmp_path / "copy.py").write_text("")
    with pytest.raises(ConfigError) as raised:
        call(str(tmp_path / "copi.py"), "get_config")
    expected = f"there is no config file '{tmp_path}/copi.py'; did you mean {tmp_path}/copy.py?"
    assert str(raised.value) == expected


CONFIGS = pathlib.Path(configs.__file__).parent
# Those of studies have fields of their own.
STUDIES = {"__init__", "fidelity", "theory", "noise"}
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem not in STUDIES)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_found_by_its_name_and_complete(name, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    config = call(name, "get_config")
    resolved = resolve(config)
    assert resolve(resolved) == resolved
    source = (CONFIGS / f"{name}.py").read_text()
    if "def get_sweep" in source:
        # A seed changes nothing in what is resolved, and a rate is right whatever stands beside it.
        rate, seen = "optimizer.learning_rate", set()
        for trial in call(name, "get_sweep"):
            others = as_text({**trial, "seed": 0, rate: rate in trial})
            new = {others, as_text(trial.get(rate))} - seen
            if new:
                resolve(config, trial)
            seen |= new


def test_the_commands_of_the_docs_have_configs(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    blocks = re.findall(r"```sh\n(.*?)```", pathlib.Path("docs/configs.md").read_text(), re.DOTALL)
    commands = "".join(blocks).replace("\\\n", "").splitlines()
    assert len(commands) >= 8
    for command in commands:
        others, given = split_overrides(shlex.split(command))
        (name,) = [x.removeprefix("--config=") for x in others if x.startswith("--config=")]
        config = resolve(call(name, "get_config"), given)
        assert config != resolve(call(name, "get_config"))


def test_a_name_that_is_no_config_gets_the_nearest_one(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    with pytest.raises(ConfigError, match=r"did you mean configs/copy\.py"):
        call("copi", "get_config")


@pytest.mark.parametrize("module", [copy, ptb, text, sweep_copy])
@pytest.mark.parametrize("estimator", ["kf_rtrl", "rtrl", "uoro", "truncated"])
def test_every_config_takes_every_estimator(module, estimator):
    config = module.get_config()
    assert resolve(config, {"estimator.name": estimator}).estimator.name == estimator


@pytest.mark.parametrize("module", [ptb, text])
def test_text_configs_take_tbptt(module):
    config = module.get_config()
    resolved = resolve(config, {"estimator.name": "truncated", "segment_length": 25})
    assert (resolved.segment_length, resolved.update_every, resolved.window) == (25, 1, 25)
