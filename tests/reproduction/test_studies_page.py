"""The figures of docs/studies.md are those of the committed records."""

import statistics

import pytest

from kfrtrl_jax.studies import power_law
from kfrtrl_jax.studies.reproduction import budget, chapters, results, runs, tables, times
from tests.reproduction import invented

PAGE = " ".join((invented.RESULTS.parents[1] / "docs" / "studies.md").read_text().split())
STARTS = ("TBPTT(5)", *(f"TBPTT(5), read from {n}" for n in ("40,000", "80,000", "120,000")))


COMMITTED = results.read(invented.RESULTS)


@pytest.fixture(scope="module")
def ptb():
    return COMMITTED.own["ptb"]


@pytest.fixture(scope="module")
def logs():
    return COMMITTED.public["ptb"]


def figures(found, method, field, step):
    """A figure of the first seed, with three digits behind the point."""
    own = tables.values_at([run for run in found if run.method == method], field, step)
    return f"{own[0]:.3f}"


def mean(found, field, step):
    return f"{statistics.mean(tables.values_at(found, field, step)):.3f}"


def test_what_the_text_just_read_does_to_a_loss(ptb, logs):
    first, *others = (figures(ptb, m, "running_loss", 200_000) for m in STARTS)
    assert f"running training loss of {mean(logs, 'running_loss', 200_000)}" in PAGE
    begin = f"{others[0]}, {others[1]} and {others[2]} if it begins"
    assert f"TBPTT(5) has {first} after 200,000, and {begin}" in PAGE
    known = mean(logs, "running_loss", 100_000)
    ours = [figures(ptb, "8-OK, blocks of 8", "running_loss", step) for step in (200_000, 100_000)]
    assert (
        f"and {known} after 100,000; 8-OK in blocks of 8 has {ours[0]} and {ours[1]} (one" in PAGE
    )
    first, *others = (figures(ptb, m, "valid_loss", 200_000) for m in STARTS)
    known = mean(logs, "valid_loss", 200_000)
    words = f"{first}, and {others[0]}, {others[1]} and {others[2]}, where the logs have {known}"
    assert words in PAGE


def test_how_far_kf_rtrl_is_behind_tbptt_on_the_penn_treebank(ptb, logs):
    short, long, ok, snap, kf_rtrl, one = (
        figures(ptb, name, "valid_loss", 200_000)
        for name in (
            "TBPTT(5)",
            "TBPTT(25)",
            "8-OK, blocks of 8",
            "SnAp-1, blocks of 8",
            "KF-RTRL, blocks of 8",
            "TBPTT(1)",
        )
    )
    known = mean(logs, "valid_loss", 200_000)
    assert f"as TBPTT(25), {short} and {long} in validation, and 8-OK in the logs, {known};" in PAGE
    assert f"8-OK in blocks of 8 has {ok}, SnAp-1 in blocks of 8 {snap}, KF-RTRL in" in PAGE
    assert f"KF-RTRL in blocks of 8 {kf_rtrl}, TBPTT(1) {one}." in PAGE
    assert f"{float(kf_rtrl) - float(long):.2f} bits behind" in PAGE
    every_step = figures(ptb, "SnAp-1", "valid_loss", 200_000)
    assert f"SnAp-1 pushed at every step, with no step kept, has {every_step}." in PAGE


def test_how_far_the_papers_form_is_from_the_logs(ptb, logs):
    early = [figures(ptb, m, "valid_loss", 60_000) for m in STARTS]
    ours = figures(ptb, "8-OK", "valid_loss", 60_000)
    spread = statistics.stdev(tables.values_at(logs, "valid_loss", 60_000))
    assert f"it is {early[0]}, {early[1]}, {early[2]} and {early[3]}, and {ours} for 8-OK" in PAGE
    assert f"{mean(logs, 'valid_loss', 60_000)} ± {spread:.3f}" in PAGE
    assert sum(run.method == "8-OK" for run in ptb) == 1


def test_what_five_exact_steps_come_to_after_a_million(ptb, logs):
    late, trained = (
        figures(ptb, "TBPTT(5)", field, 1_000_000) for field in ("valid_loss", "running_loss")
    )
    (best,) = (
        run.results["best_valid_loss"]
        for run in ptb
        if (run.method, run.planned_steps) == ("TBPTT(5)", 1_000_000)
    )
    assert f"TBPTT(5) has {late} in validation then and {best:.3f} at its best (one seed)" in PAGE
    spreads = [
        tables.spread(tables.values_at(logs, "valid_loss", 1_000_000)),
        tables.spread([min(run.series["valid_loss"].values()) for run in logs]),
    ]
    last, at_best = (f"{spread.mean:.3f} ± {spread.deviation:.3f}" for spread in spreads)
    assert f"the logs of 8-OK have {last} and {at_best}, and a running training loss" in PAGE
    assert f"of {trained}, where they have {mean(logs, 'running_loss', 1_000_000)}." in PAGE


