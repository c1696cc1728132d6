"""The benchmark program at tiny sizes: tests of what it measures, not of how fast that is."""

from __future__ import annotations

import json
import math
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import copy
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.programs import benchmark
from kfrtrl_jax.studies import power_law
from kfrtrl_jax.studies.benchmarking import (
    floors,
    memory,
    parts,
    peers,
    plan,
    scaling,
    sharding,
    startup,
    steps,
    stream,
    timing,
)
from kfrtrl_jax.studies.benchmarking.steps import Case
from kfrtrl_jax.studies.benchmarking.timing import Floor, Measurement, Work
from tests.helpers.nights import some


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    """One call per run, in float32 as for users."""
    monkeypatch.setattr(timing, "_LEAST_SECONDS", 0.0)
    with jax.enable_x64(False):
        yield


def row_of(suite="step", **changes):
    values = {name: 0.0 for name in Measurement._fields}
    values |= {
        "suite": suite,
        "name": "x",
        "floor": "y",
        "samples": [(2.0, 1.0)],
        "n": 4,
        "batch": 2,
    }
    return Measurement(**(values | changes))


def test_ratios_are_of_medians_and_either_goes_first_in_turn():
    order = []

    def work(name):
        return Work(lambda: order.append(name), steps=2)

    samples = timing.alternate(work("run"), work("floor"), rounds=4)
    assert order[-8:] == ["run", "floor", "floor", "run", "run", "floor", "floor", "run"]
    assert len(samples) == 4
    assert timing.ratios([(1.0, 2.0), (4.0, 1.0), (3.0, 2.0)]) == (1.5, 0.5, 4.0)
    assert timing.median([3, 1, 2]) == 2
    assert timing.median([4, 1, 2, 3]) == 2.5
    row = timing.compare(
        work("run"),
        Floor("a floor", work("floor")),
        suite="step",
        name="x",
        n=1,
        batch=1,
        target=1e9,
        rounds=3,
    )
    assert row.met is True
    assert row.floor == "a floor"
    assert row.ratio_min <= row.ratio <= row.ratio_max
    assert row._replace(target=None, met=None).met is None


@pytest.fixture
def first_is_fastest(monkeypatch):
    """Takes the first program in place of the fastest, whose search compiles many."""
    monkeypatch.setattr(
        timing, "fastest", lambda candidates: Floor(candidates[0][0], candidates[0][1]())
    )


def test_every_layout_of_the_product_is_the_same_product(monkeypatch):
    b, n, widths = 2, 3, [4, 2]
    generator = np.random.default_rng(0)
    made = []

    def random(shape, inner, dtype):
        made.append(generator.normal(size=shape).astype(dtype))
        return jnp.asarray(made[-1])

    monkeypatch.setattr(floors, "_random", random)
    for i, (equation, _) in enumerate(floors._LAYOUTS):
        feed = i % 2 == 0
        made.clear()
        work = floors._product(equation, b, n, n, widths, jnp.float32, 2, feed, {})()
        letters = {"k" in part: part for part in equation.split("->")[0].split(",")}
        jacobian = np.einsum(f"{letters[False]}->bij", made[0])
        for a, result in zip(made[1:], work.run(), strict=True):
            a = np.einsum(f"{letters[True]}->bjk", a)
            expected = jacobian @ (jacobian @ a) if feed else jacobian @ a
            found = np.einsum(f"{equation.split('->')[1]}->bik", result)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    made.clear()
    work = floors._lanes(b, 3, 2, 5, jnp.float32, 2, {})()
    np.testing.assert_allclose(np.stack(work.run()), made[0] @ made[1], rtol=1e-4, atol=1e-5)


def test_floors_say_what_they_are_and_make_all_their_steps(first_is_fastest):
    product = floors.product(2, 6, 3, [4, 4], jnp.float32, steps=4)
    assert product.words == "product [2, 6, 3] x [2, 3, 2 * 4]: J A, A kept"
    assert product.work.steps == 4
    work = floors._pass([(3,), (2, 2)], jnp.float32, 5, {})()
    for calls in (1, 2):
        for x in work.run():
            np.testing.assert_array_equal(x, 5 * calls)
    assert floors.passes([(3,), (2, 2)], jnp.float32, 2).words.startswith(
        "28 bytes read and written"
    )


def test_the_fastest_of_equivalent_programs_is_the_floor():
    def work(seconds):
        return lambda: Work(lambda: time.sleep(seconds), 2)

    floor = timing.fastest([("slow", work(0.2)), ("quick", work(0.0)), ("slow too", work(0.2))])
    assert floor.words == "quick"
    assert floor.seconds < 0.1
    assert floors.copy_bandwidth(size=2**10, tries=1) > 0


