"""The page of results in a real browser, Chromium without a window."""

import copy
import shutil

import pytest

from kfrtrl_jax.studies.reproduction import page, results
from tests.reproduction import invented

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install 'kfrtrl_jax[browser]'"
)
offline = pytest.importorskip(
    "plotly.offline", reason="needs plotly: pip install 'kfrtrl_jax[report]'"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The invented results, with more methods than are in the chart at first."""
    content = page.content(results.read(invented.results(tmp_path_factory.mktemp("results"))))
    methods = content["tasks"][0]["methods"]
    more = [{**copy.deepcopy(methods[0]), "name": f"more {i}", "colour": 5 + i} for i in range(6)]
    methods[5:5] = more
    return content


@pytest.fixture(scope="module")
def address(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page.html(content, offline.get_plotlyjs()))
    return path.as_uri()


@pytest.fixture
def opened(browser, address):
    """The page; at the end no request has left it, and nothing has gone wrong in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened, faults, requests = context.new_page(), [], []
    opened.set_default_timeout(20_000)
    opened.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else 0)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(address)
    # The chart is drawn in several turns of the event loop.
    opened.locator("#plot .xtitle").wait_for(state="attached")
    yield opened
    context.close()
    assert faults == []
    assert requests == [address]


def column(opened, heading):
    """The texts of a column of the leaderboard."""
    headings = opened.locator("#board thead th").all_inner_texts()
    (number,) = (i for i, text in enumerate(headings) if text.startswith(heading))
    rows = opened.locator("#board tbody tr:not(.command)")
    return rows.locator(f":scope > *:nth-child({number + 1})").all_inner_texts()


def drawn(opened):
    """The methods with a line in the chart."""
    return opened.evaluate("[...new Set(document.getElementById('plot').data.map(t => t.meta))]")


def test_the_leaderboard_sorts_both_ways_with_the_unknown_last(opened):
    heading = opened.locator("#board thead th", has_text="ms a step")
    heading.get_by_role("button").click()
    times = column(opened, "ms a step")
    assert heading.get_attribute("aria-sort") == "ascending"
    known = [float(time) for time in times if time != "–"]
    assert known == sorted(known)
    assert len(set(known)) > 2
    assert times[-2:] == ["–", "–"]
    # By the keyboard, on the heading that kept the focus.
    opened.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(opened, "ms a step") == [*reversed(times[:-2]), "–", "–"]
    assert opened.locator("#board [aria-sort]").count() == 1


def test_scores_can_be_compared_at_a_step(opened):
    assert column(opened, "T*")[0] == "41.8 ± 3.1(5)"
    opened.locator("#at").select_option("30000")
    scores = dict(zip(column(opened, "Method"), column(opened, "T*"), strict=True))
    assert scores["KF-RTRL"] == "4.0 ± 1.0(3)"
    assert scores["16-OK, logs of Benzing et al. (2019)"] == "9.4 ± 0.9(5)"
    assert scores["16-KTP, batch 256, logs of Benzing et al. (2019)"] == "–"
    assert set(column(opened, "Steps")) == {"30,000", "–"}


def test_the_command_is_shown_and_copied(opened, content):
    command = content["tasks"][0]["methods"][0]["command"]
    button = opened.get_by_role("button", name="Copy the command of KF-RTRL", exact=True)
    assert button.get_attribute("data-command") == command
    button.click()
    opened.get_by_text("Command copied").wait_for(state="attached")
    assert opened.evaluate("navigator.clipboard.readText()") == command
    shown = opened.get_by_role("button", name="Show the command of KF-RTRL", exact=True)
    shown.click()
    assert opened.locator("tr.command:visible code").all_inner_texts() == [command]


def test_methods_are_chosen_at_most_eight_at_first(opened, content):
    names = [method["name"] for method in content["tasks"][0]["methods"]]
    own, public = names[:-2], names[-2:]
    assert len(own) > 8
    assert set(drawn(opened)) == {*own[:8], *public}
    # The public logs are drawn first, under ours.
    assert drawn(opened)[:2] == public
    traces = opened.locator("#plot .scatterlayer .trace")
    lines = opened.evaluate("document.getElementById('plot').data.length")
    sync_api.expect(traces).to_have_count(lines)
    box = opened.get_by_role("checkbox", name="16-OK", exact=True)
    box.uncheck()
    assert "16-OK" not in drawn(opened)
    sync_api.expect(traces).to_have_count(lines - 1)
    box.check()
    opened.get_by_role("checkbox", name=own[-1]).check()
    assert set(drawn(opened)) == {*own[:8], own[-1], *public}
    opened.get_by_role("button", name="None").click()
    assert drawn(opened) == []
    opened.get_by_role("button", name="All").click()
    assert set(drawn(opened)) == set(names)


