"""Scores of readers: how far what somebody says of an activation is from the exact posterior. docs/score.md defines each number.

A *question* is a target prompt, a site and a feature; an answer is a distribution over the feature's values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from inversescope.fcr.intervals import bootstrap_means
from inversescope.fcr.resampling import ends
from inversescope.figures.tables import group_of

#: Confidences fall into so many bins of equal width.
BINS = 10
#: An answer that was not estimated from samples counts like so many of them: cross-entropy takes this little of the prior for it.
CERTAIN = 999.0
#: Who an answer is of: a control or a variant, and how the variant's samples are used ("" for controls).
READER = ["reader", "estimator"]
#: What is averaged over questions.
MEANS = ["bits", "brier", "right", "off"]
ALL = "all"


@dataclass(frozen=True)
class Answers:
    """Answers to some questions.

    Attributes:
        shares: (n, V), what is said of each value; a row is NaN where nothing is said.
        samples: (n,) effective number of samples behind each; `CERTAIN` where it is no estimate.
    """

    shares: np.ndarray
    samples: np.ndarray

    @classmethod
    def stated(cls, shares: np.ndarray) -> Answers:
        """Distributions that somebody states, (n, V)."""
        return cls(shares, np.full(len(shares), CERTAIN))

    @classmethod
    def point(cls, values: np.ndarray, size: int, samples: float) -> Answers:
        """One of `size` values for certain, (n,) codes, -1: nothing; from so many samples."""
        shares = np.where(values[:, None] < 0, np.nan, np.eye(size)[values])
        return cls(shares, np.full(len(values), samples))


def judged(exact: np.ndarray, prior: np.ndarray, answers: Answers) -> pd.DataFrame:
    """Compare answers with the exact posterior.

    Who says nothing says the prior. Cross-entropy would be infinite where a possible value gets no probability; one more sample,
    drawn from the prior, is therefore added to the answer's own. Nothing else sees that sample.

    Args:
        exact: (n, V) exact posteriors. prior: (n, V), positive wherever they are; trailing values may be padding.

    Returns:
        A row a question: `bits` (cross-entropy above the exact posterior's own entropy), `brier` (likewise: the squared
        distance of both distributions), `confidence` in the answer's most probable value, `right` (that value's exact
        probability), `off` (how far both are apart).
    """
    silent = np.isnan(answers.shares).any(1)
    said = np.where(silent[:, None], prior, answers.shares)
    added = 1.0 / (np.where(silent, 0.0, answers.samples) + 1.0)
    mixed = (1 - added)[:, None] * said + added[:, None] * prior
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(exact > 0, exact * np.log2(exact / mixed), 0.0).sum(1)
    first = said.argmax(1)
    rows = np.arange(len(said))
    frame = {
        "bits": np.maximum(bits, 0.0),
        "brier": np.square(said - exact).sum(1),
        "confidence": said[rows, first],
        "right": exact[rows, first],
    }
    return pd.DataFrame(frame | {"off": np.abs(frame["confidence"] - frame["right"])})


def _bins(confidence: np.ndarray) -> np.ndarray:
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def _bin_sums(rows: pd.DataFrame, targets: np.ndarray) -> np.ndarray:
    """Sums (targets, BINS, 3) over questions of 1, the confidence and the exact probability of the first choice."""
    owner = np.searchsorted(targets, rows["target_id"].to_numpy())
    key = owner * BINS + _bins(rows["confidence"].to_numpy(float))
    columns = (np.ones(len(rows)), rows["confidence"].to_numpy(float), rows["right"].to_numpy(float))
    size = len(targets) * BINS
    sums = [np.bincount(key, weights=column, minlength=size) for column in columns]
    return np.stack(sums, 1).reshape(len(targets), BINS, 3)


def _resampled(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over all targets (resamples, ...) when targets (first axis) are drawn with replacement."""
    count = len(sums)
    drawn = np.random.default_rng([seed, 7]).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.tensordot(drawn.astype(float), sums, axes=(1, 0))


