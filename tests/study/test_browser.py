"""The browser of the finished tiny study in a real Chromium: its numbers are the tables', or are computed again here."""

from __future__ import annotations

import csv
import json
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pandas as pd
import pytest
from conftest import MODEL, SITES

from inversescope.config import load_config
from inversescope.context import Context
from inversescope.fcr.estimators import Estimate, reweighted, weighted_match
from inversescope.kernel.kernel import kernel_values
from inversescope.kernel.neighbours import Cache
from inversescope.reader.browser import BrowserData, Draws, Source, Texts, page
from inversescope.reader.browser.encode import STEP
from inversescope.reader.browser.stages import make_browser, study_data
from inversescope.store import read_table

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="no Chromium: apt-get install chromium")
EVIL = (
    "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\"> & <b>"
)
#: Panel A's numbers by what they are and by feature, and those on its bandwidth.
NUMBERS = """(() => {
  const panel = app.panels.A.node, number = (node) => node.dataset.value === '' ? null : Number(node.dataset.value);
  const named = (nodes) => Object.fromEntries([...nodes].map((node) => [node.dataset.name, number(node)]));
  const rates = {};
  for (const row of panel.querySelectorAll('.rates tbody tr'))
    rates[row.dataset.feature] = named(row.querySelectorAll('[data-name]'));
  return {rates, told: named(panel.querySelectorAll('.told [data-name]'))};
})()"""


@pytest.fixture(scope="module")
def context(study: Path) -> Context:
    config = load_config([study / "config/config.yaml"])
    return Context(study, config.of("ioi", MODEL), "ioi", MODEL, config)


@pytest.fixture(scope="module")
def data(context: Context) -> BrowserData:
    return study_data(context)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[chromium.Page]:
    with chromium.chromium(downloads=folder) as page:
        yield page


@pytest.fixture(scope="module")
def file(data: BrowserData, folder: Path) -> Path:
    path = folder / "page.html"
    path.write_text(page(data), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser: chromium.Page, file: Path) -> Iterator[chromium.Page]:
    """The page, which must end as quiet as it began."""
    browser.open(file)
    yield browser
    assert browser.faults == []
    assert browser.requests == [file.as_uri()]


def set_state(opened: chromium.Page, **state: Any) -> None:
    opened.run(f"app.set({json.dumps(state)})")


def set_panel(opened: chromium.Page, **choice: Any) -> dict[str, Any]:
    """Choose what panel A shows; its numbers."""
    opened.run(f"app.choose('A', {json.dumps(choice)})")
    return dict(opened.run(NUMBERS))


def missing(value: float) -> float | None:
    return None if np.isnan(value) else value


# ------------------------------------------------------------------------------------------------------------------ from tables
def test_the_map_shows_the_tables(opened: chromium.Page, study: Path, data: BrowserData) -> None:
    """Every rate of fcr.csv but those of controls that differ in nothing but a name, at every site."""
    fcr = read_table(study / f"results/ioi/{MODEL}/fcr.csv")
    keys = ["estimator", "variant", "bandwidth", "feature"]
    groups = [
        group
        for group in fcr[fcr["decoding"].isin(["", "plain"])].groupby(keys)
        if len(group[1]) == len(SITES)
    ]
    features = list(data.texts.feature_values)
    script = "[...app.map.cells].map(({cell}) => cell.dataset.value === undefined ? null : Number(cell.dataset.value))"
    compared = 0
    for (estimator, variant, bandwidth, feature), rows in groups[::5]:
        set_state(
            opened, estimator=estimator, variant=variant, bandwidth=bandwidth, feature=features.index(feature)
        )
        rates = rows.set_index("site")["fcr"].reindex(SITES)
        assert opened.run(script) == [missing(rate) for rate in rates]
        compared += 1
    assert compared > 30