def test_floors_have_the_shapes_that_the_estimator_needs(first_is_fastest):
    linearized = steps.linearization(Case("lstm", "kf_rtrl", 4, 2))
    assert linearized.jacobian.blocks[0].shape == (8, 4)
    assert steps.dense_columns(linearized) == 4
    highway = Case("recurrent_highway", "ok", 4, 2, arguments={"rank": 3})
    resolved = steps.resolve(copy.get_config(), highway, 2)
    assert resolved.estimator.rank == 3
    assert "[2, 4, 4] x [2, 4, 3 * 8]" in steps._floor(highway, resolved, None, 2).words
    structure = steps.programs.build(resolved).about.structure
    assert steps.influence_shapes("uoro", structure) == [(2, 9, 8)]
    assert steps.influence_shapes("snap", structure) == [(2, 9, 2, 4)]
    with pytest.raises(ValueError, match="not of 'rtrl'"):
        steps.influence_shapes("rtrl", structure)


def test_a_row_against_flax_holds_what_others_read(first_is_fastest):
    case = Case("vanilla", "truncated", 4, 2, "flax", 1e9, segment_length=2)
    row = steps.measure_step(case, copy.get_config(), suite="step", rounds=2, steps=3)
    assert row.name == "vanilla truncated K=2"
    assert "linen.RNN" in row.floor
    assert row.met is True
    read = json.loads(json.dumps(row._asdict()))
    assert len(read["samples"]) == 2
    assert read["ratio"] == pytest.approx(read["seconds"] / read["floor_seconds"])
    assert {"suite", "n", "batch", "ratio_min", "ratio_max", "target", "met"} <= set(read)


def test_a_population_is_the_same_runs_as_one_program():
    experiment = steps.programs.Experiment(
        init=lambda seed: jnp.float32(seed),
        run_chunk=lambda state: (2 * state, state),
        about=None,
    )
    together = steps._population(experiment, 3, 5)
    alone = steps._one_after_another(experiment, 3, 5)
    assert alone.words == "3 runs one after another"
    assert together.steps == alone.work.steps == 5
    for _ in range(2):
        np.testing.assert_array_equal(together.run(), alone.work.run())
    np.testing.assert_array_equal(together.run(), [0, 4, 8])


def test_fits_find_the_exponents_of_power_laws(tmp_path):
    series = scaling.Series("kf_rtrl", "n", 3, {n: None for n in (2, 4, 8, 16)})
    rows = [row_of(seconds=1e-6 * n**3, floor_seconds=1e-7 * n**2.5) for n in series.cases]
    fit = scaling.fit(series, rows)
    assert fit.exponent == pytest.approx(3)
    assert fit.exponent_large == pytest.approx(3)
    assert fit.floor_exponent == pytest.approx(2.5)
    overhead = [row._replace(seconds=row.seconds + 1e-3) for row in rows]
    assert scaling.fit(series, overhead).exponent < scaling.fit(series, overhead).exponent_large < 3
    with pytest.raises(ValueError, match="at least two different sizes"):
        power_law.exponent([3, 3], [1, 2])
    scaling.plot([fit, fit], tmp_path / "fits.png")
    assert (tmp_path / "fits.png").stat().st_size > 1000


def test_memory_counts_the_factors_and_the_program():
    case = Case("recurrent_highway", "kf_rtrl", 8, 2)
    resolved = steps.resolve(copy.get_config(), case, 2)
    assert memory.state_bytes(resolved) == 2 * 4 * (13 + 8 * 16)
    large = steps.resolve(copy.get_config(), Case("vanilla", "truncated", 64, 2), 2)
    # The weights and the optimizer's two moments.
    assert memory.compiled_bytes(large) > 3 * 4 * 69 * 64
    assert memory._peak() > 2**20
    row = memory._row(case, "memory", "state", 3.0, 2.0, "words", 1.1)
    assert (row.ratio, row.met, row.seconds, row.bytes) == (1.5, False, None, 3.0)


# In place of Python: it logs a first line after a while, and does not end by itself.
STAND_IN = """#!/bin/sh
[ "$*" = "-m kfrtrl_jax train --config=copy --workdir=${5#*=}" ] || exit 1
sleep 0.2; mkdir -p "${5#*=}" "$JAX_COMPILATION_CACHE_DIR"
echo > "${5#*=}/metrics.jsonl"; exec sleep 100
"""


