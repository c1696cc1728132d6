import functools
import importlib
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import kfrtrl_jax as kf
from configs import fidelity as fidelity_config
from configs import noise as noise_config
from configs import theory as theory_config
from kfrtrl_jax import cells, estimators, readouts
from kfrtrl_jax.errors import ConfigError
from kfrtrl_jax.learning import make_learner
from kfrtrl_jax.linearization import make_linearizer
from kfrtrl_jax.programs import fidelity as fidelity_program
from kfrtrl_jax.programs import noise as noise_program
from kfrtrl_jax.programs import theory as theory_program
from kfrtrl_jax.studies import fidelity
from kfrtrl_jax.studies.fidelity import gradient_noise, named, theory
from kfrtrl_jax.studies.fidelity.cells import output_skip
from kfrtrl_jax.tasks import Batch
from kfrtrl_jax.training import sweep
from kfrtrl_jax.training.command_line import Invocation
from tests.helpers.interpreter import evaluated
from tests.training.small import small

# The cells that only the certificate has, at a small size, and their parameters that only outputs read.
# Stacks have tests of their own.
ODD_CELLS = {
    name: make(input_size=2, hidden_size=3)
    for name, make in fidelity.CERTIFIED_CELLS.items()
    if name not in cells.CELLS and name != "stack_lru"
}
OUTPUT_ONLY = {"complex_lru": {"output", "skip"}, "output_skip": {"gate"}}
RUN = {"input_size": 2, "batch_size": 2, "steps": 5, "seed": 1}


def invocation(config, workdir, **fields):
    return Invocation(ConfigDict({**config.get_config(), **fields}), {}, "", workdir)


def without_signs(monkeypatch):
    """Takes the randomness out of KF-RTRL: its mean is then not the influence."""
    module = importlib.import_module("kfrtrl_jax._src.estimators.common")
    monkeypatch.setattr(module, "random_signs", lambda key, shape, dtype: jnp.ones(shape, dtype))


def in_parts(tree):
    """The leaves, with complex ones as their real and imaginary parts."""
    return jax.tree.map(lambda z: (z.real, z.imag) if jnp.iscomplexobj(z) else (z,), tree)


def whole(parts, like):
    """The inverse of `in_parts`, for a tree like `like`."""
    return jax.tree.map(
        lambda z, p: jax.lax.complex(*p) if jnp.iscomplexobj(z) else p[0], like, parts
    )


def unrolled(cell, params, inputs, reset):
    """The states of all lanes after the last step, flat, and the outputs of all steps [T, B, ...]."""
    first = jax.tree.map(lambda c: jnp.stack([c] * inputs.shape[1]), cell.initial_carry())

    def step(carry, xs):
        x, starts = xs
        carry = jax.tree.map(functools.partial(jnp.where, starts[:, None]), first, carry)
        return jax.vmap(cell.step, in_axes=(None, 0, 0))(params, carry, x)

    carry, outputs = jax.lax.scan(step, first, (inputs, reset))
    return jnp.concatenate(jax.tree.leaves(in_parts(carry)), axis=1).reshape(-1), outputs


@pytest.mark.parametrize("name", ODD_CELLS)
def test_exact_rtrl_is_the_jacobian_of_the_unrolled_state(name):
    cell = ODD_CELLS[name]
    params, inputs, reset = fidelity.drawn(cell, **RUN)
    linearizer = make_linearizer(cell, inputs[0, 0], RUN["batch_size"])
    shapes = [(site.input_size, site.output_size) for site in linearizer.structure.sites]
    ends = np.cumsum([m * g for m, g in shapes])

    def by_parameters(row):
        blocks = [part.reshape(shape) for part, shape in zip(jnp.split(row, ends[:-1]), shapes)]
        return linearizer.gradient(params, tuple(blocks))

    def both(parts):
        state = functools.partial(unrolled, cell, inputs=inputs, reset=reset)
        expected = jax.jacobian(lambda parts: state(whole(parts, params))[0])(parts)
        exact = fidelity.reference(fidelity.trajectory(cell, **RUN))
        # JAX's gradient by x + iy is (that by x) - i (that by y).
        got = jax.tree.map(jnp.conj, jax.vmap(by_parameters)(exact.influence))
        return in_parts(got), expected

    got, expected = evaluated(both, in_parts(params))
    for leaf in params:
        for part, other in zip(got[leaf], expected[leaf], strict=True):
            np.testing.assert_allclose(part, other, rtol=1e-9, atol=1e-12, err_msg=leaf)
            assert np.any(other != 0) == (leaf not in OUTPUT_ONLY.get(name, ()))