def test_what_is_exported_is_the_table(opened: chromium.Page, study: Path, folder: Path) -> None:
    set_state(opened, estimator="combined", variant="default", bandwidth="epsilon 0.1", feature=0)
    opened.run("document.getElementById('rates-csv').click()")
    opened.run("document.getElementById('map-svg').click()")
    opened.run("app.panels.A.node.querySelector('.bar button').click()")
    names = ("*combined*.csv", "*combined*.svg", "*target0.csv")
    until = time.monotonic() + 30
    while not all(list(folder.glob(name)) for name in names):
        assert time.monotonic() < until, [path.name for path in folder.iterdir()]
        time.sleep(0.02)
    rates, picture, samples = (next(folder.glob(name)) for name in names)
    fcr = read_table(study / f"results/ioi/{MODEL}/fcr.csv")
    with rates.open(newline="") as lines:
        written = list(csv.DictReader(lines))
    assert [row["site"] for row in written] == SITES
    for row in written:
        own = fcr[
            (fcr["estimator"] == "combined")
            & (fcr["variant"] == "default")
            & (fcr["bandwidth"] == "epsilon 0.1")
        ]
        own = own[(own["site"] == row["site"]) & (own["feature"] == row["feature"])].iloc[0]
        for name in ("fcr", "ci_low", "ci_high", "epsilon", "share", "ess"):
            assert float(row[name]) == pytest.approx(own[name], rel=1e-9), name
    assert len(ElementTree.parse(picture).getroot().findall(".//{*}rect[@data-site]")) == len(SITES)
    rows = read_table(
        study
        / f"results/ioi/{MODEL}/samples/inversescope/default/{samples.name.split('_default')[0]}.parquet"
    )
    rows = rows[
        (rows["epsilon"] == 0.1) & (rows["decoding"] == "plain") & (rows["target_id"] == 0)
    ].sort_values("draw")
    with samples.open(newline="") as lines:
        listed = list(csv.DictReader(lines))
    assert [row["text"] for row in listed] == rows["text"].tolist()
    assert [row["state"] == "accepted" for row in listed] == rows["accepted"].tolist()
    for name in ("subject", "object", "place"):
        assert [row[f"feature_{name}"] for row in listed] == rows[f"feature_{name}"].astype(str).tolist()


# ------------------------------------------------------------------------------------------------------------- from the slider
def generated(context: Context, variant: str, site: str) -> pd.DataFrame:
    """Stored candidates of a variant at a site, with the q that the page has."""
    rows = read_table(context.samples_path("inversescope", variant, site))
    own = context.config.bandwidth_of(variant).value
    rows = rows[(rows["epsilon"] == own) & (rows["decoding"] == "plain")].sort_values(["target_id", "draw"])
    return rows.assign(logq=np.round(rows["logq"] / STEP) * STEP)


def weighed(
    context: Context, rows: pd.DataFrame, feature: str, own: int, epsilon: float, by_q: bool
) -> Estimate:
    """The estimate of one target from its candidates at a bandwidth."""
    task = context.task
    index = rows["prompt_id"].to_numpy()
    kernel = kernel_values(rows["distance"].fillna(np.inf).to_numpy(float), epsilon)
    match = (task.features_of(index)[feature] == own).astype(float)
    if by_q:
        return reweighted(match, kernel, task.log_prior(index), rows["logq"].to_numpy())
    return weighted_match(match, kernel)


@pytest.mark.parametrize("by_q", [False, True])
@pytest.mark.parametrize("variant", ["default", "paper", "few"])
def test_the_sliders_numbers_are_those_computed_here(
    opened: chromium.Page, context: Context, data: BrowserData, variant: str, by_q: bool
) -> None:
    labels = context.task.features_of(context.prompt_ids("test"))
    site = "L1H1"
    rows = generated(context, variant, site)
    set_state(opened, byQ=by_q)
    source = [one.name for one in data.sources].index(variant)
    place = data.sites.index(site)  # type: ignore[arg-type]
    set_panel(opened, source=source, site=place)
    seen = set()
    for epsilon in (0.004, 0.02, 0.055, 0.1, 0.3):
        found = {
            target: {
                name: weighed(context, group, name, int(labels[name][target]), epsilon, by_q)
                for name in labels
            }
            for target, group in rows.groupby("target_id")
        }
        far = {
            target: float((group["distance"] >= epsilon).mean())
            for target, group in rows.groupby("target_id")
        }
        for target in (0, 3):
            shown = set_panel(opened, source=source, site=place, target=target, epsilon=epsilon)
            group = rows[rows["target_id"] == target]
            for name in labels:
                one = found[target][name]
                assert shown["rates"][name]["here"] == pytest.approx(missing(one.value), abs=1e-9)
                assert shown["told"]["ess"] == pytest.approx(one.ess, abs=1e-9)
                values = [found[t][name].value for t in found]
                mean = float(np.nanmean(values)) if np.isfinite(values).any() else None
                assert shown["rates"][name]["all"] == pytest.approx(mean, abs=1e-9)
            assert shown["told"]["parse"] == pytest.approx(1 - group["parsed"].mean())
            assert shown["told"]["far"] == pytest.approx(far[target])
            refused = 1 - rows["parsed"].mean() + np.mean(list(far.values()))
            assert shown["told"]["all-refused"] == pytest.approx(refused)
            seen.add(shown["told"]["accepted"])
    assert len(seen) > 2