def test_what_the_rate_is_to_tbptt_and_kf_rtrl(ptb):
    usual = "TBPTT(25), an update per 25 steps"
    kf_rtrl = "KF-RTRL, blocks of 8"
    late = [
        figures(ptb, method, "valid_loss", 200_000)
        for method in (usual, kf_rtrl, f"{usual}, rate 10^-3", f"{usual}, rate 10^-2.5")
    ]
    assert f"TBPTT(25) has {late[0]} after 200,000 steps at the protocol's rate, 10^-3.5," in PAGE
    assert f"KF-RTRL's {late[1]} in blocks of 8; {late[2]} at 10^-3; and {late[3]} at" in PAGE
    others = [
        values[0]
        for method in {run.method for run in ptb} - {f"{usual}, rate 10^-2.5"}
        if (own := [run for run in ptb if run.method == method])
        and (values := tables.values_at(own, "valid_loss", 200_000))
    ]
    assert min(others) > float(late[3])
    lowest, higher_rate = (
        figures(ptb, f"{usual}, rate {rate}", "valid_loss", 1_000_000)
        for rate in ("10^-3", "10^-2.5")
    )
    (best,) = (run for run in ptb if run.method == f"{usual}, rate 10^-3")
    assert best.results["best_valid_loss"] == min(
        run.results["best_valid_loss"] for run in ptb if "best_valid_loss" in run.results
    )
    assert f"million steps it has {lowest} at 10^-3, the lowest of all runs, with" in PAGE
    assert f"{best.results['test_loss']:.3f} on the test text, and {higher_rate} at" in PAGE

    def higher(method, field, step):
        at_both = (figures(ptb, f"{method}{rate}", field, step) for rate in (", rate 10^-3", ""))
        return " to ".join(at_both)

    early = higher("TBPTT(5)", "valid_loss", 60_000)
    assert f"is ahead after 60,000 steps, {early}, and behind" in PAGE
    assert f"after 200,000, {higher('TBPTT(5)', 'valid_loss', 200_000)}, and SnAp-1" in PAGE
    snap = "SnAp-1, blocks of 8"
    both = " and ".join(higher(snap, "valid_loss", step) for step in (60_000, 200_000))
    assert f"and SnAp-1 in blocks of 8 likewise, {both};" in PAGE
    assert f"after 60,000 already, {higher(kf_rtrl, 'valid_loss', 60_000)}, though" in PAGE
    assert f"running loss is {higher(kf_rtrl, 'running_loss', 60_000)}: what" in PAGE


def test_how_far_ahead_kf_rtrl_is_on_the_penn_treebank(ptb):
    methods = ("KF-RTRL, blocks of 8", "UORO, blocks of 8")
    late = " to ".join(figures(ptb, method, "valid_loss", 200_000) for method in methods)
    assert f"on the Penn Treebank, {late} bits in validation after 200,000" in PAGE
    uoro = [run for run in ptb if run.method == methods[1]]
    a, b, c = (f"{x:.3f}" for x in tables.values_at(uoro, "valid_loss", 60_000))
    early = figures(ptb, methods[0], "valid_loss", 60_000)
    assert f"three seeds have {a}, {b} and {c} after 60,000, KF-RTRL {early})" in PAGE


def recalled(length):
    """The accuracy of each seed on a chain of so many steps, by method."""
    own = [run for run in COMMITTED.own["long"] if run.task.endswith(f"length={length})")]
    return {
        method: [run.series["score"][20_000] for run in own if run.method == method]
        for method in {run.method for run in own}
    }


def by_all_seeds(scores):
    """The methods that recall the bit with every seed."""
    assert {len(own) for own in scores.values()} == {3}
    return {method for method, own in scores.items() if min(own) > 0.99}