@pytest.mark.parametrize(
    "cell",
    [*ODD_CELLS.values(), output_skip(input_size=2, hidden_size=3, gated=False)],
    ids=[*ODD_CELLS, "output_skip_without_gate"],
)
def test_gradients_through_the_outputs_are_those_of_the_unrolled_loss(cell):
    segment = 2
    params, inputs, reset = fidelity.drawn(cell, **{**RUN, "steps": 4})
    targets = jax.random.normal(jax.random.key(3), (*reset.shape, 2))
    readout = readouts.linear(input_size=3, output_size=2, init_scale=0.5)

    def loss(prediction, target):
        return jnp.sum((prediction - target) ** 2)

    learner = make_learner(
        cell, readout, estimators.rtrl(), optax.sgd(0.0), batch_size=RUN["batch_size"],
        example_input=inputs[0, 0], loss=loss, segment_length=segment,
    )  # fmt: skip
    state = learner.init(jax.random.key(2))
    state = state._replace(parameters={**state.parameters, "cell": params})
    apply = functools.partial(readout.apply, state.parameters["readout"])

    def mean_loss(params):
        outputs = unrolled(cell, params, inputs, reset)[1]
        losses = jax.vmap(jax.vmap(lambda y, target: loss(apply(y), target)))(outputs, targets)
        return jnp.mean(losses)

    def step(state, part):
        gradient, state, _ = learner.gradient(state, part)
        return state, gradient["cell"]

    segments = jax.tree.map(
        lambda x: x.reshape(-1, segment, *x.shape[1:]), Batch(inputs, targets, jnp.asarray(reset))
    )

    def both(state, params):
        return jax.lax.scan(step, state, segments)[1], jax.grad(mean_loss)(params)

    got, expected = evaluated(both, state, params)
    for leaf in params:
        mean = jnp.mean(got[leaf], axis=0)
        np.testing.assert_allclose(mean, expected[leaf], rtol=1e-9, atol=1e-12, err_msg=leaf)
        assert np.any(expected[leaf] != 0)


@pytest.mark.parametrize(("input_size", "hidden_size"), [(4, 8), (64, 64)])
def test_spiking_units_spike_often_enough_to_have_influence(input_size, hidden_size):
    cell = cells.alif(input_size=input_size, hidden_size=hidden_size)

    @jax.jit
    @jax.vmap
    def rates(key):
        params_key, input_key = jax.random.split(key)
        step = functools.partial(cell.step, cell.init(params_key))
        inputs = jax.random.normal(input_key, (20, input_size))
        return jnp.mean(jax.lax.scan(step, cell.initial_carry(), inputs)[1])

    found = rates(jax.random.split(jax.random.key(0), 20))
    assert np.all((found > 0.05) & (found < 0.6)), found
    assert 0.1 < np.mean(found) < 0.5


def test_rows_tell_exact_unbiased_and_biased_estimators_apart():
    size = fidelity.Size(input_size=2, hidden_size=3, batch_size=2, steps=6)
    certificate = fidelity.certify(
        {"gru": cells.gru},
        [named(text) for text in ("rtrl", "kf_rtrl", "truncated", "diagonal_rtrl")],
        size,
        draws=512,
        timed=size,
        rounds=1,
    )
    exact, noisy, none = certificate.rows
    assert exact.bias_z == 0
    assert exact.cosine_over_time == pytest.approx([1] * 6)
    assert exact.relative_noise == pytest.approx(0, abs=1e-12)
    assert noisy.unbiased
    assert 0 < noisy.bias_z < 4
    assert noisy.times == [1, 2, 3, 4, 5, 6]
    assert noisy.cosine_over_time[0] == pytest.approx(1)  # one step needs no approximation
    assert 0 < noisy.cosine < 0.99
    assert noisy.state_bytes < exact.state_bytes
    assert noisy.flops_per_step < exact.flops_per_step
    assert noisy.time_ratio > 0
    assert (none.bias_z, none.unbiased) == (None, None)
    assert none.relative_bias == pytest.approx(1)
    assert json.loads(json.dumps([row._asdict() for row in certificate.rows]))[2]["bias_z"] is None
    assert fidelity.violations(certificate) == []
    (refusal,) = certificate.refusals
    table = fidelity.markdown(certificate).splitlines()
    assert table[3].startswith("| gru  | kf_rtrl   | 1   | yes ")
    assert table[5].startswith("| gru | diagonal_rtrl | refused: ")
    assert refusal.reason.split("|")[0] in table[5]