def test_the_time_to_the_first_chunk_is_that_of_a_process(monkeypatch, tmp_path):
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    run, cache = tmp_path / "run", tmp_path / "cache"
    assert 0.2 < startup.first_chunk_seconds(["--config=copy"], run, cache) < 60
    assert cache.exists()
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match="no first chunk of false -m kfrtrl_jax"):
        startup.first_chunk_seconds([], tmp_path / "none", tmp_path / "cache")


def test_the_import_of_the_library_is_compared_with_that_of_jax_and_optax(monkeypatch):
    monkeypatch.setattr(timing, "_LEAST_SECONDS", 0.01)
    started = []

    def start(statement):
        started.append(statement)
        time.sleep(0.03 if "kfrtrl_jax" in statement else 0.01)

    monkeypatch.setattr(startup, "_start", start)
    (row,), _ = benchmark.measure_case("compile", startup.IMPORT, rounds=3)
    assert set(started) == {"from kfrtrl_jax import *", "import jax, optax"}
    assert row.ratio > 2
    assert not row.met


def test_what_is_chosen_described_and_printed():
    assert list(benchmark.choose("step", "n512")) == ["recurrent_highway kf_rtrl n512 b16"]
    with pytest.raises(ConfigError, match="matches no row of suite memory"):
        benchmark.choose("memory", "lstm")
    with pytest.raises(ConfigError, match="not a regular expression"):
        benchmark.choose("step", "(")
    assert set(benchmark.versions(["jax", "no-such-package"])) == {"jax"}
    row = row_of(ratio=2.0, target=1.5, met=False)
    assert "2.00, target 1.50: missed; floor: y" in benchmark.one_line(row)
    assert benchmark.verdict(row._replace(met=True)) == "reached"
    assert benchmark.verdict(row._replace(target=None, met=None)) == ""


def test_accelerators_are_measured_where_there_are_any(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(ConfigError, match="gpu needs an accelerator"):
        benchmark.require("gpu", {})
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    benchmark.require("gpu", {})


def test_the_penn_treebank_is_measured_with_its_own_config(first_is_fastest):
    if "KFRTRL_DATA_DIR" not in os.environ:
        pytest.skip("KFRTRL_DATA_DIR names no folder with the Penn Treebank")
    (case,) = (case for case in steps.GPU_SUITE if case.config == "ptb")
    small = case._replace(n=8, batch=2, steps=20)
    (row,), _ = benchmark.measure_case("gpu", small, rounds=1)
    assert row.name == "recurrent_highway kf_rtrl ptb"
    assert row.seconds > 0


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"needs torch: pip install 'kfrtrl_jax\[peers\]'"):
        peers.require({"torch"})


@pytest.mark.parametrize("name", ["kf_rtrl", "uoro"])
def test_pytorch_makes_the_same_steps_of_the_same_signs(name):
    torch = pytest.importorskip("torch", reason="needs the peers extra: torch")
    from kfrtrl_jax.studies.benchmarking import torch_peers

    n, batch = 3, 2
    weights, xs, ys = peers.problem(n, batch, 3)
    learner, state = peers.our_learner(name, weights, batch)
    step = jax.jit(learner.step)
    theirs = torch_peers.start(name, torch.tensor(np.array(weights)), batch)
    tensors = [[torch.tensor(np.array(leaf)) for leaf in column] for column in (xs, ys)]
    segments = peers.segments(xs, ys)
    choices = 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1) - 1
    if name == "kf_rtrl":
        choices = np.array([[1, 1], [1, -1]])
    for t in range(len(xs)):
        state, _ = step(state, jax.tree.map(lambda leaf, t=t: leaf[t], segments))
        ours = influence(name, *map(np.asarray, jax.tree.leaves(state.influence)))
        errors, signs = [], []
        for choice in choices:
            every = np.tile(choice, (batch, 1)).astype(np.float32)
            signs.append(every.T if name == "kf_rtrl" else every)
            new = torch_peers.STEPS[name](
                theirs, *(c[t] for c in tensors), torch.tensor(signs[-1]), 1e-3
            )
            errors.append(np.abs(influence(name, *map(np.asarray, new[2:])) - ours).max((1, 2, 3)))
        # In each lane exactly one choice fits (for UORO also its negative), except where G was 0.
        best = np.argmin(errors, axis=0)
        fits = np.sort(errors, axis=0)
        assert (fits[0] < 1e-4).all()
        assert t == 0 or (fits[2 if name == "uoro" else 1] > 1e-3).all()
        lanes = range(batch)
        chosen = np.stack([choices[best[b]] for b in lanes], axis=int(name == "kf_rtrl"))
        chosen = torch.tensor(chosen.astype(np.float32))
        theirs = torch_peers.STEPS[name](theirs, *(c[t] for c in tensors), chosen, peers.RATE)
        np.testing.assert_allclose(
            theirs.weights, state.parameters["cell"]["weights"], rtol=1e-4, atol=1e-6
        )
    assert np.abs(np.asarray(theirs.weights) - np.asarray(weights)).max() > 1e-4