def test_what_chains_of_growing_length_tell():
    scores = recalled(32)
    (forgetful,) = scores.keys() - by_all_seeds(scores)
    assert forgetful == "TBPTT(1)"
    spread = tables.spread(scores[forgetful])
    assert f"one step with Adam ({spread.mean:.2f} ± {spread.deviation:.2f})." in PAGE
    beyond = {f"{name}, blocks of 8" for name in ("RTRL", "8-OK", "SnAp-1")}
    with_rmsprop = {f"{name}, blocks of 8, RMSProp" for name in ("RTRL", "KF-RTRL")}
    by_sgd = {"RTRL, blocks of 8, SGD"}
    assert by_all_seeds(recalled(64)) == beyond | with_rmsprop | by_sgd
    scores = recalled(128)
    assert not by_all_seeds(scores)
    seeds = {method: sum(score > 0.99 for score in own) for method, own in scores.items()}
    truncated = {f"TBPTT(1), {optimizer}" for optimizer in ("RMSProp", "SGD", "LARS")}
    assert {method for method in seeds if seeds[method] == 2} == with_rmsprop
    assert {method for method in seeds if seeds[method] == 1} == truncated | by_sgd


def repeated(delay):
    """The mean accuracy by method after so many steps of delay."""
    own = [run for run in COMMITTED.own["long"] if run.task.endswith(f"delay={delay})")]
    return {
        method: statistics.mean(run.series["score"][20_000] for run in own if run.method == method)
        for method in {run.method for run in own}
    }


def test_what_a_delay_of_80_steps_tells():
    means = repeated(80)
    rtrl, kf_rtrl, truncated = sorted(means, key=lambda method: -means[method])[:3]
    assert rtrl == "RTRL, blocks of 8, RMSProp"
    assert kf_rtrl == "KF-RTRL, blocks of 8, RMSProp"
    assert truncated == "TBPTT(1), SGD"
    assert f"RMSProp come to {means[rtrl]:.2f} and {means[kf_rtrl]:.2f}, and trunc" in PAGE
    assert f"one step with SGD to {means[truncated]:.2f}: there" in PAGE


def test_what_a_delay_of_20_steps_tells():
    means = repeated(20)
    lars = means.pop("TBPTT(1), LARS")
    least, most = f"{min(means.values()):.2f}", f"{max(means.values()):.2f}"
    assert f"beyond {most}, and all but truncation with LARS ({lars:.2f}) have {least}" in PAGE


def lengths(found, method, step):
    """T* of the seeds of a method on the copy task, in words, and how many seeds there are."""
    own = [run for run in found if run.method == method]
    spread = tables.spread(tables.values_at(own, "sequence_length", step))
    error = "" if spread.runs == 1 else f" ± {spread.deviation:.1f}"
    return f"{spread.mean:.{0 if spread.runs == 1 else 1}f}{error}", spread.runs


@pytest.fixture(scope="module")
def copy():
    return COMMITTED.own["copy"]


def test_how_far_ahead_kf_rtrl_is_after_a_million_steps(copy):
    methods = ("KF-RTRL", "UORO", "KF-RTRL, blocks of 8")
    (ours, *n), (others, *m), (blocks, *k) = (lengths(copy, name, 1_000_000) for name in methods)
    assert n == m == k == [3]
    words = f"{ours} to {others} after a million steps of three seeds, {blocks} in blocks of 8"
    assert words in PAGE


def test_what_the_usual_form_of_tbptt_comes_to_on_the_copy_task(copy):
    methods = ("TBPTT(25), an update per 25 steps", "KF-RTRL")
    (ours, *n), (others, *m) = (lengths(copy, name, 1_000_000) for name in methods)
    assert n == m == [3]
    assert f"T\\* {ours} to {others} after a million, which take it" in PAGE
    usual, kf_rtrl = (
        next(run.ms_per_step for run in copy if run.method == name) for name in methods
    )
    assert f"{1000 * usual:.0f} s of a core and KF-RTRL {1000 * kf_rtrl / 60:.0f} minutes;" in PAGE


def test_how_far_estimates_are_behind_exact_rtrl_where_it_can_be_run(copy):
    methods = [f"{name}, n = 32" for name in ("16-OK", "RTRL", "KF-RTRL", "UORO")]
    found = [lengths(copy, name, 200_000) for name in methods]
    assert [seeds for _, seeds in found] == [3, 3, 3, 3]
    ok, rtrl, kf_rtrl, uoro = (length for length, _ in found)
    words = (
        f"T\\* {ok} after 200,000 steps, where RTRL has {rtrl} in blocks of 8, KF-RTRL {kf_rtrl}"
    )
    assert f"{words} and UORO {uoro} (three seeds each)" in PAGE