def test_the_program_writes_everything_and_fails_where_a_claim_does(tmp_path, monkeypatch):
    small = {
        "cells": ("vanilla",), "estimators": ("kf_rtrl", "truncated"), "hidden_size": 3,
        "num_steps": 4, "segment_lengths": (1, 2), "draws": 8, "timing_rounds": 0,
    }  # fmt: skip
    without_signs(monkeypatch)
    message = r"^error: .* claimed unbiased: kf_rtrl on vanilla, K = 1; .*K = 2$"
    with pytest.raises(SystemExit, match=message):
        fidelity_program.run(invocation(fidelity_config, tmp_path, **small))
    first, blocks, second, _ = json.loads((tmp_path / "fidelity.json").read_text())
    assert (first["estimator"], first["unbiased"], first["bias_z"]) == ("kf_rtrl", False, None)
    assert (blocks["segment_length"], blocks["unbiased"], blocks["times"]) == (2, False, [2, 4])
    assert second["unbiased"] is None
    assert "| NO " in (tmp_path / "fidelity.md").read_text()
    for picture in ("bias.png", "cosine.png", "cost.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("kf_rtrl", True),
        ("ok(rank=3)", True),
        ("uoro(noise='pre_activation')", True),
        ("average(kf_rtrl, copies=4)", True),
        ("average(antithetic(kf_rtrl, 2), copies=4)", True),
        ("control_variate(kf_rtrl(), coefficient=-0.5)", True),
        ("random_resets(0.1, rtrl)", True),
        ("average(snap(order=2), copies=2)", False),
        ("reset_every(5, rtrl)", False),
        ("mixture([kf_rtrl, snap], [1, 0.5])", False),
        ("truncated", False),
    ],
)
def test_estimators_are_named_with_their_arguments(text, claims):
    read = named(text)
    assert read.name == text
    assert read.claims_unbiased == claims
    assert callable(read.estimator.init)


