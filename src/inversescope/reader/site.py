"""One activation at one site, read by the workflow's estimators: exact value, cached neighbours, candidates, controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from inversescope.config.methods import PLAIN
from inversescope.context import Context
from inversescope.fcr.cells import SiteCells
from inversescope.fcr.estimators import LOW_ESS
from inversescope.fcr.exact import exact_reference
from inversescope.fcr.generated import VariantCells
from inversescope.fcr.intervals import wilson
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values, support_radius
from inversescope.kernel.neighbours import Cache, Neighbours
from inversescope.sites import Site
from inversescope.streams import stream

#: Target prompts of the study that are searched for together with the one asked about: its shuffled control.
OTHERS = 200
#: Prompts of the prior within the bandwidth that are shown of each site, at most; a random choice of them.
SHOWN = 200


@dataclass(frozen=True)
class Asked:
    """A prompt that is asked about.

    Attributes:
        text: the prompt.
        index: its number in the task's prior; -1 = it is none of it.
        row: which of the study's target prompts it is; None = none of them.
    """

    text: str
    index: int
    row: int | None


@dataclass(frozen=True)
class Drawn:
    """Candidates of a variant for one activation, as `sample_prompts` writes them, of target 0.

    Attributes:
        rows: cached prompts that the variant may use, by their number among the cached prompts of the site.
        log_q: log q of its cached neighbours; `row` as in `rows`.
    """

    generator: str
    variant: str
    rows: np.ndarray
    samples: pd.DataFrame
    log_q: pd.DataFrame


class Labelled:
    """Prompts of a split and their labels.

    Args:
        context: the experiment.
        split: name of the split.
    """

    def __init__(self, context: Context, split: str) -> None:
        self.split, self.index = split, context.prompt_ids(split)
        self.labels = context.labels_of(self.index)


@dataclass(frozen=True)
class SiteReader:
    """What is known of one site, whichever prompt is asked about.

    Attributes:
        test, reference, cached: prompts of the study's targets, of the exact values, and of the activation cache.
        prior_samples: what the backbone writes without any activation; without rows if it was not trained.
    """

    context: Context
    site: Site
    test: Labelled
    reference: Labelled
    cached: Labelled
    prior_samples: pd.DataFrame

    @property
    def label(self) -> str:
        """The site's label."""
        return self.site.label

    @cached_property
    def z_test(self) -> np.ndarray:
        """Activations (Q, d) of the study's target prompts."""
        return np.array(self.context.activations("test", self.label))

    @cached_property
    def z_reference(self) -> np.ndarray:
        """Activations (N, ...) of the reference prompts."""
        return self.context.activations(self.reference.split, self.label)

    @cached_property
    def keys(self) -> np.ndarray:
        """The same, prepared to be compared."""
        metric = distance_of(self.context.config.kernel.distance)
        return metric.prepare(np.asarray(self.z_reference))

    @cached_property
    def z_cached(self) -> np.ndarray:
        """Activations (n, ...) of the cached prompts."""
        return self.context.activations(self.cached.split, self.label)

    def ask(self, asked: Asked, z: np.ndarray, labels: dict[str, int], epsilon: float) -> Question:
        """A prompt's activation z (1, d), its labels (-1 = unknown) and the bandwidth that it is read at."""
        rows = np.arange(min(len(self.z_test), OTHERS))
        if asked.row is None:
            queries, own = np.concatenate([self.z_test[rows], z]), len(rows)
        else:
            # All together as in the workflow, so that each distance has the same bits.
            rows = rows if asked.row < len(rows) else np.append(rows, asked.row)
            queries, own = self.z_test[rows], int(np.flatnonzero(rows == asked.row)[0])
        prepared = distance_of(self.context.config.kernel.distance).prepare(queries)
        kept = np.flatnonzero(self.cached.index != asked.index)
        return Question(self, asked, prepared, own, labels, epsilon, kept)