def test_where_16_ok_comes_to_in_the_papers_form(copy):
    public = COMMITTED.public["copy"]
    logs = [lengths(public, f"16-OK, {runs.SOURCE}", step)[0] for step in (100_000, 200_000)]
    (early, seeds), (late, others) = (lengths(copy, "16-OK", step) for step in (100_000, 200_000))
    assert seeds == others == 3
    assert (
        f"(three seeds: T\\* {early} after 100,000 steps, where the logs have {logs[0]}, and {late} "
        f"after 200,000, where they have {logs[1]})" in PAGE
    )


def test_what_the_lanes_are_to_ktp():
    copy = COMMITTED.own["copy"]
    public = COMMITTED.public["copy"]

    def at_100_000(found, method):
        own = [run for run in found if run.method == method]
        return tables.spread(tables.values_at(own, "sequence_length", 100_000))

    ours = at_100_000(copy, "16-KTP")
    logs = at_100_000(public, f"16-KTP, batch 256, {runs.SOURCE}")
    many, sampled = (at_100_000(copy, f"16-KTP, {kind}") for kind in ("batch 256", "sampled"))
    words = (
        f"T\\* = {ours.mean:.1f} ± {ours.deviation:.1f} after 100,000 steps, where the logs have "
    )
    assert f"{words}{logs.mean:.1f} ± {logs.deviation:.1f}" in PAGE
    assert many.runs == 1
    assert f"256 lanes it has {many.mean:.0f} (one seed)" in PAGE
    assert sampled.runs == 3
    assert f"it has {sampled.mean:.1f} ± {sampled.deviation:.1f} with 16 lanes" in PAGE


def test_that_the_mean_of_16_estimates_is_behind_16_products(copy):
    (average, one), (products, _), (single, _) = (
        lengths(copy, method, 50_000) for method in ("AVG of 16", "16-OK", "KF-RTRL")
    )
    assert one == 1
    assert f"AVG of 16 has T\\* = {average} (one seed), 16-OK, which costs as" in PAGE
    assert f"much, {products}, and KF-RTRL {single}." in PAGE


def test_how_noise_grows_with_the_width_of_trained_networks():
    found = {}
    for task in ("copy", "ptb"):
        record = COMMITTED.noises[f"{task}_widths"]
        for estimator in ("uoro", "kf_rtrl"):
            rows = [
                row
                for row in record["rows"]
                if (row["estimator"], row["immediate"]) == (estimator, "estimated")
            ]
            widths = [row["width"] for row in rows]
            assert widths == [16, 32, 64, 128]
            exponent, error = power_law.exponent(widths, [row["relative_noise"] for row in rows])
            found[estimator, task] = f"{exponent:.2f} ± {error:.2f}"
    uoro, kf_rtrl = (
        [found[estimator, task] for task in ("copy", "ptb")] for estimator in ("uoro", "kf_rtrl")
    )
    assert f"n to the power of {uoro[0]} on the copy task and of {uoro[1]} on the Penn" in PAGE
    assert f"KF-RTRL's of {kf_rtrl[0]} and {kf_rtrl[1]}." in PAGE


def test_that_16_ok_in_blocks_learns_as_in_the_logs(copy):
    steps = (100_000, 200_000, 300_000, 500_000, 1_000_000)
    public = COMMITTED.public["copy"]
    ours = [lengths(copy, "16-OK, blocks of 8", step) for step in steps]
    *logs, last = (lengths(public, f"16-OK, {runs.SOURCE}", step)[0] for step in steps)
    assert {seeds for _, seeds in ours} == {2}
    *own, at_the_end = (length for length, _ in ours)
    after = "after 100,000, 200,000, 300,000, 500,000 and a million steps (two seeds)"
    known = ", ".join(length.partition(" ")[0] for length in logs)
    assert (
        f"{', '.join(own)} and {at_the_end} {after}, where the logs have {known} and {last}."
        in PAGE
    )


def noise(name, **fields):
    """The only row of a record of noise with some fields."""
    rows = COMMITTED.noises[name]["rows"]
    (row,) = [r for r in rows if all(r[key] == value for key, value in fields.items())]
    return row


def test_the_cosines_along_a_network_trained_on_the_copy_task():
    snap, truncation, kf_rtrl, ok = (
        f"{noise('copy', estimator=name, segment_length=8)['cosine']:.2f}"
        for name in ("snap", "truncated", "kf_rtrl", "ok(rank=16)")
    )
    words = f"({snap}, {truncation} and {kf_rtrl} in blocks of 8, {ok} for 16-OK"
    assert words in PAGE