def influence(name: str, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """ds/dW, [B, n, m, n], of (u, A) or of (s~, theta~)."""
    if name == "kf_rtrl":
        return np.einsum("bm,bng->bnmg", first, second)
    return np.einsum("bn,bmg->bnmg", first, second)


def test_braintrace_trains_to_the_weights_that_snap_trains_to():
    pytest.importorskip("braintrace", reason="needs the peers extra: braintrace")
    from kfrtrl_jax.studies.benchmarking import braintrace_peers

    weights, xs, ys = peers.problem(4, 2, 5)
    for name in ("snap", "e_prop"):
        learner, state = peers.our_learner(name, weights, 2)
        state, _ = jax.lax.scan(learner.step, state, peers.segments(xs, ys))
        train, present = braintrace_peers.make_training(name, weights, 2, peers.RATE)
        train(xs, ys)
        moved = np.abs(np.asarray(present()) - np.asarray(weights)).max()
        assert moved > 1e-4
        np.testing.assert_allclose(
            present(), state.parameters["cell"]["weights"], atol=1e-4 * moved + 1e-7
        )


def test_what_crosses_between_devices_is_read_from_a_program():
    program = """
      %a = (f32[8,4]{1,0}, f32[]) all-reduce(%x, %y), channel_id=1
      %b = u32[4,2]{1,0} collective-permute(%z), source_target_pairs={{0,1}}
      %c = bf16[10]{0} all-reduce(%w), to_apply=%sum
      %d = f32[100]{0} add(%a, %b)
    """
    assert sharding.collectives(program) == {"all-reduce": 132 + 20, "collective-permute": 32}


@pytest.mark.parametrize(
    ("value", "allowed"),
    [(0.0, "more than 0"), (-1.0, "more than 0"), (math.nan, "more than 0"), (math.inf, "finite")],
)
def test_a_device_without_a_speed_is_refused(value, allowed):
    devices = plan.Devices(number=4, operations=1e9, memory=1e6, bandwidth=value, link=1e8)
    with pytest.raises(ConfigError, match=f"bandwidth must be {allowed}, got {value}"):
        plan.make_plan("vanilla(hidden_size=2)", "kf_rtrl", 64, devices)


def test_a_plan_for_few_lanes_holds_for_many():
    run = "vanilla(hidden_size=16)", "truncated"
    devices = plan.Devices(number=4, operations=1e9, memory=1e6, bandwidth=1e9, link=1e8)
    found = plan.make_plan(*run, 64, devices)
    counted = plan.compiled_costs(*run, 16)
    assert found.lanes == 16
    assert found.costs.state == counted.state
    np.testing.assert_allclose(found.costs.operations, counted.operations, rtol=0.05)
    parameters = (4 + 16 + 1) * 16 + (16 + 1) * 4
    assert found.exchange == 2 * 3 / 4 * 4 * parameters / 1e8
    assert found.seconds >= found.compute + found.exchange
    assert "| 16 |" in plan.as_table([found])


def test_as_many_lanes_fit_as_memory_holds(monkeypatch):
    def costs(cell, estimator, lanes):
        return plan.Costs(0.0, 0.0, 0.0, peak=1000.0 + 300 * lanes, gradient=0.0)

    monkeypatch.setattr(plan, "compiled_costs", costs)
    for memory_size, most in ((1000 + 300 * 7, 7), (1000 + 300 * 7 - 1, 6), (10, 0)):
        devices = plan.Devices(2, 1.0, memory_size, 1.0, 1.0)
        assert plan.make_plan("", "", 8, devices).most_lanes == most


def test_a_stream_is_measured_against_a_scan():
    case = stream.StreamCase("truncated", 4, 1, apart=True, steps=3)
    row = stream.measure_stream(case, suite="stream", rounds=1)
    assert row.ratio > 0
    assert row.floor == "the same steps in one scan"
    assert (row.n, row.batch, row.target) == (4, 1, None)


@pytest.mark.parametrize("without", some(["the push", "the pull"]))
def test_a_part_is_left_out_of_a_whole_step(without):
    case = parts.Part("ok", 4, 2, 2, without, {"rank": 2})
    row = parts.measure_part(case, suite="parts", rounds=1, steps=4)
    assert row.ratio > 0
    assert (row.name, row.floor) == (f"ok(rank=2) K=2 U=1 without {without}", "the whole step")
    assert (row.segment_length, row.update_every, row.target) == (2, 1, None)