@dataclass(frozen=True)
class Question:
    """One prompt at one site and bandwidth.

    Attributes:
        queries: prepared activations (Q, d): the prompt's, and those of others.
        own: which of them is the prompt's.
        labels: feature -> its label, -1 = unknown.
        kept: cached prompts other than the prompt itself.
    """

    reader: SiteReader
    asked: Asked
    queries: np.ndarray
    own: int
    labels: dict[str, int]
    epsilon: float
    kept: np.ndarray

    @property
    def kind(self) -> str:
        """The kernel."""
        return self.reader.context.config.kernel.kind

    @property
    def known(self) -> dict[str, int]:
        """Features whose label of the prompt is known."""
        return {name: label for name, label in self.labels.items() if label >= 0}

    @cached_property
    def _exact(self) -> tuple[pd.DataFrame, dict[str, float]]:
        """The prompt's row of the table of exact values, and each feature's rate around the other activations."""
        context, reference, config = self.reader.context, self.reader.reference, self.reader.context.config
        task, known = context.task, self.known
        values = exact_reference(
            self.queries,
            self.reader.keys,
            {name: np.full(len(self.queries), label) for name, label in known.items()},
            {name: reference.labels[name] for name in known},
            [self.epsilon],
            config.kernel.distance,
            self.kind,
            log_prior=None if task.uniform else task.log_prior(reference.index),
            prepared=True,
        )
        table = values.table([self.epsilon], len(reference.index), task.size)
        row = table[table["target_id"] == self.own].assign(target_id=0)
        others = np.arange(len(self.queries)) != self.own
        found = {name: match[others, 0] for name, match in values.match.items()}
        means = {
            name: float(np.nanmean(m)) if np.isfinite(m).any() else math.nan for name, m in found.items()
        }
        return row.set_index(["epsilon", "target_id"]), means

    @property
    def exact(self) -> pd.DataFrame:
        """The prompt's row of the table of exact values, by (epsilon, 0)."""
        return self._exact[0]

    @property
    def shuffled(self) -> dict[str, float]:
        """Feature -> share of the prompt's label in the balls of other prompts' activations, without any generator."""
        return self._exact[1]

    @property
    def mass(self) -> float:
        """Share of the prior that the prompt's own ball holds."""
        return math.exp(float(self.exact["log_mass"].iloc[0]))

    @cached_property
    def cache(self) -> Cache:
        """Cached activations but the prompt's own, ready for search."""
        z, distance = self.reader.z_cached, self.reader.context.config.kernel.distance
        return Cache(np.array(z if len(self.kept) == len(z) else z[self.kept]), distance)

    @cached_property
    def cells(self) -> SiteCells:
        """What the estimators know, with the prompt as the only target: exact value, cache and controls are filled in."""
        reader, cached = self.reader, self.reader.cached
        near = self.cache.search(self.queries, support_radius(self.epsilon, self.kind))
        part = slice(near.start[self.own], near.start[self.own + 1])
        rows = near.rows[part]
        index = np.array([self.asked.index])
        here = SiteCells(
            context=reader.context,
            site=reader.site,
            test=index,
            left_out=np.union1d(reader.test.index, index),
            train=cached.index[self.kept],
            exact=self.exact,
            near=Neighbours(np.array([0, len(rows)]), rows, near.distance[part], near.scanned[[self.own]]),
            nearest=self.cache.nearest(self.queries)[0][[self.own]],
            labels={name: np.array([label]) for name, label in self.known.items()},
            train_labels={name: cached.labels[name][self.kept] for name in self.known},
        )
        here.add_untrained([self.epsilon], reader.prior_samples, None)
        return here

    def estimates(self, drawn: Sequence[Drawn]) -> pd.DataFrame:
        """Every estimator's value of each feature whose label is known, with its interval, and the controls."""
        here, reader = self.cells, self.reader
        first = len(here.cells)
        for one in drawn:
            VariantCells(here, one.generator, one.variant, one.rows).add(one.samples, one.log_q)
        # Of a single target the variants' own `shuffled` would be its own candidates.
        cells = [cell for cell in here.cells if cell["estimator"] != "shuffled"]
        del here.cells[first:]
        columns = ["feature", "estimator", "variant", "decoding", "value", "ess", "n_samples"]
        table = pd.DataFrame(cells, columns=columns)
        own = [
            {"feature": name, "estimator": estimator, "variant": "", "decoding": "", "value": value}
            for name, label in self.known.items()
            for estimator, value in (
                ("chance", reader.context.chance(name)),
                ("shuffled", self.shuffled[name]),
                ("prompt only", float((reader.reference.labels[name] == label).mean())),
            )
        ]
        table = pd.concat([table, pd.DataFrame(own, columns=columns)], ignore_index=True)
        drawn_from = table["estimator"].isin(["generated", "reweighted", "cache", "combined", "prior"])
        if not reader.context.plan.is_enumerated:
            drawn_from |= table["estimator"] == "exact"
        confidence = reader.context.config.fcr.confidence
        ends = [
            wilson(value, ess, confidence) if sampled else (math.nan, math.nan)
            for value, ess, sampled in zip(table["value"], table["ess"], drawn_from, strict=True)
        ]
        table[["low", "high"]] = np.array(ends, float).reshape(-1, 2)
        return table

    @cached_property
    def to_reference(self) -> np.ndarray:
        """Distances (N,) of the reference prompts."""
        metric = distance_of(self.reader.context.config.kernel.distance)
        distance: np.ndarray = metric.between(self.queries[[self.own]], self.reader.keys)[0]
        return distance

    @cached_property
    def ball(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Reference prompts within reach: rows, distances, kernel values, the prompt itself among them."""
        d = self.to_reference
        rows = np.flatnonzero(d < np.float32(support_radius(self.epsilon, self.kind)))
        return rows, d[rows], kernel_values(d[rows], self.epsilon, self.kind)

    @property
    def neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and kernel values of the reference prompts within reach but the prompt itself."""
        rows, _, weight = self.ball
        index = self.reader.reference.index[rows]
        other = index != self.asked.index
        return index[other], weight[other]

    def nearest(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and distances of the nearest reference prompts but the prompt itself, each once, the nearest first."""
        index, first = np.unique(self.reader.reference.index, return_index=True)
        d = np.where(index == self.asked.index, np.inf, self.to_reference[first])
        order = np.argsort(d, kind="stable")[: min(most, len(d) - int(np.isinf(d).sum()))]
        return index[order], d[order]

    def most_likely(self) -> dict[str, tuple[str, float]]:
        """Feature -> the label that most of the ball's prompts have, and their share; the prior's prompts alone are asked."""
        rows, _, weight = self.ball
        result = {}
        for name, values in self.reader.context.task.feature_values.items():
            if name not in self.labels:
                continue
            if not weight.sum() > 0:
                result[name] = ("", math.nan)
                continue
            share = np.bincount(self.reader.reference.labels[name][rows], weights=weight) / weight.sum()
            result[name] = (values[int(share.argmax())], float(share.max()))
        return result

    def samples(self, drawn: Sequence[Drawn]) -> pd.DataFrame:
        """Prompts of the prior within the bandwidth, the nearest first, at most `SHOWN` of them; then all candidates."""
        reader, task = self.reader, self.reader.context.task
        rows, d, weight = self.ball
        other = reader.reference.index[rows] != self.asked.index
        # A prompt that counts several times is shown once.
        first = np.unique(reader.reference.index[rows], return_index=True)[1]
        rows, d, weight = (a[np.sort(first[other[first]])] for a in (rows, d, weight))
        if len(rows) > SHOWN:
            rng = stream(reader.context.config.seed, "read", reader.label, self.asked.text)
            some = rng.choice(len(rows), SHOWN, replace=False)
            rows, d, weight = rows[some], d[some], weight[some]
        order = np.argsort(d, kind="stable")
        index = reader.reference.index[rows[order]]
        frame = pd.DataFrame(
            {
                "source": "prior",
                "decoding": "",
                "text": task.texts(index),
                "distance": d[order].astype(float),
                "weight": weight[order],
                "accepted": True,
                "parsed": True,
            }
        )
        for name, codes in reader.context.labels_of(index).items():
            frame[name] = np.array(task.feature_values[name], object)[codes]
        parts = [frame, *(self._candidates(one) for one in drawn)]
        return pd.concat([part for part in parts if len(part)] or [frame], ignore_index=True)

    def _candidates(self, drawn: Drawn) -> pd.DataFrame:
        """A variant's candidates as rows of the samples, those that were refused too."""
        task, found = self.reader.context.task, drawn.samples
        d = found["distance"].to_numpy(float)
        weight = np.where(
            found["accepted"], kernel_values(np.nan_to_num(d, nan=np.inf), self.epsilon, self.kind), 0.0
        )
        frame = found[["decoding", "text", "accepted", "parsed"]].astype({"decoding": object, "text": object})
        frame = frame.assign(source=drawn.variant, distance=d, weight=weight).reset_index(drop=True)
        for name, codes in self.reader.context.labels_of(
            found["prompt_id"].to_numpy().astype(np.int64)
        ).items():
            frame[name] = np.array([*task.feature_values[name], ""], object)[codes]
        return frame

    def features(self, estimates: pd.DataFrame) -> pd.DataFrame:
        """A row a feature: the rate of the prompt's own label, its interval, controls, exact value, and the likeliest label."""
        task, likely = self.reader.context.task, self.most_likely()
        rows = []
        for name, label in self.labels.items():
            told = estimates[estimates["feature"] == name]
            rate = headline(told)
            controls = told.drop_duplicates("estimator").set_index("estimator")["value"]
            top, share = likely[name]
            rows.append(
                {
                    "feature": name,
                    "value": task.feature_values[name][label] if label >= 0 else "",
                    **rate,
                    **{
                        column: float(controls.get(estimator, math.nan))
                        for column, estimator in (
                            ("chance", "chance"),
                            ("shuffled", "shuffled"),
                            ("prompt_only", "prompt only"),
                            ("exact", "exact"),
                        )
                    },
                    "likeliest": top,
                    "its_share": share,
                }
            )
        return pd.DataFrame(rows)


def headline(told: pd.DataFrame) -> dict[str, Any]:
    """The estimate that a reading shows first: cached neighbours and candidates combined, of `default` rather than of another
    variant; cached neighbours alone where there is no generator. `few` says that too few prompts stand behind it."""
    known = told[np.isfinite(told["value"].astype(float))]
    mixed = known[(known["estimator"] == "combined") & (known["decoding"] == PLAIN)]
    cached = known[(known["estimator"] == "cache") & (known["variant"] == "")]
    for choice in (mixed[mixed["variant"] == "default"], mixed, cached):
        if len(choice):
            row = choice.iloc[0]
            name = row["estimator"] + (f" ({row['variant']})" if row["variant"] else "")
            numbers = {"rate": row["value"], "low": row["low"], "high": row["high"]}
            ess = float(row["ess"])
            return {
                **{k: float(v) for k, v in numbers.items()},
                "estimator": name,
                "ess": ess,
                "few": ess < LOW_ESS,
            }
    nothing = {"rate": math.nan, "low": math.nan, "high": math.nan}
    return {**nothing, "estimator": "", "ess": 0.0, "few": True}
