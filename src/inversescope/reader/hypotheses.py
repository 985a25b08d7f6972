"""Hypotheses without a human: label functions of the prompts, ranked and tested by what samples at a site tell about them.

A posterior P(x; z) is a set of texts with weights, one for each target prompt and bandwidth. A site tells a function if the
posterior gives the target's own label more probability than the prior does. In bits, this is the mean over targets of
log2 q(own label) / p(own label): a lower bound of the information that activation and label share (Barber and Agakov, 2003).
More labels do not raise it by themselves: a posterior that knows nothing loses bits, however many labels there are.

Bits alone prefer the finest function, such as the text itself. So functions are ranked by the share that they explain: their
bits over all bits by which the posterior is narrower than the prior. A function explains all if its classes are the balls: at
the right bandwidth, prompts with the target's label are near, and all others are not. Each function is read at the bandwidth
where it explains most.

Half of the targets choose functions and bandwidths, the other half tests them. If a site tells nothing, labels are exchangeable
between targets, so the test permutes them. It compares each score, in units of its own spread, with the largest of all tested
functions in each permutation (Westfall and Young, 1993). That corrects for how many were tested. Holm's correction would too, but
it loses more when functions are alike, and functions of one grammar are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from inversescope.config.functions import Function
from inversescope.fcr.intervals import bootstrap_means
from inversescope.reader.candidates import candidates
from inversescope.streams import stream
from inversescope.tasks.functions import Corpus

#: Prompts of the prior that a posterior is smoothed with: as if it held this many more.
SMOOTHING = 1.0
#: Functions whose labels agree on this share of the prior are shown as one.
AGREE = 0.95
#: What a further function must add, in bits, to count as a part of what is explained.
ADDS = 0.05
#: Bits below which a posterior tells too little for a share of them to mean anything.
LEAST = 0.5
_PERMUTATIONS = 1999
_SKETCH = 4096  # texts on which functions with the same labels are found

COLUMNS = [
    *(
        "rank",
        "hypothesis",
        "meaning",
        "aliases",
        "accepted",
        "p",
        "bandwidth",
        "explains",
        "bits",
        "told",
        "rate",
    ),
    *(
        "ci_low",
        "ci_high",
        "chance",
        "entropy",
        "n_labels",
        "n_targets",
        "ess",
        "n_tried",
        "n_tested",
        "together",
        "left",
    ),
]


class LabelTable:
    """Texts and target prompts with their labels under all functions that are tried: made once, used at every site.

    Args:
        texts: N texts that weights speak of: draws of the prior, and samples.
        target_texts: T target prompts.
        prior: (N,) mass of each text as a draw of the prior, 0 for samples; None: all alike.
        functions: what is tried; None: all of the grammar.

    Attributes:
        mass: (N,) the same, adding up to 1.
        names: F lists of functions with the same labels, the shortest first.
        codes: F times codes (N + T,) of their labels.
        own: (F, T) column of each target's own label in `table`.
        table: (N, C) float32, which texts have a label; a column for each function and label that some target has.
        p: (C,) probability of each of them under the prior.
        entropy: (F,) bits of each function's labels under the prior.
        whose: what is said of some functions beside their meaning.
        n_tried: functions that were tried, whether or not they have labels of their own.
    """

    def __init__(
        self,
        texts: Sequence[str],
        target_texts: Sequence[str],
        prior: np.ndarray | None = None,
        functions: Sequence[Function] | None = None,
    ) -> None:
        n = len(texts)
        mass = np.ones(n) if prior is None else np.asarray(prior, float)
        self.mass = mass / mass.sum()
        some = np.unique(np.linspace(0, n - 1, min(n, _SKETCH)).astype(int))
        sketch = Corpus([*(texts[i] for i in some), *target_texts])
        self._corpora = sketch, Corpus([*texts, *target_texts])
        self._n_targets, self._seen = len(target_texts), set[bytes]()
        self.n_tried = 0
        self.whose: dict[Function, str] = {}
        self.names: list[list[Function]] = []
        self.codes: list[np.ndarray] = []
        self.own = np.zeros((0, len(target_texts)), int)
        self.table = np.zeros((n, 0), np.float32)
        self.p, self.entropy = np.zeros(0), np.zeros(0)
        self._add(candidates(sketch) if functions is None else list(functions))

    def with_functions(self, functions: Sequence[Function], whose: str) -> LabelTable:
        """The same texts with further functions; those that say nothing else than the ones before are left out.

        Args:
            whose: what is said of them beside their meaning.
        """
        result, known = copy.copy(self), {one for same in self.names for one in same}
        result.whose = self.whose | dict.fromkeys(
            [one for one in functions if one not in known], f" ({whose})"
        )
        result._seen = set(self._seen)
        result._add(functions)
        return result

    def _add(self, functions: Sequence[Function]) -> None:
        """Label the texts by further functions."""
        sketch, corpus = self._corpora
        found: dict[bytes, list[Function]] = {}
        for function in functions:
            codes = _numbered(sketch.labels(function).codes)
            # What is the same for all targets cannot be tested.
            if (
                len(np.unique(codes[len(sketch) - self._n_targets :])) > 1
                and codes.tobytes() not in self._seen
            ):
                found.setdefault(codes.tobytes(), []).append(function)
        self._seen |= found.keys()
        self.n_tried += len(functions)
        n = len(self.mass)
        codes_of = [corpus.labels(same[0]).codes for same in found.values()]
        coded = [Coded.of(codes, n) for codes in codes_of]
        start = np.cumsum([len(self.p), *(one.n_labels for one in coded)])
        own = [one.own + first for one, first in zip(coded, start[:-1], strict=True)]
        names = [sorted(same, key=lambda f: (len(str(f)), str(f))) for same in found.values()]
        self.names, self.codes = self.names + names, self.codes + codes_of
        self.own = np.vstack([self.own, np.array(own, int).reshape(-1, self._n_targets)])
        self.table = np.hstack([self.table, *(one.table for one in coded)])
        self.p = self.mass @ self.table
        self.entropy = np.array([_entropy(np.bincount(codes[:n], self.mass)) for codes in self.codes])

    def meaning(self, f: int) -> str:
        """A function in English and, of further ones, whose it is."""
        function = self.names[f][0]
        return function.means + self.whose.get(function, "")

    def agreement(self, one: int, other: int) -> float:
        """`agreement` of two functions over the prior."""
        n = len(self.mass)
        return agreement(self.codes[one][:n], self.codes[other][:n], self.mass)


@dataclass(frozen=True)
class Coded:
    """One function's labels of N texts and T targets, as far as targets have them.

    Attributes:
        codes: (N,) which of the targets' labels each text has, `n_labels` if none.
        own: (T,) the same of the targets.
        n_labels: number of labels that targets have.
    """

    codes: np.ndarray
    own: np.ndarray
    n_labels: int

    @staticmethod
    def of(codes: np.ndarray, n: int) -> Coded:
        """From codes of the texts, n of them, and the targets behind them."""
        kept = np.unique(codes[n:])
        place = np.searchsorted(kept, codes).clip(0, len(kept) - 1)
        place = np.where(kept[place] == codes, place, len(kept))
        return Coded(place[:n], place[n:], len(kept))

    @property
    def table(self) -> np.ndarray:
        """(N, n_labels) float32: which label each text has."""
        return (self.codes[:, None] == np.arange(self.n_labels)).astype(np.float32)


def agreement(one: np.ndarray, other: np.ndarray, mass: np.ndarray | None = None) -> float:
    """Share of N texts whose labels match up to names: pairs of labels, codes (N,), that are each other's most frequent partner."""
    a, b = np.unique(one, return_inverse=True)[1], np.unique(other, return_inverse=True)[1]
    width = int(b.max(initial=0)) + 1
    pair, place = np.unique(a * width + b, return_inverse=True)
    weight = np.bincount(place, np.full(len(a), 1 / max(1, len(a))) if mass is None else mass)
    order = np.argsort(weight, kind="stable")
    first, second = np.divmod(pair, width)
    # The last one written is the heaviest.
    best_a, best_b = np.zeros(int(a.max(initial=0)) + 1, int), np.zeros(width, int)
    best_a[first[order]], best_b[second[order]] = order, order
    here = np.arange(len(pair))
    return float(weight[(best_a[first] == here) & (best_b[second] == here)].sum())