def test_at_its_own_bandwidth_the_slider_has_the_tables_numbers(
    opened: chromium.Page, study: Path, data: BrowserData
) -> None:
    fcr = read_table(study / f"results/ioi/{MODEL}/fcr.csv")
    refusal = read_table(study / f"results/ioi/{MODEL}/refusal.csv")
    for variant in ("default", "paper"):
        source = [one.name for one in data.sources].index(variant)
        for place, site in enumerate(SITES):
            shown = set_panel(opened, source=source, site=place, target=1, epsilon=None)
            own = fcr[
                (fcr["variant"] == variant) & (fcr["site"] == site) & (fcr["bandwidth"] == "epsilon 0.1")
            ]
            own = own[(own["estimator"] == "generated") & (own["decoding"] == "plain")].set_index("feature")
            alone = read_table(study / f"results/ioi/{MODEL}/exact/{site}.parquet").set_index(
                ["epsilon", "target_id"]
            )
            for name, row in own.iterrows():
                rates = shown["rates"][name]
                assert rates["here-exact"] == pytest.approx(alone.loc[(0.1, 1), f"fcr_{name}"], abs=1e-4)
                assert rates["table"] == missing(row["fcr"]) and rates["exact"] is not None
                assert rates["all"] == pytest.approx(missing(row["fcr"]), rel=1e-5)
            told = refusal[(refusal["variant"] == variant) & (refusal["site"] == site)]
            told = told[(told["bandwidth"] == "epsilon 0.1") & (told["decoding"] == "plain")].iloc[0]
            assert shown["told"]["all-refused"] == pytest.approx(told["refusal_rate"], abs=1e-5)


def test_cached_prompts_are_weighed_as_the_workflow_does(
    opened: chromium.Page, context: Context, data: BrowserData
) -> None:
    task, site, target = context.task, "L0H0", 2
    train, test = context.prompt_ids("train"), context.prompt_ids("test")
    cache = Cache(np.array(context.activations("train", site)))
    queries = cache.prepare(np.array(context.activations("test", site)))
    labels, cached = task.features_of(test), task.features_of(train)
    source = [one.name for one in data.sources].index("cache")
    for epsilon in (0.005, 0.02, 0.1):
        near = cache.search(queries, epsilon)
        shown = set_panel(opened, source=source, site=0, target=target, epsilon=epsilon)
        rows = near.of(target)
        assert shown["told"]["accepted"] == len(rows)
        for name in labels:
            match = (cached[name][rows] == labels[name][target]).astype(float)
            value = weighted_match(match, np.ones(len(rows))).value
            assert shown["rates"][name]["here"] == pytest.approx(missing(value), abs=1e-9)


def test_the_live_map_follows_the_slider(opened: chromium.Page, data: BrowserData) -> None:
    set_state(opened, estimator="samples", feature=2)
    name = list(data.texts.feature_values)[2]
    maps = []
    for epsilon in (0.02, 0.1):
        shown = set_panel(opened, epsilon=epsilon)
        value = opened.run("app.map.cells[app.state.panels.A.site].cell.dataset.value")
        assert float(value) == pytest.approx(shown["rates"][name]["all"], abs=1e-12)
        maps.append(opened.run("app.map.cells.map(({cell}) => cell.dataset.value)"))
    assert maps[0] != maps[1]


# ----------------------------------------------------------------------------------------------------------------------- the page
def test_the_address_holds_the_state(opened: chromium.Page, file: Path, data: BrowserData) -> None:
    set_state(opened, estimator="generated", variant="paper", feature=1, byQ=True)
    set_panel(opened, site=2, source=1, target=3, epsilon=0.033)
    opened.run("app.write()")
    state, address = opened.run("app.state"), opened.run("location.hash")
    opened.open(file, address)
    assert opened.run("app.state") == state
    opened.open(file, "#feature=nosuch&A=L9H9~nobody~99~-1&bandwidth=<script>")
    assert opened.run("app.state.panels.A.epsilon") is None


def test_keys_move_what_is_shown(opened: chromium.Page, data: BrowserData) -> None:
    panel = "app.state.panels.A"
    before = opened.run(panel)
    for key, changed in (("]", "target"), (".", "epsilon")):
        opened.press(key)
        assert opened.run(panel)[changed] != before[changed], key
    opened.press("0")
    assert opened.run(panel)["epsilon"] is None
    opened.press("f")
    assert opened.run("app.state.feature") == 1
    set_panel(opened, site=0)
    opened.press("m")
    opened.press("ArrowDown")
    assert data.sites[opened.run(panel)["site"]].startswith("L1")
    opened.press("c")
    assert opened.run("app.panels.B.node.hidden") is True


