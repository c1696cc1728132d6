from __future__ import annotations

import matplotlib.image
import numpy as np

from kfrtrl_jax.studies.reproduction import pictures, report, runs
from kfrtrl_jax.training import plots
from tests.reproduction import invented


def test_a_picture_of_each_study_that_has_curves_of_the_drawn_methods(tmp_path):
    found = report.draw(invented.results(tmp_path / "results"), tmp_path)
    assert [path.name for path in found] == ["copy.png"]
    image = matplotlib.image.imread(found[0])[..., :3]
    for colour in (plots.COLOURS[0], "#999999"):
        wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(image - wanted).max(axis=2) < 0.01).sum() > 50, colour


def test_the_mean_curve_is_over_the_steps_that_all_seeds_have():
    own = runs.of_record({"config": "", "trials": invented.copy_trials()})
    method = [run for run in own if run.method == "KF-RTRL"]
    shorter = method[0]._replace(series={"sequence_length": {10_000: 5.0, 20_000: 9.0}})
    x, y = pictures.mean([shorter, *method[1:]], "sequence_length", lambda run, step: step)
    assert (x, y) == ([10_000, 20_000], [(5 + 2 + 3) / 3, (9 + 3 + 4) / 3])