class Posterior:
    """What the samples of a site say of T targets at one bandwidth.

    Args:
        weights: (T, N) weight of each text in each target's posterior.
        prior: (N,) mass of each text under the prior.
        mass: (T,) share of the prior that each posterior is spread over; None: the prior's mass of texts with a weight.

    Attributes:
        weight: (T, N) float32, as given: with the hard kernel whole numbers, whose sums are exact on any processor.
        total: (T,) what they add up to; 1 where nothing is known.
        count: (T,) effective number of texts (Kish).
        told: (T,) bits by which the posterior is narrower than the prior; 0 where nothing is known.
    """

    def __init__(self, weights: np.ndarray, prior: np.ndarray, mass: np.ndarray | None = None) -> None:
        self.weight = np.asarray(weights, np.float32)
        total, squares = self.weight.sum(1, dtype=float), np.square(self.weight).sum(1, dtype=float)
        known = total > 0
        self.total = np.where(known, total, 1.0)
        self.count = np.divide(total**2, squares, out=np.zeros(len(total)), where=known)
        mass = (self.weight > 0) @ prior if mass is None else np.asarray(mass, float)
        self.told = np.where(known, -np.log2(mass.clip(1e-12, 1.0)), 0.0)

    def match(self, table: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(len(targets), C) probability of each label, table (N, C), under the posterior of some targets."""
        # In single precision parts of 1 may add up to a little more.
        return np.minimum((self.weight[targets] @ table) / self.total[targets, None], 1.0)

    def bits(self, match: np.ndarray, p: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Bits by which the posteriors of some targets, smoothed with the prior, exceed it in labels of probability p."""
        ratio = np.divide(match, p, out=np.zeros(match.shape), where=np.broadcast_to(p, match.shape) > 0)
        n = self.count[targets][:, None]
        return np.log2((n * ratio + SMOOTHING) / (n + SMOOTHING))


def propose(
    known: LabelTable,
    weights: Mapping[str, np.ndarray],
    *,
    mass: Mapping[str, np.ndarray] | None = None,
    n: int = 10,
    level: float = 0.05,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Propose functions that the samples of one site tell about, on half of the targets, and test them on the other half.

    Args:
        known: N texts and T target prompts with their labels.
        weights: bandwidth -> (T, N) weight of each text in each target's posterior; the headline first. A target's own prompt must
            have none.
        mass: bandwidth -> (T,) share of the prior that each posterior is spread over; None: the prior's mass of what has a weight.
        n: hypotheses that are tested, at most.
        level: of the test, for all tested hypotheses of a site together.
        confidence: of the interval of the rate.
        seed: of the permutations and of the interval.

    Returns:
        One row a hypothesis; the best by what the choosing half says first. All numbers are of the testing half. `explains` is
        `bits` over the bits `told`, all at the hypothesis's `bandwidth`; `p` is that of `bits`, corrected. At the headline
        bandwidth: `rate`, the mean share of the posterior with the target's own label, its interval, its `chance` under the prior;
        `together`, the share of what is told there that this hypothesis and the accepted ones above explain; `left`, the bits that
        remain; `ess`, the median effective number of texts.
    """
    posteriors = {name: Posterior(one, known.mass, (mass or {}).get(name)) for name, one in weights.items()}
    size = known.own.shape[1]
    choosing, testing = np.arange(0, size, 2), np.arange(1, size, 2)
    scores = np.array([_scores(known, one, choosing) for one in posteriors.values()])
    chosen, aliases = _choose(known, scores.max(0, initial=-np.inf), n)
    if not chosen or not len(testing):
        return pd.DataFrame(columns=COLUMNS)
    best, every = scores.argmax(0), list(posteriors.values())
    found = [_Tested(known, every[best[f]], f, testing) for f in chosen]
    p = permutation_test(np.array([one.bits for one in found]), seed)
    rates = np.array([_Tested(known, every[0], f, testing).rates for f in chosen])
    rate, low, high = bootstrap_means(rates, 2000, confidence, seed)
    frame = pd.DataFrame(
        {
            "rank": np.arange(1, len(chosen) + 1),
            "hypothesis": [str(known.names[f][0]) for f in chosen],
            "meaning": [known.meaning(f) for f in chosen],
            "aliases": ["; ".join(aliases[f]) for f in chosen],
            "accepted": p <= level,
            "p": p,
            "bandwidth": [list(posteriors)[best[f]] for f in chosen],
            "bits": [np.diagonal(one.bits).mean() for one in found],
            "told": [one.told for one in found],
            "rate": rate,
            "ci_low": low,
            "ci_high": high,
            "chance": [known.p[known.own[f, testing]].mean() for f in chosen],
            "entropy": known.entropy[chosen],
            "n_labels": [len(np.unique(known.codes[f][: len(known.mass)])) for f in chosen],
            "n_targets": len(testing),
            "ess": float(np.median(every[0].count[testing])),
            "n_tried": known.n_tried,
            "n_tested": len(chosen),
        }
    )
    explained = _together(known, every[0], [f for f, one in zip(chosen, p, strict=True) if one <= level])
    together = np.array([explained.get(f, np.nan) for f in chosen])
    told = every[0].told[testing].mean()
    frame["explains"] = frame["bits"] / np.maximum(frame["told"], LEAST)
    return frame.assign(together=together / max(told, LEAST), left=told - together)[COLUMNS]


class _Tested:
    """What the testing half says of one function at one bandwidth.

    Attributes:
        bits: (n, n) what each target's posterior says of each target's label.
        rates: (n,) of its own label; NaN where nothing is known. told: mean bits that posteriors tell.
    """

    def __init__(self, known: LabelTable, posterior: Posterior, f: int, testing: np.ndarray) -> None:
        column = known.own[f, testing]
        match = posterior.match(known.table[:, column], testing)
        self.bits = posterior.bits(match, known.p[column], testing)
        self.rates = np.where(posterior.count[testing] > 0, np.diagonal(match), np.nan)
        self.told = float(posterior.told[testing].mean())


def permutation_test(bits: np.ndarray, seed: int = 0) -> np.ndarray:
    """P-values (K,) of K scores, corrected for their number.

    Args:
        bits: (K, T, T) what target i's posterior says of target j's label; a score is the mean over i = j.
        seed: of the permutations of the labels.
    """
    size = bits.shape[1]
    rng = stream(seed, "find_hypotheses")
    orders = np.array([np.arange(size), *(rng.permutation(size) for _ in range(_PERMUTATIONS))])
    scores = bits[:, np.arange(size), orders].mean(2)
    spread = scores.std(1, keepdims=True)
    scaled = np.divide(
        scores - scores.mean(1, keepdims=True), spread, out=np.zeros_like(scores), where=spread > 1e-12
    )
    # Rounding must not tell the identity from permutations that are the same.
    return (scaled.max(0)[None] >= scaled[:, :1] - 1e-9).mean(1)


def _scores(known: LabelTable, posterior: Posterior, targets: np.ndarray) -> np.ndarray:
    """(F,) share of what a posterior tells that each function explains."""
    match = posterior.match(known.table, targets)
    own = known.own[:, targets].T
    each = np.take_along_axis(match, own, 1)
    return posterior.bits(each, known.p[own], targets).mean(0) / max(posterior.told[targets].mean(), LEAST)


def _choose(known: LabelTable, scores: np.ndarray, n: int) -> tuple[list[int], dict[int, list[str]]]:
    """The n best functions with a score above 0, and for each of them the others that are nearly the same, best first.

    Of functions that explain the same percentage, that with the least entropy is better: the others say more than the site tells.
    """
    aliases: dict[int, list[str]] = {}
    for f in map(int, np.lexsort((known.entropy, -np.round(scores, 2)))):
        if scores[f] <= 0:
            break
        names = [str(one) for one in known.names[f]]
        like = next((kept for kept in aliases if known.agreement(kept, f) >= AGREE), None)
        if like is not None:
            aliases[like] += names
        elif len(aliases) < n:
            aliases[f] = names[1:]
        else:
            break
    return list(aliases), aliases


def _together(known: LabelTable, posterior: Posterior, accepted: Sequence[int]) -> dict[int, float]:
    """What accepted functions, each with those before it, tell in bits on the testing half; one that adds nothing is left out."""
    n, size = len(known.mass), known.own.shape[1]
    joint, best, told, result = np.zeros(n + size, np.int64), 0.0, 0.0, {}
    for f in accepted:
        both = np.unique(joint * (int(known.codes[f].max()) + 1) + known.codes[f], return_inverse=True)[1]
        coded = Coded.of(both, n)
        match = posterior.match(coded.table, np.arange(size))[np.arange(size), coded.own, None]
        p = (known.mass @ coded.table)[coded.own, None]
        bits = posterior.bits(match, p, np.arange(size))[:, 0]
        if bits[0::2].mean() > best + ADDS:
            joint, best, told = both, bits[0::2].mean(), bits[1::2].mean()
        result[f] = float(told)
    return result


def _entropy(p: np.ndarray) -> float:
    return float(-(p[p > 0] * np.log2(p[p > 0])).sum())


def _numbered(codes: np.ndarray) -> np.ndarray:
    """Codes (N,) by order of appearance, so that equal partitions are equal arrays."""
    _, first, place = np.unique(codes, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[place]
