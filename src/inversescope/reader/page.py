"""The browser's page of one reading: its sites, samples and rates, and the prior's prompts beyond the bandwidth for the slider."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inversescope.config.methods import PLAIN
from inversescope.reader.browser import BrowserData, Draws, Source, Texts, page
from inversescope.reader.reading import Reading, SiteReading

if TYPE_CHECKING:
    from inversescope.reader.site import Drawn

#: Prompts of the prior that are stored of each site, the nearest first.
NEAREST = 400
PRIOR = "prior"
GREY, GREEN = "#767676", "#009E73"


def page_of(reading: Reading) -> str:
    """The page of a reading: one file that needs no other."""
    return page(page_data(reading))


def page_data(reading: Reading) -> BrowserData:
    """What the page shows of a reading: its prompt is the only target."""
    context = reading.study.context
    task, config = context.task, context.config
    names = list(dict.fromkeys([*config.fcr.features, *task.features]))
    texts = Texts({name: task.feature_values[name] for name in names})
    own = {name: np.array([reading.parts[0].question.labels[name]]) for name in names}
    targets = texts.add([reading.prompt], own, task.log_prior(np.array([reading.asked.index])))
    headline = str(reading.parts[0].bandwidth)
    drawn = list(dict.fromkeys(one.variant for part in reading.parts for one in part.drawn))
    sources = [
        Source(
            name,
            "generated",
            config.variant(name).label or name,
            config.variant(name).colour or GREY,
            headline,
            PLAIN,
        )
        for name in drawn
    ]
    draws = [_nearest(reading, part, texts) for part in reading.parts]
    draws += [_candidates(reading, part, one, texts) for part in reading.parts for one in part.drawn]
    exact = reading.estimates[reading.estimates["estimator"] == "exact"]
    wide = exact.pivot(index="site", columns="feature", values="value").add_prefix("fcr_").reset_index()
    return BrowserData(
        title=reading.prompt,
        about=[f"{context.task_name} on {context.model_name}: one prompt.", *reading.notes],
        sites=[part.about["site"] for part in reading.parts],
        texts=texts,
        targets=targets,
        sources=[*sources, Source(PRIOR, "cache", "nearest prompts of the prior", GREEN, headline)],
        draws=draws,
        bandwidths=reading.sites[["site", "epsilon"]].assign(bandwidth=headline, share=reading.sites["ball"]),
        headline=headline,
        rates=_rates(reading, headline),
        refusal=_refusal(reading, headline),
        exact=wide.assign(target_id=0).reindex(
            columns=["site", "target_id", *(f"fcr_{name}" for name in names)]
        ),
        hypotheses=_hypotheses(reading),
        chance={name: task.chance(name) for name in names},
        kernel=config.kernel.kind,
        distance=config.kernel.distance,
        unit=task.token_unit,
    )


def _hypotheses(reading: Reading) -> pd.DataFrame:
    """What was proposed at the sites, and what it says of this prompt; nothing if it was not asked for."""
    columns = [
        "site",
        "hypothesis",
        "meaning",
        "accepted",
        "value",
        "here",
        "explains",
        "rate",
        "chance",
        "p",
    ]
    return reading.hypotheses[columns] if "hypotheses" in reading.__dict__ else pd.DataFrame()


def _nearest(reading: Reading, part: SiteReading, texts: Texts) -> Draws:
    """The nearest prompts of the prior, the one asked about left out."""
    task, question = reading.study.context.task, part.question
    index, distance = question.nearest(NEAREST + 1)
    labels = task.features_of(index)
    number = texts.add(task.texts(index), labels, task.log_prior(index))
    kept = slice(NEAREST)
    # All that is nearer than the first one that is left out is here.
    reach = np.array([distance[NEAREST] if len(distance) > NEAREST else np.inf])
    owner = np.zeros(len(distance[kept]), np.int64)
    return Draws(
        part.about["site"], PRIOR, owner, number[kept], distance[kept].astype(np.float32), reach=reach
    )


def _candidates(reading: Reading, part: SiteReading, drawn: Drawn, texts: Texts) -> Draws:
    """A variant's candidates in the order in which they were drawn."""
    task = reading.study.context.task
    rows = drawn.samples[drawn.samples["decoding"] == PLAIN].sort_values("draw", kind="stable")
    index = rows["prompt_id"].to_numpy().astype(np.int64)
    number = texts.add(rows["text"].tolist(), task.features_of(index), task.log_prior(index))
    return Draws(
        part.about["site"],
        drawn.variant,
        np.zeros(len(rows), np.int64),
        number,
        rows["distance"].to_numpy(np.float32),
        rows["logq"].to_numpy(float),
    )


def _rates(reading: Reading, headline: str) -> pd.DataFrame:
    """Estimates as rows of `fcr.csv`."""
    names = {"value": "fcr", "low": "ci_low", "high": "ci_high"}
    return reading.estimates.rename(columns=names).assign(bandwidth=headline)


def _refusal(reading: Reading, headline: str) -> pd.DataFrame:
    """Refusal of plain candidates as rows of `refusal.csv`; nothing is told of intervals and entropy."""
    rows = []
    for part in reading.parts:
        for one in part.drawn:
            plain = one.samples[one.samples["decoding"] == PLAIN]
            parsed, accepted = plain["parsed"].to_numpy(bool), plain["accepted"].to_numpy(bool)
            rows.append(
                {
                    "site": part.about["site"],
                    "variant": one.variant,
                    "decoding": PLAIN,
                    "bandwidth": headline,
                    "refusal_rate": float((~accepted).mean()) if len(plain) else np.nan,
                    "parse_refusal": float((~parsed).mean()) if len(plain) else np.nan,
                    "distance_refusal": float((parsed & ~accepted).mean()) if len(plain) else np.nan,
                    **dict.fromkeys(("ci_low", "ci_high", "entropy_gap"), np.nan),
                }
            )
    return pd.DataFrame(rows)