def test_named_arguments_arrive():
    along = fidelity.trajectory(
        cells.vanilla(input_size=2, hidden_size=3), input_size=2, batch_size=1, steps=1, seed=0
    )
    state = named("average(ok(rank=5), copies=2)").estimator.init(along.structure)
    assert state.input_factors[0].shape[:3] == (2, 1, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("okk", "there is no estimator 'okk'; did you mean ok"),
        ("ok", "estimator.rank is missing"),
        ("ok(rank=2.5)", "rank must be an integer, got 2.5"),
        ("ok(rank=snap)", "rank must be an integer, got snap"),
        ("ok(rank=0)", "rank must be at least 1"),
        ("ok(rank=2, size=2)", "estimator.size is not a field of estimator ok"),
        ("uoro(noise=pre_activation)", "noise must be text in quotes, got the name pre_activation"),
        ("average(3, copies=2)", "estimator must be an estimator, got 3"),
        ("average(copies=2, kf_rtrl)", "cannot be read"),
        ("ok(rank=2", "cannot be read"),
        ("ok(rank=1 + 1)", "cannot be read: expected , or \\) at '\\+ 1\\)'"),
        ("ok(**{'rank': 2})", "cannot be read: expected a value"),
        ("__import__('os')", "there is no estimator '__import__'"),
        ("os.system('true')", "os.system is not the name of a factory"),
        ("", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        named(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draw": 3}, "config.draw is not a field"),
        ({"draws": 1}, "config.draws must be at least 2"),
        ({"num_steps": 1.5}, "config.num_steps must be like 24"),
        ({"segment_lengths": (1, 5)}, "multiple of each of segment_lengths, got 24 and 5"),
        ({"cells": ()}, "config.cells must be like"),
        ({"cells": ("elman",)}, "^there is no cell 'elman'; one of vanilla, .*ode"),
        ({"cells": ("gru", "alf")}, "^there is no cell 'alf'; one of .*alif.*$"),
    ],
)
def test_a_bad_config_is_refused(fields, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fidelity_program.run(invocation(fidelity_config, tmp_path / "new", **fields))
    assert not (tmp_path / "new").exists()


def cell(width):
    return cells.recurrent_highway(input_size=width, hidden_size=width, init_scale=0.0)


def test_noise_against_width_is_the_mean_squared_distance_of_the_draws():
    steps, draws, n = 5, 3, 4
    (row,), (regime,) = theory.against_width(
        cell, [named("kf_rtrl")], [n], steps=steps, draws=draws, seed=3
    )
    along = fidelity.trajectory(
        cell(n), input_size=n, batch_size=1, steps=steps, seed=3, restart=False
    )
    (exact,) = fidelity.push_all(estimators.rtrl(), along, jax.random.key(0)).influence
    ratios = []
    for key in jax.random.split(jax.random.key(4), draws):
        state = fidelity.push_all(estimators.kf_rtrl(), along, key)
        product = jnp.einsum(
            "bm,bng->bnmg", state.input_factor[0], jnp.concatenate(state.state_factor[0], axis=1)
        )
        ratios.append(jnp.sum((product - exact) ** 2) / jnp.sum(exact**2))
    assert row.relative_noise == pytest.approx(np.mean(ratios))
    assert row.standard_error == pytest.approx(np.std(ratios, ddof=1) / np.sqrt(draws))
    late = jax.tree.map(lambda x: x[steps // 2 :], along.linearizations.jacobian)
    jacobians = jax.vmap(lambda jacobian: jacobian.dense())(late)[:, 0]
    norms = [np.linalg.norm(jacobian, 2) for jacobian in jacobians]
    assert regime.largest_jacobian_norm == pytest.approx(max(norms))


def test_the_fitted_slope_is_the_exponent():
    rows = [theory.Width("uoro", n, 0.3 * n**1.5, 0.0) for n in (4, 8, 32)]
    line = theory.fit(rows, "uoro")
    assert line.slope == pytest.approx(1.5)
    assert line.standard_error == pytest.approx(0, abs=1e-9)
    assert line.predicted == 1


def test_the_theory_program(tmp_path):
    theory_program.run(
        invocation(
            theory_config, tmp_path, cell="vanilla", estimators=("kf_rtrl",), widths=(3, 4, 5),
            num_steps=4, draws=2, time_hidden_size=3, time_num_steps=4, time_every=1, time_draws=2,
        )
    )  # fmt: skip
    result = json.loads((tmp_path / "theory.json").read_text())
    assert result["times"] == [1, 2, 3, 4]
    first, *later = result["over_time"]["kf_rtrl"]
    assert first == pytest.approx(0, abs=1e-25)  # one step needs no approximation
    assert min(later) > 0.01
    assert [row["hidden_size"] for row in result["regimes"]] == [3, 4, 5]
    assert "| kf_rtrl |" in (tmp_path / "theory.md").read_text()
    for picture in ("noise_width.png", "noise_time.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cell": "lru"}, "config.cell must be one of vanilla"),
        ({"widths": (4, 8)}, "config.widths must be three or more"),
        ({"time_every": 3}, "must be a multiple of time_every"),
    ],
)
def test_a_bad_theory_config_is_refused(fields, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        theory_program.run(invocation(theory_config, tmp_path, **fields))


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """The folder of a sweep of two trained networks, of width 4 and 8, for reading."""
    folder = tmp_path_factory.mktemp("networks")
    trained = small({"num_steps": 20, "estimator.name": "truncated"})
    sweep.run_sweep(trained, [{"cell.hidden_size": 4}, {"cell.hidden_size": 8}], folder)
    return folder


def test_the_noise_along_the_stream_of_a_trained_network(networks, tmp_path, capsys):
    run = networks / "trials" / "000"
    fields = {"trained": str(run), "stream": "copy(batch_size=3, initial_length=2)",
              "estimators": ("rtrl",), "segment_lengths": (2,), "estimated": True, "num_steps": 8,
              "draws": 2}  # fmt: skip
    noise_program.run(invocation(noise_config, tmp_path / "noise", **fields))
    rows = json.loads((tmp_path / "noise" / "noise.json").read_text())["rows"]
    assert [(row["segment_length"], row["immediate"]) for row in rows] == [
        (2, "exact"),
        (1, "estimated"),
    ]
    for row in rows:
        assert row["relative_noise"] < 1e-9
        assert row["cosine"] == pytest.approx(1)
    assert "| noise | K = 2 | papers' form |" in capsys.readouterr().out
    # The gradients are those of the trained parameters, not of initial ones.
    setting = gradient_noise.trained(run, "", steps=4, seed=0)
    trained = kf.load(run).parameters
    jax.tree.map(np.testing.assert_array_equal, setting.parameters, trained)
    with pytest.raises(ConfigError, match=r"adding.* has other inputs or outputs than the task"):
        gradient_noise.trained(run, "adding(batch_size=3)", steps=4, seed=0)


def test_the_cosine_counts_a_gradient_by_its_size():
    cell = cells.vanilla(input_size=3, hidden_size=4)
    setting = gradient_noise.untrained(cell, input_size=3, batch_size=2, steps=8, seed=0)

    def cosine(*late):
        """That of truncation, the losses of the last four steps with these weights."""
        weights = jnp.ones((8, 2)).at[4:].set(jnp.array(late)[:, None])
        batches = setting.batches._replace(targets=(setting.batches.targets, weights))
        own = setting._replace(
            batches=batches,
            loss=setting.loss._replace(
                function=lambda y, target: target[1] * setting.loss.function(y, target[0])
            ),
        )
        (row,) = gradient_noise.measure_noise(
            own, {"truncated": kf.estimators.truncated()}, [gradient_noise.Form(2)], draws=2
        )
        return row.cosine

    # The second step of a block of two is where truncation shows.
    some, none = cosine(1.0, 1.0, 1.0, 1e-9), cosine(1.0, 1.0, 1.0, 0.0)
    assert some == pytest.approx(none, abs=1e-8)
    assert abs(cosine(1.0, 1.0, 1.0, 1.0) - none) > 1e-3
    with pytest.raises(ConfigError, match="no loss counts in the second half of the 8 steps"):
        cosine(0.0, 0.0, 0.0, 0.0)


def test_the_noise_against_the_width_of_trained_networks(networks, tmp_path, capsys):
    stream = "copy(batch_size=1, initial_length=2)"
    fields = {"trained": str(networks), "stream": stream, "segment_lengths": (2,),
              "estimators": ("uoro", "truncated"), "num_steps": 8, "draws": 8}  # fmt: skip
    noise_program.run(invocation(noise_config, tmp_path / "noise", **fields))
    found = json.loads((tmp_path / "noise" / "noise.json").read_text())["rows"]
    assert [(row["estimator"], row["width"]) for row in found] == [
        ("uoro", 4),
        ("truncated", 4),
        ("uoro", 8),
        ("truncated", 8),
    ]
    small_noise, large_noise = (found[i]["relative_noise"] for i in (0, 2))
    exponent = math.log2(large_noise / small_noise)
    lines = capsys.readouterr().out.splitlines()
    assert "| noise | n = 4 | n = 8 | exponent of n |" in lines
    (line,) = (
        line for line in lines if line.startswith("| uoro, K = 2") and line.endswith("0.00 |")
    )
    assert line.split("|")[4].strip() == f"{exponent:.2f} ± 0.00"
    # Its error is that of two networks, the first of which is a trial of its own.
    alone = fields | {"trained": str(networks / "trials" / "000"), "estimators": ("uoro",)}
    noise_program.run(invocation(noise_config, tmp_path / "alone", **alone))
    assert json.loads((tmp_path / "alone" / "noise.json").read_text())["rows"] == found[:1]


def test_networks_of_the_same_width_are_no_table_against_width(networks, tmp_path):
    shutil.copytree(networks, tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / "trials" / "001")
    shutil.copytree(networks / "trials" / "000", tmp_path / "sweep" / "trials" / "001")
    fields = {"trained": str(tmp_path / "sweep"), "estimators": ("rtrl",), "segment_lengths": (2,),
              "num_steps": 8, "draws": 2}  # fmt: skip
    message = r"must differ in their width, .* have n = (\d+), \1; a single one is .*/trials/NUMBER"
    with pytest.raises(ConfigError, match=message):
        noise_program.run(invocation(noise_config, tmp_path / "noise", **fields))


def test_the_noise_of_a_gradient_falls_with_the_segment(tmp_path, capsys):
    fields = {"cell": "vanilla", "estimators": ("kf_rtrl",), "segment_lengths": (1, 4),
              "hidden_size": 4, "input_size": 3, "num_steps": 8, "draws": 32}  # fmt: skip
    noise_program.run(invocation(noise_config, tmp_path, **fields))
    rows = json.loads((tmp_path / "noise.json").read_text())["rows"]
    one, four = rows
    assert (one["estimator"], one["segment_length"], four["segment_length"]) == ("kf_rtrl", 1, 4)
    assert 0 < four["relative_noise"] < 0.8 * one["relative_noise"]
    assert 0 < one["cosine"] < four["cosine"] < 1
    # Of the first segment's steps nothing is estimated, and of the first step nothing either.
    assert four["over_time"][:2] == pytest.approx([0, 0], abs=1e-9)
    assert min([*one["over_time"], *four["over_time"][2:]]) > 0
    assert (tmp_path / "noise.md").read_text() == capsys.readouterr().out
    with pytest.raises(ConfigError, match="multiple of each of segment_lengths, got 8 and 3"):
        noise_program.run(
            invocation(noise_config, tmp_path / "other", **{**fields, "segment_lengths": (1, 3)})
        )
