"""The browser of a study as large as a real one: bytes of the page, time to open it, and to answer its slider.

301 sites, 50 target prompts, two variants with 40 candidates each and the nearest cached prompts, of random numbers: nothing of it
compresses. Needs Debian's chromium.

    python -m bench.browser
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from inversescope.reader.browser import BrowserData, Draws, Source, Texts, page

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from chromium import chromium  # noqa: E402

LAYERS, HEADS, TARGETS, PROMPTS = 30, 9, 50, 33_792
CANDIDATES, NEIGHBOURS = 40, 200
FEATURES = {"subject": 23, "object": 23, "item": 8, "place": 8, "template": 8, "order": 2}
BANDWIDTHS = {"epsilon 0.1": 0.1, "share 0.003": 0.004, "share 0.01": 0.008, "share 0.03": 0.02}
GOALS = {
    "bytes": 8_000_000,
    "seconds to open": 2.0,
    "seconds to answer the slider": 0.1,
    "seconds to answer the slider where the map follows it": 0.1,
}
#: Moves the slider of panel A to some places, each time until what it changes is drawn; the median, in seconds.
SLIDE = """(async () => {
  const slider = document.querySelector('.panel input[type=range]'), taken = [];
  for (let k = 0; k < 41; k++) {
    slider.value = 300 + 35 * k;
    const start = performance.now();
    slider.dispatchEvent(new Event('input'));
    await new Promise(requestAnimationFrame);
    document.body.offsetHeight;
    taken.push(performance.now() - start);
  }
  return taken.sort((a, b) => a - b)[20] / 1000;
})()"""


def made_up(rng: np.random.Generator) -> BrowserData:
    """A study of random numbers."""
    sites = [f"L{layer}H{head}" for layer in range(LAYERS) for head in range(HEADS)]
    sites += [f"L{layer}.resid_post" for layer in range(LAYERS)] + ["L0.resid_pre"]
    texts = Texts({name: [f"{name} {k}" for k in range(n)] for name, n in FEATURES.items()})
    codes = {name: rng.integers(n, size=PROMPTS) for name, n in FEATURES.items()}
    named = zip(*(codes[name].tolist() for name in FEATURES), range(PROMPTS), strict=True)
    words = [
        f"When {s} and {o} took the {i} to the {p}, {t} or {r}, {s} gave it {k} to"
        for s, o, i, p, t, r, k in named
    ]
    texts.add(words, codes)
    keys = [("exact", "", ""), ("cache", "", "")]
    keys += [
        (name, variant, "plain")
        for name in ("generated", "reweighted", "combined")
        for variant in ("default", "paper")
    ]
    grid = [
        (*key, site, b, e, f)
        for key in keys
        for site in sites
        for b, e in BANDWIDTHS.items()
        for f in FEATURES
    ]
    rates = pd.DataFrame(
        grid, columns=["estimator", "variant", "decoding", "site", "bandwidth", "epsilon", "feature"]
    )
    told = {name: np.round(rng.random(len(rates)), 6) for name in ("fcr", "ci_low", "ci_high", "ess")}
    rates = rates.assign(share=rates["epsilon"], **told)
    exact = pd.DataFrame(
        {"site": np.repeat(sites, TARGETS), "target_id": np.tile(np.arange(TARGETS), len(sites))}
    )
    exact = exact.assign(**{f"fcr_{name}": rng.random(len(exact)) for name in FEATURES})
    effects = pd.DataFrame([(site, name) for site in sites for name in FEATURES], columns=["site", "feature"])
    effects = effects.assign(
        **{name: rng.normal(size=len(effects)) for name in ("effect", "effect_low", "effect_high", "share")}
    )
    return BrowserData(
        "made up",
        sites,
        texts,
        np.arange(TARGETS),
        [
            *(Source(name, bandwidth="share 0.01", decoding="plain") for name in ("default", "paper")),
            Source("cache", "cache"),
        ],
        draws(rng, sites),
        rates[["site", "bandwidth", "epsilon", "share"]].drop_duplicates(),
        "share 0.01",
        rates=rates,
        exact=exact,
        effects=effects,
    )


def draws(rng: np.random.Generator, sites: list[str]) -> Iterator[Draws]:
    """Samples of all sources."""
    for source, n in (("default", CANDIDATES), ("paper", CANDIDATES), ("cache", NEIGHBOURS)):
        for site in sites:
            size = TARGETS * n
            distance = rng.gamma(2.0, 0.005, (TARGETS, n)).astype(np.float32)
            q = None if source == "cache" else rng.normal(-9, 1, size)
            owner = np.repeat(np.arange(TARGETS), n)
            nearest = (
                np.sort(distance, 1)
                if q is None
                else np.where(rng.random((TARGETS, n)) < 0.02, np.nan, distance)
            )
            yield Draws(
                site, source, owner, rng.integers(PROMPTS, size=size), nearest.ravel().astype(np.float32), q
            )


def main() -> int:
    """Print what was measured; the status is 1 if a goal was missed."""
    argparse.ArgumentParser(
        prog="python -m bench.browser", description=(__doc__ or "").splitlines()[0]
    ).parse_args()
    text = page(made_up(np.random.default_rng(0)))
    with tempfile.TemporaryDirectory() as folder, chromium() as shown:
        file = Path(folder) / "page.html"
        file.write_text(text, encoding="utf-8")
        opened = []
        for _ in range(3):
            shown.open(file)
            opened.append(shown.run("app.drawn") / 1000)
        measured = {
            "bytes": len(text.encode()),
            "seconds to open": float(np.median(opened)),
            "seconds to answer the slider": float(shown.run(SLIDE)),
        }
        shown.run("app.set({estimator: 'samples'})")
        measured["seconds to answer the slider where the map follows it"] = float(shown.run(SLIDE))
        kept = shown.run("app.study.keep")
        faults = shown.faults
    for name, value in measured.items():
        print(f"{name}: {value:.7g} (goal: at most {GOALS[name]:.7g})")
    print(f"samples stored of each source, site and target: {kept}")
    print("\n".join(faults))
    return int(bool(faults) or any(measured[name] > GOALS[name] for name in GOALS))


if __name__ == "__main__":
    sys.exit(main())
