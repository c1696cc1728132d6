"""The examples of README.md and of docs/ run as printed."""

import pathlib
import re

import jax
import numpy as np

from kfrtrl_jax.tasks import draw

ROOT = pathlib.Path(__file__).parent.parent


def examples(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def test_examples_of_the_readme_run(capsys):
    found = [*examples("README.md"), *examples("docs/blocks.md")]
    assert len(found) == 3
    names: dict = {}
    with jax.enable_x64(False):
        for example in found:
            exec(compile(example, "README.md", "exec"), names)
    losses = names["metrics"].loss
    assert losses[-50:].mean() < 0.7 * losses[:50].mean()
    assert "site: [37 x 128]" in capsys.readouterr().out


def test_the_example_of_an_estimator_is_unbiased_and_has_more_noise_than_uoro():
    (example,) = examples("docs/own_estimator.md")
    names: dict = {}
    exec(compile(example, "docs/own_estimator.md", "exec"), names)
    own, uoro = names["certificate"].rows
    assert own.bias_z < 4
    assert own.relative_noise > uoro.relative_noise


def test_the_example_of_a_task_is_one():
    (example,) = examples("docs/tasks.md")
    names: dict = {}
    exec(compile(example, "docs/tasks.md", "exec"), names)
    task = names["echo"](batch_size=2, delay=2)
    keys = jax.random.split(jax.random.key(1), 5)
    start = task.init(jax.random.key(0))
    _, batch = jax.lax.scan(lambda s, k: draw(task, s, k), start, keys)
    np.testing.assert_array_equal(batch.targets[2:], batch.inputs[:-2])
    np.testing.assert_array_equal(batch.weight[:, 0], [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(batch.reset[:, 0], [True, False, False, False, False])


def test_the_tables_of_docs_name_all_there_is():
    from kfrtrl_jax.cells import CELLS
    from kfrtrl_jax.estimators import COMBINATORS, ESTIMATORS
    from kfrtrl_jax.optimizers import OPTIMIZERS, SCHEDULES
    from kfrtrl_jax.tasks import TASKS

    for path, names in (
        ("docs/cells.md", CELLS),
        ("docs/estimators.md", [*ESTIMATORS, *COMBINATORS]),
        ("docs/tasks.md", TASKS),
        ("docs/configs.md", [*OPTIMIZERS, *SCHEDULES]),
    ):
        text = (ROOT / path).read_text()
        assert not [name for name in names if f"`{name}" not in text], path


def test_links_between_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)