@pytest.mark.parametrize("estimator", ["uoro", "kf_rtrl", "ok(rank=16)"])
@pytest.mark.parametrize("form", [(1, "estimated"), (8, "exact")])
def test_that_the_noise_levels_off_along_a_stream(estimator, form):
    length, immediate = form
    row = noise("copy", estimator=estimator, segment_length=length, immediate=immediate)
    _, second, _, last = row["over_time"]
    assert last <= 1.1 * second


WINDOW, ESTIMATED, SNAP = (f"{name}, blocks of 8" for name in ("TBPTT", "KF-RTRL", "SnAp-1"))


@pytest.fixture(scope="module")
def compared():
    """The comparisons of `budget`: (at the same time, at the same steps), of all and at full scale."""
    own, scores = COMMITTED.own["budget"], chapters.CHAPTERS["budget"].tasks
    known = times.of(COMMITTED.records["budget"])
    return {
        name: (budget.same_time(found, scores, known), budget.same_steps(found, scores))
        for name, found in (("all", own), ("full", budget.at_full_scale(own)))
    }


def places_of(comparison):
    return budget.ranks(comparison, chapters.CHAPTERS["budget"].tasks)


def gap(readings, one, other):
    """How far a method is from another, paired over seeds."""
    values = {reading.method: reading.values for reading in readings}
    return tables.difference([values[one][seed] - values[other][seed] for seed in values[one]])


def read_at(comparison, task):
    """What each method has on a task, in words."""
    (found,) = (own for name, own in comparison.readings.items() if name.startswith(f"{task}("))
    return {reading.method: reading.text().partition(" (")[0] for reading in found}


def in_words(*numbers):
    """1.6, 5.8 and 6.2."""
    *most, last = (f"{number:.1f}" for number in numbers)
    return f"{', '.join(most)} and {last}"


def highway(places):
    """The methods of the highway network, from the first."""
    return [method for method in places if not method.startswith(("GRU", "LSTM"))]


def test_that_the_network_counts_as_much_as_the_method(compared):
    at_time, at_steps = map(places_of, compared["all"])
    known = times.of(COMMITTED.records["budget"])

    def of(numbers, cell):
        return [numbers[cell + method] for method in ("8-OK, blocks of 8", WINDOW, ESTIMATED)]

    gru, own, lstm = (in_words(*of(at_steps, cell)) for cell in ("GRU, ", "", "LSTM, "))
    first, second, third = (f"{place:.1f}" for place in of(at_steps, "GRU, "))
    assert (
        f"a GRU has mean place {first} by 8-OK, {second} by TBPTT and {third} by KF-RTRL, all in "
        f"blocks of 8, where the highway network has {own}, an LSTM {lstm}."
    ) in PAGE
    assert list(at_steps)[:3] == [f"GRU, {m}" for m in ("8-OK, blocks of 8", WINDOW, ESTIMATED)]
    (ok, window, estimated), (ok_here, *here) = of(known, "GRU, "), of(known, "")
    assert (
        f"{ok:.3f} ms by 8-OK to the highway network's {ok_here:.3f}, {window:.3f} by TBPTT to "
        f"{here[0]:.3f}, {estimated:.3f} by KF-RTRL to {here[1]:.3f}."
    ) in PAGE
    gru, own = (in_words(*of(at_time, cell)) for cell in ("GRU, ", ""))
    assert f"0.8 s it has {gru}, the highway network {own}." in PAGE


def test_what_is_first_under_a_small_budget(compared):
    long = "TBPTT, blocks of 16"
    at_time = places_of(compared["all"][0])
    first = highway(at_time)[:4]
    assert first == [long, *(f"SnAp-1, blocks of {n}" for n in (8, 16, 4))]
    places = in_words(*(at_time[method] for method in first))
    assert f"(mean places {places} among {len(at_time)} methods)" in PAGE
    ahead = {}
    for task, readings in compared["all"][0].readings.items():
        rises = chapters.CHAPTERS["budget"].tasks[budget.base(task)].rises
        found = gap(readings, *first[:2])
        if found.beyond_noise:
            ahead[budget.base(task)] = first[0] if (found.mean > 0) == rises else first[1]
    assert ahead == {"mackey_glass": long, "copy": SNAP, "penn_treebank": SNAP}
    recalled = read_at(compared["all"][0], "copy_fixed")
    share = {method: float(text.partition(" ")[0]) for method, text in recalled.items()}
    assert max(share["TBPTT, blocks of 4"], share[WINDOW]) < 0.2 < 0.7 < share[SNAP]
    shrunk, alone = (at_time[f"UORO{m}, blocks of 8"] for m in (", shrunk", ""))
    assert f"(mean place {shrunk:.1f}, UORO without it {alone:.1f})" in PAGE


