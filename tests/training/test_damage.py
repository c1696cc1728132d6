"""Some of the damages of `tests.faults.damage`: what follows is the same, or a refusal in one line."""

from __future__ import annotations

from tests.faults import damage


def test_a_damaged_workdir_never_gives_another_number(tmp_path):
    with damage.quickly():
        subjects = [damage.make_run(tmp_path), damage.make_finished_run(tmp_path)]
        assert damage.run(subjects, flips=60, seed=0, every=37) == []
