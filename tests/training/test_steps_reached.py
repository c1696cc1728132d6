"""A run is not told to end before the step that it has come to: its figures would be those of more."""

import pytest

from kfrtrl_jax.errors import WorkdirError
from kfrtrl_jax.training import sweep, train, trials, workdir
from tests.training.small import nested, small

SHORT = {"num_steps": 20, "estimator": "truncated", "checkpoint_every": 10}


def documents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*.json")}


def test_a_run_with_fewer_steps_than_it_has_come_to_is_refused(tmp_path):
    train.train(small(SHORT), tmp_path)
    before = documents(tmp_path)
    with pytest.raises(WorkdirError, match=r"has come to step 20 already, past num_steps = 10; "):
        train.train(small({**SHORT, "num_steps": 10}), tmp_path)
    assert documents(tmp_path) == before


@pytest.mark.parametrize("is_done", [True, False])
def test_a_sweep_with_fewer_steps_than_a_trial_has_come_to_is_refused(is_done, tmp_path):
    rates = sweep.grid(**{"optimizer.learning_rate": [1e-2, 1e-3]})
    sweep.run_sweep(nested(SHORT), rates[:1], tmp_path)
    if not is_done:
        # As if it had been stopped at its last checkpoint, on its way to more.
        trials.write_results(tmp_path, {"000": rates[0]}, {})
    before = documents(tmp_path)
    with pytest.raises(WorkdirError, match=r"trial 000 of .* has come to step 20 already"):
        sweep.run_sweep(nested({**SHORT, "num_steps": 10}), rates, tmp_path)
    assert documents(tmp_path) == before
    assert workdir.read_document(tmp_path / workdir.CONFIG).keys() == {"000"}
