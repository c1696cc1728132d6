from __future__ import annotations

import matplotlib as mpl
import matplotlib.colors
import matplotlib.image
import numpy as np

from kfrtrl_jax.studies.reproduction import chapters, pictures, records, report, results, runs
from kfrtrl_jax.training import plots
from tests.reproduction import invented


def test_a_picture_of_each_study_that_has_curves_of_the_drawn_methods_or_many_tasks(tmp_path):
    found = report.draw(results.read(invented.results(tmp_path / "results")), tmp_path)
    assert [path.name for path in found] == ["copy.png", "long.png"]
    for colour in (plots.COLOURS[0], "#999999"):
        assert _pixels(found[0], colour) > 50, colour
    # One task is guessed, the other solved.
    solved = matplotlib.colors.to_hex(mpl.colormaps["Blues"](1 / 1.3))
    assert _pixels(found[1], "#f7fbff") > 500
    assert _pixels(found[1], solved) > 500


def test_a_drawn_method_without_a_time_is_drawn_against_steps_alone(tmp_path):
    record = invented.record("copy", invented.copy_trials())
    path = tmp_path / "reproduction" / "copy.json"
    colour = plots.COLOURS[chapters.CHAPTERS["copy"].drawn.index("KF-RTRL")]
    pixels = []
    for method in ("KF-RTRL", "TBPTT(25)"):
        records.write(path, {**record, "times": {method: 2.0}, "timed_on": "here"})
        (picture,) = report.draw(results.read(tmp_path), tmp_path)
        pixels.append(_pixels(picture, colour))
    both, one = pixels
    assert 50 < one < 0.75 * both


def test_a_method_that_diverged_with_all_its_seeds_is_not_drawn(tmp_path):
    path = tmp_path / "reproduction" / "copy.json"
    lost = [invented.trial("UORO", seed, 20_000, "diverged") for seed in range(2)]
    records.write(path, invented.record("copy", lost))
    assert report.draw(results.read(tmp_path), tmp_path) == []


def _pixels(path, colour):
    """How many pixels of a picture have a colour, nearly."""
    image = matplotlib.image.imread(path)[..., :3]
    return (np.abs(image - matplotlib.colors.to_rgb(colour)).max(axis=2) < 0.01).sum()


def test_a_task_is_called_by_what_is_not_its_number_of_lanes():
    assert runs.without_lanes("memory_chain(batch_size=16, length=64)") == "memory_chain(length=64)"
    assert runs.without_lanes("copy(batch_size=16)") == runs.without_lanes("copy") == "copy"


def test_the_mean_curve_is_over_the_steps_that_all_seeds_have():
    own = runs.of_record(invented.record("copy", invented.copy_trials()))
    method = [run for run in own if run.method == "KF-RTRL"]
    shorter = method[0]._replace(series={"sequence_length": {10_000: 5.0, 20_000: 9.0}})
    x, y = pictures.mean([shorter, *method[1:]], "sequence_length", lambda run, step: step)
    assert (x, y) == ([10_000, 20_000], [(5 + 2 + 3) / 3, (9 + 3 + 4) / 3])
    longer = method[1].series["sequence_length"]
    on = pictures.further([shorter, *method[1:]], "sequence_length", lambda run, step: step)
    assert len(on) == 2  # the two that go on, from where the mean ends
    assert on[0] == ([s for s in longer if s >= 20_000], [longer[s] for s in longer if s >= 20_000])
    assert pictures.further(method, "sequence_length", lambda run, step: step) == []