def test_what_is_first_after_the_same_steps(compared):
    comparison = compared["all"][1]
    places, known = places_of(comparison), times.of(COMMITTED.records["budget"])
    assert set(comparison.limits.values()) == {"4,000 steps"}
    *snaps, sixteen, eight = highway(places)[:4]
    assert snaps == [f"SnAp-1, blocks of {n}" for n in (4, 8)]
    ok = [sixteen, eight]
    assert ok == ["16-OK, blocks of 4", "8-OK, blocks of 4"]
    own = in_words(*(places[method] for method in snaps))
    assert f"(mean places {own} among {len(places)} methods)" in PAGE
    assert f"({in_words(*(places[method] for method in ok))})" in PAGE
    ratios = [known[method] / known[snaps[0]] for method in ok]
    assert f"take {min(ratios):.0f} to {max(ratios):.0f} times as long" in PAGE
    long = "TBPTT, blocks of 16"
    assert f"TBPTT in blocks of 16 has place {places[long]:.1f} there, and overtakes" in PAGE
    assert f"0.8 s are {round(0.8e3 / known[long], -3):,.0f} of its steps." in PAGE


def test_what_nine_times_the_time_shows(compared):
    at_time, at_steps = compared["full"]
    (spent,), (before,) = (
        set(comparison.limits.values()) for comparison in (at_time, compared["all"][0])
    )
    assert round(float(spent.removesuffix(" s")) / float(before.removesuffix(" s"))) == 9
    assert f"With nine times the time, {spent}," in PAGE
    places = places_of(at_time)
    assert len(places) == 8
    snaps, long, window = (
        ["SnAp-1, blocks of 16", SNAP],
        "TBPTT, blocks of 25",
        "TBPTT, blocks of 16",
    )
    first = [snaps[0], window, snaps[1]]
    assert list(places)[:3] == first
    assert f"(mean places {in_words(*(places[method] for method in first))}). On no" in PAGE
    assert list(places_of(at_steps))[:2] == [snaps[0], long]
    beyond = []
    for task, readings in at_time.readings.items():
        score = chapters.CHAPTERS["budget"].tasks[budget.base(task)]
        assert not any(gap(readings, window, snap).beyond_noise for snap in snaps)
        found = gap(readings, *snaps)
        if found.beyond_noise:
            beyond.append(budget.base(task))
            assert (found.mean > 0) == score.rises
    assert f"On {' and '.join(beyond)}, SnAp-1 in blocks of 16 is ahead of that in" in PAGE
    early = read_at(compared["all"][0], "copy")
    assert f"after {before} T\\* was {early[snaps[0]]} with 16 and {early[snaps[1]]} with 8" in PAGE
    copied, recalled = read_at(at_time, "copy"), read_at(at_time, "copy_fixed")
    own = f"{copied[snaps[0]]}, {copied[window]} and {copied[SNAP]}"
    assert f"on copy T\\* is {own}, where" in PAGE
    assert f"TBPTT in blocks of 25 has {copied[long]} and in blocks of 8 {copied[WINDOW]}." in PAGE
    assert (
        f"8 recalls {recalled[SNAP]}, TBPTT in blocks of 16 {recalled[window]} and of 25 "
        f"{recalled[long]}, KF-RTRL"
    ) in PAGE
    assert f"blocks of 8 {recalled[ESTIMATED]}, UORO {recalled['UORO, blocks of 8']}, and" in PAGE
    assert f"they are beyond, {recalled[WINDOW]}." in PAGE
    copied, recalled = read_at(at_steps, "copy"), read_at(at_steps, "copy_fixed")
    steps = set(at_steps.limits.values()).pop()
    assert (
        f"the same {steps} SnAp-1 in blocks of 16 is first and TBPTT in blocks of 25 next" in PAGE
    )
    assert f"with T\\* {copied[snaps[0]]} and {copied[long]}; KF-RTRL" in PAGE
    assert f"with {copied[ESTIMATED]} and {recalled[ESTIMATED]}." in PAGE