def calibration_error(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error (...) of sums (..., BINS, 3): |confidence - exact probability| of each bin, by its questions."""
    count = sums[..., 0].sum(-1)
    return np.abs(sums[..., 1] - sums[..., 2]).sum(-1) / count


def reliability(answers: pd.DataFrame, resamples: int, confidence: float, seed: int) -> pd.DataFrame:
    """Reliability curves: a row a reader and bin of confidence, with the mean confidence, the mean exact probability and its
    interval over target prompts, and the number of questions."""
    tail, parts = (1 - confidence) / 2, []
    for (reader, estimator), rows in answers.groupby(READER, sort=False):
        targets = np.unique(rows["target_id"])
        sums = _bin_sums(rows, targets)
        total = sums.sum(0)
        filled = np.flatnonzero(total[:, 0])
        again = _resampled(sums[:, filled], resamples, seed)
        with np.errstate(invalid="ignore", divide="ignore"):
            ends = np.nanquantile(again[..., 2] / again[..., 0], [tail, 1 - tail], axis=0)
        for number, (n, said, right), low, high in zip(filled, total[filled], *ends, strict=True):
            row = {"reader": reader, "estimator": estimator, "bin": int(number), "n": int(n)}
            row |= {"confidence": said / n, "right": right / n}
            parts.append(row | {"right_low": low, "right_high": high})
    return pd.DataFrame(parts)


def scores(answers: pd.DataFrame, resamples: int, confidence: float, seed: int) -> pd.DataFrame:
    """Score readers over questions, over all and by group of sites and feature, with intervals over target prompts.

    Args:
        answers: rows of `judged` with reader, estimator, site, feature and target_id; one reader is `prior`.

    Returns:
        reader, estimator, group, feature, bits, brier, right, off and calibration, each with its _low and _high; `told`, the
        share of what the exact posterior knows beyond the prior that the reader tells (1 - bits / bits of the prior);
        n_questions, n_targets.
    """
    # Sites are many, answers millions: each site's group is looked up once.
    groups = {site: group_of(site) for site in answers["site"].unique()}
    answers = answers.assign(group=answers["site"].map(groups).astype(str))
    several = answers["group"].nunique() > 1, answers["feature"].nunique() > 1
    cuts: list[tuple[str, str, pd.DataFrame]] = [(ALL, ALL, answers)]
    cuts += [(str(name), ALL, rows) for name, rows in answers.groupby("group", sort=False) if several[0]]
    cuts += [(ALL, str(name), rows) for name, rows in answers.groupby("feature", sort=False) if several[1]]
    parts = [
        _scored(rows, resamples, confidence, seed).assign(group=group, feature=feature)
        for group, feature, rows in cuts
    ]
    table = pd.concat(parts, ignore_index=True)
    first = [*READER, "group", "feature"]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def _scored(answers: pd.DataFrame, resamples: int, confidence: float, seed: int) -> pd.DataFrame:
    rows = []
    for (reader, estimator), part in answers.groupby(READER, sort=False):
        targets = np.unique(part["target_id"])
        means = part.groupby("target_id")[MEANS].mean().to_numpy().T
        value, low, high = bootstrap_means(means, resamples, confidence, seed)
        row: dict[str, object] = {"reader": reader, "estimator": estimator}
        for number, name in enumerate(MEANS):
            row |= {name: value[number], f"{name}_low": low[number], f"{name}_high": high[number]}
        sums = _bin_sums(part, targets)
        again = calibration_error(_resampled(sums, resamples, seed))
        row["calibration"] = error = float(calibration_error(sums.sum(0)))
        row["calibration_low"], row["calibration_high"] = ends(again, confidence, error)
        rows.append(row | {"n_questions": len(part), "n_targets": len(targets)})
    table = pd.DataFrame(rows)
    nothing = float(table.loc[table["reader"] == "prior", "bits"].iloc[0])
    return table.assign(told=1 - table["bits"] / nothing if nothing > 0 else np.nan)