def test_a_laptop_shows_names_whole(browser: chromium.Page, file: Path) -> None:
    """Of two panels too: what columns and features are called, and the number of the target prompt."""
    browser.open(file, width=1280, height=720)
    assert browser.run("document.querySelectorAll('.panel:not([hidden])').length") == 2
    cut = "[...document.querySelectorAll('.rates th')].filter((n) => n.scrollWidth > n.clientWidth).map((n) => n.textContent)"
    assert browser.run(cut) == []
    for letter in "AB":
        assert browser.run(f"app.panels.{letter}.target.getBoundingClientRect().width") >= 60
    for width in (500, 800):
        browser.open(file, width=width, height=720)
        assert browser.run("document.documentElement.scrollWidth") == width
    browser.open(file)
    titles = "app.map.title.getBBox(), room = app.map.svg.viewBox.baseVal.width"
    for feature in browser.run("app.study.features.map((feature) => feature.name)"):
        browser.run(
            f"app.set({{ feature: app.study.features.findIndex((one) => one.name === {json.dumps(feature)}) }})"
        )
        assert browser.run(f"(() => {{ const box = {titles}; return box.x + box.width <= room; }})()"), (
            feature
        )


def test_refused_samples_stay_on_the_page(opened: chromium.Page, context: Context, data: BrowserData) -> None:
    source = [one.name for one in data.sources].index("paper")
    set_panel(opened, site=0, source=source, target=0, epsilon=0.02)
    rows = generated(context, "paper", SITES[0])
    rows = rows[rows["target_id"] == 0]
    script = (
        "app.panels.A.rows.map((row) => [row.node.isConnected && row.node.className, row.members.length])"
    )
    counts = {"in": 0, "out": 0, "none": 0}
    for kind, n in opened.run(script):
        counts[kind] += n
    assert counts == {
        "in": int((rows["distance"] < 0.02).sum()),
        "out": int((rows["distance"] >= 0.02).sum()),
        "none": int((~rows["parsed"]).sum()),
    }
    assert counts["out"] > 0


def test_a_page_that_is_too_large_stores_fewer_samples_and_says_so(
    browser: chromium.Page, context: Context, data: BrowserData, file: Path
) -> None:
    limit = file.stat().st_size - 6000
    small = file.with_name("small.html")
    small.write_text(page(data, limit), encoding="utf-8")
    assert small.stat().st_size <= limit
    browser.open(small)
    keep, site = browser.run("app.study.keep"), SITES[0]
    assert 0 < keep < 30
    assert f"first {keep} samples" in browser.run("document.getElementById('stored').textContent")
    shown = set_panel(browser, site=0, source=0, target=1, epsilon=0.05)
    rows = generated(context, "default", site)
    rows = rows[rows["target_id"] == 1].head(keep)
    own = int(context.task.features_of(context.prompt_ids("test"))["object"][1])
    assert shown["rates"]["object"]["here"] == pytest.approx(
        weighed(context, rows, "object", own, 0.05, False).value
    )
    assert browser.faults == []


def test_a_single_reading_has_a_page_and_what_models_write_is_text(
    browser: chromium.Page, folder: Path
) -> None:
    """Without tables; one site, one target. Texts and labels that look like markup are shown letter by letter."""
    texts = Texts({"word": ["a", EVIL]})
    numbers = texts.add([f"One {EVIL}", "a two", f"One two {EVIL}"], {"word": np.array([1, 0, -1])})
    drawn = Draws("L0H0", EVIL, np.zeros(2, int), numbers[1:], np.array([0.1, np.nan], np.float32))
    reading = BrowserData(
        EVIL,
        ["L0H0"],
        texts,
        numbers[:1],
        [Source(EVIL, label=EVIL)],
        [drawn],
        pd.DataFrame({"site": ["L0H0"], "bandwidth": ["epsilon 0.2"], "epsilon": [0.2], "share": [0.01]}),
        "epsilon 0.2",
        about=[EVIL],
        hypotheses=pd.DataFrame({"site": ["L0H0"], "hypothesis": [EVIL], "accepted": [False], "rate": [0.5]}),
    )
    path = folder / "reading.html"
    path.write_text(page(reading), encoding="utf-8")
    browser.open(path)
    assert browser.run("document.title") == f"InverseScope: {EVIL}"
    assert browser.run("document.querySelectorAll('script, img').length") == 2
    text = browser.run("document.body.innerText")
    assert text.count(EVIL) >= 4
    assert browser.run("app.panels.A.prompt.textContent") == f"One {EVIL}"
    shown = browser.run(NUMBERS)
    assert shown["told"]["parse"] == 0.5 and shown["told"]["accepted"] == 1
    assert shown["rates"]["word"]["here"] == 0.0
    assert browser.faults == [] and browser.requests == [path.as_uri()]


def test_the_stage_writes_the_same_page_again(
    context: Context, file: Path, tmp_path: Path, study: Path
) -> None:
    for name in ("config", "data", "results"):
        (tmp_path / name).symlink_to(study / name)
    (tmp_path / "results").unlink()
    (tmp_path / "results").mkdir()
    (tmp_path / "results/ioi").symlink_to(study / "results/ioi")
    make_browser(Context(tmp_path, context.config, "ioi", MODEL, context.whole))
    assert (tmp_path / f"results/browser/ioi_{MODEL}.html").read_bytes() == file.read_bytes()