def test_the_axis_and_the_figure_are_chosen(opened):
    def titles():
        layout = "document.getElementById('plot').layout"
        return [opened.evaluate(f"{layout}.{axis}axis.title.text") for axis in "xy"]

    def ends(method):
        return opened.evaluate(
            "name => document.getElementById('plot').data.filter(t => t.meta === name)"
            ".map(t => t.x.at(-1)).at(-1)",
            method,
        )

    def shown(title):
        sync_api.expect(opened.locator("#plot .xtitle")).to_have_text(title)

    shown("Time steps")
    assert titles() == ["Time steps", "T*"]
    assert ends("KF-RTRL") == 100_000
    # The public logs are drawn as far as ours go.
    assert ends("16-OK, logs of Benzing et al. (2019)") == 100_000
    opened.get_by_label("public logs to their end").check()
    assert ends("16-OK, logs of Benzing et al. (2019)") == 2_000_000
    opened.locator("#axis").select_option(label="characters")
    assert titles()[0].startswith("Characters")
    assert ends("KF-RTRL") == 1_600_000
    opened.locator("#axis").select_option(label="wall time")
    shown("Wall time, minutes")
    assert titles() == ["Wall time, minutes", "T*"]
    # The mean of 200, 300 and 400 seconds.
    assert ends("KF-RTRL") == pytest.approx(5.0)
    assert "16-OK, logs of Benzing et al. (2019)" not in drawn(opened)
    opened.locator("#figure").select_option("running_loss")
    assert titles()[1] == "Running loss, bits per character"
    opened.get_by_role("button", name="Penn Treebank").click()
    assert opened.get_by_role("heading", level=1).inner_text() == "Penn Treebank, characters"
    assert set(drawn(opened)) == {"KF-RTRL"}
    lowest = dict(zip(column(opened, "Method"), column(opened, "Validation, lowest"), strict=True))
    assert lowest == {"KF-RTRL": "2.100(1)", "8-OK, logs of Benzing et al. (2019)": "–"}


def test_a_study_of_several_tasks_shows_one_at_a_time(opened):
    assert not opened.locator("#task").is_visible()
    opened.get_by_role("button", name="Dependencies").click()
    assert column(opened, "Accuracy") == ["0.50(1)"]
    opened.locator("#task").select_option(invented.CHAINS[1])
    assert column(opened, "Accuracy") == ["1.00(1)"]
    assert not opened.get_by_label("public logs to their end").is_visible()


def test_names_show_as_text(opened):
    name = invented.MALICIOUS
    assert name in column(opened, "Method")
    assert opened.get_by_role("checkbox", name=name).count() == 1
    assert name in opened.locator("#overrides tbody th").all_inner_texts()
    assert "<b>processor</b>" in opened.locator("#made-with").inner_text()
    # In the chart, where the pointer is on a line.
    opened.evaluate(
        """name => {
          const plot = document.getElementById("plot");
          const curve = plot.data.findLastIndex((trace) => trace.meta === name);
          Plotly.Fx.hover(plot, [{ curveNumber: curve, pointNumber: 5 }]);
        }""",
        name,
    )
    sync_api.expect(opened.locator("#plot .hoverlayer")).to_contain_text(name)
    assert opened.locator("img").count() == 0


def test_the_dark_page_keeps_what_was_chosen(opened):
    assert opened.evaluate("document.getElementById('plot').layout.paper_bgcolor") == "#ffffff"
    light = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.get_by_role("checkbox", name="16-OK", exact=True).uncheck()
    opened.emulate_media(color_scheme="dark")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != light
    ground = "document.getElementById('plot').layout.paper_bgcolor"
    opened.wait_for_function(f"{ground} !== '#ffffff'")
    assert "16-OK" not in drawn(opened)


def test_of_many_methods_no_two_have_the_same_line(browser, tmp_path):
    """The committed results, in which a study has more methods than there are colours."""
    committed = page.content(results.read(invented.RESULTS))
    path = tmp_path / "index.html"
    path.write_text(page.html(committed, offline.get_plotlyjs()))
    most = max(committed["tasks"], key=lambda task: len(task["methods"]))
    assert len(most["methods"]) > 20
    opened = browser.new_page()
    opened.goto(path.as_uri())
    opened.get_by_role("button", name=most["study"]).click()
    opened.get_by_role("button", name="All", exact=True).click()
    lines = opened.evaluate(
        "document.getElementById('plot').data.filter(t => t.line.width === 2.5)"
        ".map(t => `${t.line.color} ${t.line.dash}`)"
    )
    opened.close()
    assert len(lines) > 20
    assert len(set(lines)) == len(lines)
