"""Values of programs' own flags that mean nothing are refused with a line that names the flag."""

import math
import types

import pytest
from absl import flags

from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.programs import generate, plan, reproduce
from kfrtrl_jax.training import command_line


def give(monkeypatch, program, **values):
    """Flags of a program, all others at their defaults."""
    for name, holder in list(vars(program).items()):
        if isinstance(holder, flags.FlagHolder):
            value = values.get(holder.name, holder.default)
            monkeypatch.setattr(program, name, types.SimpleNamespace(name=holder.name, value=value))


@pytest.mark.parametrize("name", ["operations", "memory", "bandwidth", "link"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_device_without_a_speed_is_refused(name, value, monkeypatch):
    give(monkeypatch, plan, **{name: value})
    with pytest.raises(ConfigError, match=f"--{name} must be more than 0 and finite, got {value}"):
        plan.run()


@pytest.mark.parametrize("value", ["0", "99999999999999999999"])
def test_a_length_out_of_range_is_refused(value):
    parser = flags.FLAGS[generate._LENGTH.name].parser
    with pytest.raises(ValueError, match="is not an integer in the range"):
        parser.parse(value)


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({}, "text", r"the config of a study is configs/reproduce_copy\.py, got --config=text"),
        ({"records": "."}, "reproduce_copy", r"--records=\. is a folder; give the name of a file"),
    ],
)
def test_a_study_takes_no_other_config_and_writes_to_a_file(
    changes, path, message, monkeypatch, tmp_path
):
    give(monkeypatch, reproduce, **changes)
    with pytest.raises(ConfigError, match=message):
        reproduce.run(command_line.Invocation({}, {}, path, tmp_path, False, ""))
