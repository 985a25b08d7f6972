"""What a reading holds and how it is shown: samples, features with rates and controls, notes on what can be trusted."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from inversescope.config.methods import PLAIN, Bandwidth
from inversescope.fcr.estimators import LOW_ESS
from inversescope.reader.site import Asked, Drawn, Question

if TYPE_CHECKING:
    from inversescope.reader.study import Study

SHOWN_SAMPLES = 8  # in a notebook and in a terminal, a site
SHOWN_SITES = 3  # of which a notebook and a terminal show all that was read; of more, the rates alone
SHOWN_BEST = 4  # sites that are named for each feature
LONGEST_LABEL = 20  # characters


@dataclass(frozen=True)
class SiteReading:
    """What was read at one site.

    Attributes:
        about: site, epsilon, bandwidth, share of the prior that was asked for and that the prompt's own ball holds, numbers of
            neighbours, refusal rate.
        drawn: candidates of each variant.
        estimates, features, samples: tables (see `Reading`).
    """

    question: Question
    bandwidth: Bandwidth
    drawn: Sequence[Drawn]
    about: dict[str, Any]
    estimates: pd.DataFrame
    features: pd.DataFrame
    samples: pd.DataFrame


def read_question(question: Question, bandwidth: Bandwidth, drawn: Sequence[Drawn]) -> SiteReading:
    """Read one prompt at one site and bandwidth."""
    estimates = question.estimates(drawn)
    features = question.features(estimates)
    rows, weight = question.cells.cached(0, question.epsilon)
    total, squares = float(weight.sum()), float((weight**2).sum())
    plain = [one.samples[one.samples["decoding"] == PLAIN] for one in drawn]
    about = {
        "site": question.reader.label,
        "bandwidth": str(bandwidth),
        "epsilon": question.epsilon,
        "share": bandwidth.value if bandwidth.kind == "share" else math.nan,
        "ball": question.mass,
        "cached": len(question.kept),
        "neighbours": len(rows),
        "ess": total * total / squares if squares else 0.0,
        "generators": ", ".join(one.variant for one in drawn),
        "refusal_rate": 1.0 - float(plain[0]["accepted"].mean()) if plain and len(plain[0]) else math.nan,
    }
    samples = question.samples(drawn)
    return SiteReading(question, bandwidth, drawn, about, estimates, features, samples)


class Reading:
    """What the activation of one prompt tells at one or several sites.

    Attributes:
        prompt: the prompt.
    """

    def __init__(self, study: Study, asked: Asked, parts: Sequence[SiteReading]) -> None:
        self.study, self.asked, self.parts = study, asked, list(parts)
        self.prompt = asked.text

    def _joined(self, name: str) -> pd.DataFrame:
        frames = [getattr(part, name).copy() for part in self.parts]
        for frame, part in zip(frames, self.parts, strict=True):
            frame.insert(0, "site", part.about["site"])
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def sites(self) -> pd.DataFrame:
        """A row a site: bandwidth (epsilon, share of the prior asked for, share `ball` that this prompt's own ball holds), cached
        prompts, how many are neighbours, their effective number `ess`, and the refusal rate of the first generator."""
        return pd.DataFrame([part.about for part in self.parts])

    @cached_property
    def features(self) -> pd.DataFrame:
        """A row a site and feature.

        `value` is the prompt's own label, `rate` how often prompts near its activation have it, `low` and `high` Wilson's
        interval at the effective number `ess` of samples, `few` whether that is too small. Controls: `chance` (two prompts of the
        prior agree), `shuffled` (the rate near other prompts' activations), `prompt_only` (the rate in the prior, without any
        activation). `exact`: all prompts of the prior weighed, or the estimate from the study's reference prompts. `likeliest`:
        the label that most of these have, and `its_share`.
        """
        return self._joined("features")

    @cached_property
    def estimates(self) -> pd.DataFrame:
        """A row a site, feature, estimator, variant and decoding: the cells of the workflow's tables for this prompt."""
        return self._joined("estimates")

    @cached_property
    def samples(self) -> pd.DataFrame:
        """A row a prompt: those of the prior within the bandwidth (a random choice of them, the nearest first), then raw
        candidates of generators, the refused ones too; with distance, kernel weight and labels."""
        return self._joined("samples")

    @cached_property
    def rates(self) -> pd.DataFrame:
        """`rate` of each feature (columns) at each site (rows)."""
        return self.features.pivot(index="site", columns="feature", values="rate").reindex(
            index=self.sites["site"], columns=self.features["feature"].unique()
        )

    @cached_property
    def notes(self) -> list[str]:
        """What to know before trusting the numbers."""
        study, found = self.study, []
        if self.asked.index < 0:
            found.append(
                "The prompt is none of the task's prior: labels that are unknown have no rate. `likeliest` is what the "
                "prior's prompts near its activation have."
            )
        for part in self.parts:
            features, label = part.features, part.about["site"]
            told = features[features["value"] != ""]
            ess = float(told["ess"].max()) if len(told) else part.about["ess"]
            if ess < LOW_ESS:
                found.append(
                    f"{label}: {ess:.1f} effective neighbours within the bandwidth are too few to say anything "
                    f"({LOW_ESS:.0f} at least): take a larger share, or more prompts."
                )
        if len(self.parts) > SHOWN_SITES:
            found.append(f"Name {SHOWN_SITES} sites or fewer to see samples, intervals and controls.")
        if not any(part.about["generators"] for part in self.parts):
            found.append("Rates are those of cached neighbours alone; no generator was asked.")
        if not study.context.plan.is_enumerated:
            found.append(f"`exact` is an estimate from {len(study.reference.index)} draws of the prior.")
        return found

    @cached_property
    def hypotheses(self) -> pd.DataFrame:
        """Functions of prompts that the samples at these sites tell, named and tested without a human (docs/hypotheses.md).

        They are found on the study's target prompts. Of this prompt: `value` is its label, and `here` the share of the prior's
        prompts within the bandwidth that have it.
        """
        return pd.concat([self._proposed(part) for part in self.parts], ignore_index=True)

    def _proposed(self, part: SiteReading) -> pd.DataFrame:
        """Hypotheses at one site, and what they say of the prompt."""
        from inversescope.config.functions import parse_function
        from inversescope.tasks.functions import Corpus

        found = self.study.proposed(part.about["site"])
        index, weight = part.question.neighbours
        corpus = Corpus([self.prompt, *self.study.context.task.texts(index)])
        values, here = [], []
        for name in found["hypothesis"]:
            labels = corpus.labels(parse_function(str(name)))
            same = labels.codes[1:] == labels.codes[0]
            values.append(str(labels.texts[0]))
            here.append(float((same * weight).sum() / weight.sum()) if weight.sum() else math.nan)
        return found.drop(columns=["task", "model", "layer", "head"]).assign(value=values, here=here)

    def patch(self, feature: str, partners: int = 20) -> pd.DataFrame:
        """Is the feature used? Write counterfactual partners' activations at these sites into the prompt's run (see `effects_of`).

        Raises:
            InputError: the prompt is none of the task's prior, or the task has no partners that differ in this feature.
        """
        from inversescope.reader.effects import effects_of

        return effects_of(
            self.study, self.asked, [part.question.reader.site for part in self.parts], feature, partners
        )

    # --------------------------------------------------------------------------------------------------------- showing
    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; what is missing is None."""
        names = ["sites", "features", "estimates", "samples"]
        names += ["hypotheses"] if "hypotheses" in self.__dict__ else []  # where they were asked for
        return {
            "prompt": self.prompt,
            "task": self.study.context.task_name,
            "model": self.study.context.model_name,
            "notes": self.notes,
            **{name: _records(getattr(self, name)) for name in names},
        }

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def html(self) -> str:
        """A page of the browser (docs/browser.md) with this reading alone: one file that needs no other."""
        from inversescope.reader.page import page_of

        return page_of(self)

    @property
    def shown(self) -> list[SiteReading]:
        """The sites that are shown one by one: none if they are many."""
        return self.parts if len(self.parts) <= SHOWN_SITES else []

    def __repr__(self) -> str:
        lines = [f"Reading of {self.prompt!r}"]
        if len(self.parts) > SHOWN_SITES:
            lines += [table.to_string(index=False) for table in (shown_best(self), shown_rates(self))]
        for part in self.shown:
            lines += [summary(part.about), shown_features(part).to_string(index=False)]
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        parts = [f"<p><b>{html.escape(self.prompt)}</b></p>"]
        if len(self.parts) > SHOWN_SITES:
            tables = shown_best(self), shown_rates(self)
            parts += [table.to_html(index=False, escape=True, border=0) for table in tables]
        for part in self.shown:
            parts.append(f"<p>{html.escape(summary(part.about))}</p>")
            for table in (shown_features(part), shown_samples(part)):
                parts.append(table.to_html(index=False, escape=True, border=0))
        parts += [f"<p><i>{html.escape(note)}</i></p>" for note in self.notes]
        return "\n".join(parts)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as plain values."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=15))
    return rows


def number(value: float) -> str:
    """A rate as it is shown; empty if it is missing."""
    return "" if math.isnan(value) else f"{value:.2f}"


def cut(label: str) -> str:
    """A label as it is shown."""
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def shown_features(part: SiteReading) -> pd.DataFrame:
    """The features of a site as text: rate and interval, controls, exact value, and the likeliest label where it is another one."""
    features = part.features
    interval = [
        "" if math.isnan(low) else f"{low:.2f}-{high:.2f}"
        for low, high in zip(features["low"], features["high"], strict=True)
    ]
    rate = [
        number(rate) + ("?" if few and not math.isnan(rate) else "")
        for rate, few in zip(features["rate"], features["few"], strict=True)
    ]
    return pd.DataFrame(
        {
            "feature": features["feature"],
            "value": features["value"].map(cut),
            "rate": rate,
            "interval": interval,
            "chance": features["chance"].map(number),
            "shuffled": features["shuffled"].map(number),
            "prompt only": features["prompt_only"].map(number),
            "exact": features["exact"].map(number),
            "likeliest": [
                f"{cut(top)} {share:.2f}" if top and top != own else ""
                for top, share, own in zip(
                    features["likeliest"], features["its_share"], features["value"], strict=True
                )
            ],
        }
    )


def shown_rates(reading: Reading) -> pd.DataFrame:
    """The rates of all features at all sites as text, below their chance values."""
    features = reading.features.drop_duplicates("feature").set_index("feature")
    rates = reading.rates
    few = reading.features.pivot(index="site", columns="feature", values="few")
    rows = [{"site": "chance", **{name: number(features["chance"][name]) for name in rates.columns}}]
    for site, row in rates.iterrows():
        told = {
            name: number(rate) + ("?" if rate == rate and few[name][site] else "")
            for name, rate in row.items()
        }
        rows.append({"site": site, **told})
    return pd.DataFrame(rows)


def shown_best(reading: Reading) -> pd.DataFrame:
    """Each feature as text, and the sites where its rate is highest."""
    rows = []
    for name, table in reading.features.groupby("feature", sort=False):
        best = table[~table["few"].astype(bool)].sort_values("rate", ascending=False, kind="stable")[
            :SHOWN_BEST
        ]
        sites = [f"{row['site']} {number(row['rate'])}" for _, row in best.iterrows()]
        first = table.iloc[0]
        rows.append(
            {
                "feature": name,
                "value": cut(first["value"]),
                "chance": number(first["chance"]),
                "highest rates": ", ".join(sites),
            }
        )
    return pd.DataFrame(rows)


def shown_hypotheses(table: pd.DataFrame) -> pd.DataFrame:
    """Accepted hypotheses as text: what each says of the prompt, its rate at the site, and how much of what is told it explains."""
    table = table[table["accepted"].astype(bool)]
    rows = {"site": table["site"], "hypothesis": table["hypothesis"], "value": table["value"].map(cut)}
    rows |= {name: table[name].astype(float).map(number) for name in ("here", "rate", "chance", "explains")}
    return pd.DataFrame(rows | {"p": table["p"].map("{:.2g}".format)})


def shown_samples(part: SiteReading) -> pd.DataFrame:
    """Some samples of a site as text: a few of each source, the nearest first."""
    groups = part.samples.groupby(["source", "decoding"], sort=False)
    some = [group.sort_values("distance", kind="stable").head(SHOWN_SAMPLES) for _, group in groups]
    frame = pd.concat(some) if some else part.samples
    distance = [
        ("" if np.isnan(d) else f"{d:.2g}") + ("" if ok else " refused")
        for d, ok in zip(frame["distance"], frame["accepted"], strict=True)
    ]
    return pd.DataFrame({"source": frame["source"], "distance": distance, "text": frame["text"]})


def summary(about: dict[str, Any]) -> str:
    """One line on a site: where, how wide, how many neighbours."""
    asked = "" if math.isnan(about["share"]) else f"{100 * about['share']:.3g}% of the prior, "
    line = (
        f"{about['site']}: {asked}epsilon {about['epsilon']:.3g}; the ball holds {100 * about['ball']:.3g}% of the "
        f"prior; {about['neighbours']} of {about['cached']} cached prompts are neighbours, effectively {about['ess']:.0f}"
    )
    if about["generators"]:
        line += f"; generators: {about['generators']}, refusal rate {about['refusal_rate']:.2f}"
    return line
