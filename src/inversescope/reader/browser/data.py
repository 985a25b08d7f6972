"""What the browser shows: sites, target prompts, tables of rates, and samples with their distances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

#: How a source's stored samples are weighed, and the estimator of tables that does the same.
Kind = Literal["generated", "cache"]


class Texts:
    """Distinct texts, each with its labels: samples and target prompts are numbers in this table.

    A text may be there twice, as a prompt and as none: a candidate that did not end reads like a prompt and has no labels.

    Args:
        feature_values: feature -> its labels.

    Attributes:
        texts: in the order in which they were added.
    """

    def __init__(self, feature_values: Mapping[str, Sequence[str]]) -> None:
        self.feature_values = {name: list(values) for name, values in feature_values.items()}
        self.texts: list[str] = []
        self._number: dict[tuple[str, bool], int] = {}
        self._codes: list[np.ndarray] = []
        self._log_prior: list[np.ndarray] = []

    def add(
        self, texts: Sequence[str], codes: Mapping[str, np.ndarray], log_prior: np.ndarray | None = None
    ) -> np.ndarray:
        """Numbers (n,) of texts, which may be known already.

        Args:
            texts: n of them.
            codes: feature -> positions (n,) in its labels, -1 = none (a text that is no prompt has no labels).
            log_prior: (n,) nats; all alike if absent. Weights by prior over q use it.
        """
        labels = np.array([codes[name] for name in self.feature_values]).reshape(-1, len(texts))
        prior = np.zeros(len(texts)) if log_prior is None else np.asarray(log_prior, np.float64)
        prompts = [bool(one) for one in np.any(labels >= 0, axis=0)]
        keys = list(zip(texts, prompts, strict=True))
        fresh = []
        for row, key in enumerate(keys):
            if key not in self._number:
                self._number[key] = len(self.texts)
                self.texts.append(key[0])
                fresh.append(row)
        self._codes.append(labels[:, fresh])
        self._log_prior.append(prior[fresh])
        return np.array([self._number[key] for key in keys], np.int64)

    @property
    def codes(self) -> np.ndarray:
        """Label of each text, by feature (F, N); -1 = none."""
        return np.concatenate([np.zeros((len(self.feature_values), 0), np.int64), *self._codes], 1)

    @property
    def log_prior(self) -> np.ndarray:
        """(N,) nats."""
        return np.concatenate([np.zeros(0), *self._log_prior])


@dataclass(frozen=True)
class Source:
    """Where samples come from: a variant's generator, or the cache.

    Attributes:
        name: as in the column `variant` of tables; `cache`.
        kind: `generated`: candidates, in the order in which they were drawn; `cache`: cached prompts, the nearest first.
        label: for readers.
        colour: hexadecimal.
        bandwidth: at which its candidates were drawn, as in the column `bandwidth` of tables; the slider begins there.
        decoding: how, as in the column `decoding` of tables.
    """

    name: str
    kind: Kind = "generated"
    label: str = ""
    colour: str = "#767676"
    bandwidth: str = ""
    decoding: str = ""


@dataclass(frozen=True)
class Draws:
    """Samples of one source at one site, n of them, sorted by target; those of a target in the source's order.

    Attributes:
        site: label.
        source: name.
        target: (n,) which target each belongs to.
        text: (n,) numbers in the table of texts.
        distance: (n,) float32 to the target's activation; NaN: it is no prompt, so it has no activation.
        log_q: (n,) nats, as each was drawn; None: the source has no q.
        reach: of a cache, (T,) the distance up to which all neighbours of each target are among these; None: everywhere.
    """

    site: str
    source: str
    target: np.ndarray
    text: np.ndarray
    distance: np.ndarray
    log_q: np.ndarray | None = None
    reach: np.ndarray | None = None


@dataclass(frozen=True)
class BrowserData:
    """Everything that one page shows. Tables may be empty: the page leaves out what is not there.

    Attributes:
        title: of the page.
        about: lines on what this is and how it was made.
        sites: labels, in the order of tables.
        texts: the table of texts. Features are its features, the ones shown first come first.
        targets: (T,) numbers of the target prompts in the table of texts.
        sources: where samples come from. The first two are shown side by side at first.
        draws: samples, a (site, source) each.
        bandwidths: columns site, bandwidth, epsilon, share: what each bandwidth of the tables is at each site.
        headline: the bandwidth that is shown first.
        rates: `fcr.csv`, or rows like its.
        refusal: `refusal.csv`, or rows like its.
        exact: columns site, target_id, fcr_{feature}: exact rates of single targets at the headline bandwidth; kept to four digits.
        effects: `causes.csv`.
        hypotheses: a row each. `site` says where it was found, `meaning` is shown when it is pointed at. Where `accepted` is false
            it is grey. All other columns are shown as they are.
        chance: feature -> the rate of a guess.
        counted: (T,) bool, the targets that rates are over; all if absent.
        kernel: its kind.
        distance: its name.
        unit: of what is coloured where it agrees with the target.
    """

    title: str
    sites: Sequence[str]
    texts: Texts
    targets: np.ndarray
    sources: Sequence[Source]
    draws: Iterable[Draws]
    bandwidths: pd.DataFrame
    headline: str
    about: Sequence[str] = ()
    rates: pd.DataFrame = field(default_factory=pd.DataFrame)
    refusal: pd.DataFrame = field(default_factory=pd.DataFrame)
    exact: pd.DataFrame = field(default_factory=pd.DataFrame)
    effects: pd.DataFrame = field(default_factory=pd.DataFrame)
    hypotheses: pd.DataFrame = field(default_factory=pd.DataFrame)
    chance: Mapping[str, float] = field(default_factory=dict)
    counted: np.ndarray | None = None
    kernel: str = "hard"
    distance: str = "cosine"
    unit: Literal["word", "character"] = "word"
