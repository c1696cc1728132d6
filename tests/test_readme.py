"""The examples of README.md run as printed."""

import pathlib
import re

import jax

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_examples_of_the_readme_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 4
    names: dict = {}
    with jax.enable_x64(False):
        for example in examples:
            exec(compile(example, str(README), "exec"), names)
    assert names["losses"][-50:].mean() < 0.7 * names["losses"][:50].mean()
    assert "site: [37 x 128]" in capsys.readouterr().out
