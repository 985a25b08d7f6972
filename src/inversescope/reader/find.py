"""Stages `find_hypotheses` and `collect_hypotheses`: what samples and cached neighbours tell, named without a human."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from inversescope.config.methods import PLAIN, Bandwidth
from inversescope.context import Context, echo, need
from inversescope.fcr.cells import SiteCells
from inversescope.fcr.estimators import GeneratorDraws, mixture_log_weights, relative_weights
from inversescope.fcr.generated import VariantCells
from inversescope.kernel.bandwidths import epsilons_of_shares
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values, support_radius, truncate_weights
from inversescope.kernel.neighbours import Neighbours
from inversescope.progress import Progress
from inversescope.reader.hypotheses import COLUMNS, LabelTable, propose
from inversescope.reader.proposer import Chat, Said, chat_with, message
from inversescope.reader.wordings import PROMPTS, groupings
from inversescope.store import read_table, write_table
from inversescope.streams import stream
from inversescope.tasks.functions import Corpus
from inversescope.workflow import paths

MOST = 40_000  # prompts of the prior whose labels are held; of more, a random choice

TABLE = [
    *("task", "model", "site", "layer", "head", "estimator", "variant", "epsilon", "share"),
    *COLUMNS,
    *("n_lines", "n_read", "unread"),
]


def find_hypotheses(context: Context, sites: Sequence[str]) -> None:
    """Propose label functions at each site, and test them.

    Where there are variants, the headline bandwidth is read from cached neighbours and candidates of one of them, combined; all
    other bandwidths from cached neighbours. Without variants, reference prompts take the place of the cache.

    Writes results/.../hypotheses/{site}.csv, a row a hypothesis that was tested; none where nothing is told.
    """
    readers = _Readers(context, sites)
    progress = Progress("find_hypotheses", len(sites), echo)
    for done, label in enumerate(sites, 1):
        found = readers.propose(label)
        write_table(found, context.path(paths.SITE_TABLE, table="hypotheses", site=label))
        accepted = found[found["accepted"].astype(bool)]
        best = accepted["hypothesis"].iloc[0] if len(accepted) else "nothing"
        progress(done, f"{label}: {best}")


def hypotheses_at(context: Context, label: str) -> pd.DataFrame:
    """Hypotheses at one site: as `find_hypotheses` wrote them, or found now, with candidates if there are any."""
    written = context.path(paths.SITE_TABLE, table="hypotheses", site=label)
    if written.exists():
        return read_table(written)
    name = context.plan.leading
    drawn = name and context.samples_path(context.config.variant(name).generator, name, label).exists()
    return _Readers(context, [label], bool(drawn)).propose(label)


def collect_hypotheses(context: Context) -> None:
    """Concatenate the sites' tables to hypotheses.csv."""
    labels = context.plan.labels
    files = [context.path(paths.SITE_TABLE, table="hypotheses", site=label) for label in labels]
    parts = [read_table(need(file, "find_hypotheses")) for file in files]
    kept = [part for part in parts if len(part)] or parts[:1]
    write_table(pd.concat(kept, ignore_index=True), context.path(paths.RESULT, file="hypotheses.csv"))
    echo(f"collect_hypotheses: {sum(map(len, parts))} hypotheses at {len(labels)} sites")


class _Readers:
    """What all sites of a job share: prompts, candidates, and their labels.

    Args:
        drawn: whether candidates are read.

    Attributes:
        variant: whose candidates are read; None: nobody's.
        split, rows: prompts that stand for the prior, by split and row, ascending.
        index: their numbers (N,), and behind them those of candidates.
        test, counted: numbers of the target prompts, and which of them count.
    """

    def __init__(self, context: Context, sites: Sequence[str], drawn: bool = True) -> None:
        self.context, self.variant = context, context.plan.leading if drawn else None
        self.split = context.plan.drawn_split
        every = context.prompt_ids(self.split)
        self.rows = np.arange(len(every))
        if len(every) > MOST:
            rng = stream(context.config.seed, "find_hypotheses", "texts")
            self.rows = np.sort(rng.choice(len(every), MOST, replace=False))
        self.drawn = {label: self._candidates(label) for label in sites}
        accepted = [
            one.loc[one["accepted"], "prompt_id"].to_numpy(np.int64)
            for one in self.drawn.values()
            if one is not None
        ]
        self.extra = np.unique(np.concatenate([np.zeros(0, np.int64), *accepted]))
        self.index = np.concatenate([every[self.rows], self.extra])
        test = context.prompts("test", columns=["prompt_id", "text"])
        self.test = test["prompt_id"].to_numpy()
        self.counted = np.flatnonzero(context.task.counted(self.test))
        prior = np.concatenate([np.ones(len(self.rows)), np.zeros(len(self.extra))])
        self.labels = LabelTable(
            context.task.texts(self.index), test["text"].iloc[self.counted].tolist(), prior
        )

    @cached_property
    def _others(self) -> tuple[Corpus, np.ndarray]:
        """Some of the prompts that stand for the prior, none of them a target prompt, and which rows they are."""
        index = self.index[: len(self.rows)]
        rows = np.flatnonzero(~np.isin(index, self.test))
        if len(rows) > PROMPTS:
            rng = stream(self.context.config.seed, "find_hypotheses", "wordings")
            rows = np.sort(rng.choice(rows, PROMPTS, replace=False))
        return Corpus(self.context.task.texts(index[rows])), rows

    def _candidates(self, label: str) -> pd.DataFrame | None:
        """Candidates at the headline bandwidth, if the variant reads the site."""
        context = self.context
        if self.variant is None or label not in context.plan.labels_of([self.variant]):
            return None
        samples = read_table(self._file(label, ".parquet"))
        headline = samples["epsilon"] == context.headline(label, self.variant)
        return samples[headline & (samples["decoding"] == PLAIN)]

    def _file(self, label: str, suffix: str) -> Path:
        assert self.variant is not None
        generator = self.context.config.variant(self.variant).generator
        return need(self.context.samples_path(generator, self.variant, label, suffix), "sample_prompts")

    def propose(self, label: str) -> pd.DataFrame:
        """Hypotheses at one site."""
        context, settings, kernel = self.context, self.context.config.hypotheses, self.context.config.kernel
        metric = distance_of(kernel.distance)
        keys = np.asarray(context.activations(self.split, label))[self.rows]
        queries = np.array(context.activations("test", label))
        # Shares are measured around the half of the targets that chooses.
        radii = epsilons_of_shares(metric, queries[self.counted[0::2]], keys, settings.shares)
        headline = str(kernel.headline)
        epsilons = {headline: context.headline(label, self.variant)}
        epsilons |= {
            str(Bandwidth("share", share)): e for share, e in zip(settings.shares, radii, strict=True)
        }
        distance = metric.between(metric.prepare(queries), metric.prepare(keys))
        distance[self.test[:, None] == self.index[None, : len(self.rows)]] = np.inf
        weights = {name: self._cached(distance, epsilon) for name, epsilon in epsilons.items()}
        mass = {name: one.sum(1, dtype=float) / len(self.rows) for name, one in weights.items()}
        drawn = self.drawn[label]
        if drawn is not None:
            weights[headline], mass[headline] = self._combined(label, drawn, distance, epsilons[headline])
        said = self._said(label, weights[headline])
        found = propose(
            self._tried(keys, said),
            weights,
            mass=mass,
            n=settings.n_tested,
            level=settings.level,
            confidence=context.config.fcr.confidence,
            seed=context.config.seed,
        )
        mixed = (found["bandwidth"] == headline) & (drawn is not None)
        share = {name: float(np.median(one)) for name, one in mass.items()}
        site = context.site(label)
        return found.assign(
            task=context.task_name,
            model=context.model_name,
            site=label,
            layer=site.layer,
            head=site.head if site.head is not None else "",
            estimator=np.where(mixed, "combined", "cache" if self.variant else "exact"),
            variant=np.where(mixed, self.variant or "", ""),
            epsilon=found["bandwidth"].map(epsilons),
            share=found["bandwidth"].map(share),
            n_lines=said.n_lines,
            n_read=said.n_read,
            unread="; ".join(said.unread),
        )[TABLE]

    def _tried(self, keys: np.ndarray, said: Said) -> LabelTable:
        """The functions that are tried at a site: those of the grammar, and others if the configuration asks for them.

        Args:
            keys: (N, ...) activations of the prompts that stand for the prior.
            said: what a chat model proposes.
        """
        settings, known = self.context.config.hypotheses, self.labels
        if settings.wordings and keys.ndim == 2:
            corpus, rows = self._others
            z = distance_of(self.context.config.kernel.distance).prepare(keys[rows])
            known = known.with_functions(groupings(corpus, z), "wordings that the site treats alike")
        if settings.proposer is not None:
            known = known.with_functions(said.functions, f"proposed by {settings.proposer.path}")
        return known

    @cached_property
    def _chat(self) -> Chat:
        settings = self.context.config.hypotheses.proposer
        assert settings is not None
        return chat_with(settings)

    def _said(self, label: str, weights: np.ndarray) -> Said:
        """What a chat model proposes, if one is asked: it is shown texts near some targets of the choosing half, and the prior's.

        Args:
            weights: (T, N) of the targets at the headline bandwidth.
        """
        settings = self.context.config.hypotheses.proposer
        if settings is None:
            return Said()
        n, answers = min(settings.n_texts, len(self.rows)), []
        rng = stream(self.context.config.seed, "find_hypotheses", "proposer", label)
        known = [row for row in weights[0::2] if np.count_nonzero(row) >= n]
        for row in known[: settings.n_targets]:
            alike = np.argsort(-row, kind="stable")[:n]
            others = rng.choice(len(self.rows), n, replace=False)
            shown = (self.context.task.texts(self.index[some]) for some in (alike, others))
            answers.append(self._chat(message(settings.instruction, *shown)))
        said = Said.of(answers)
        told = f"wrote {said.n_lines} lines, of which the grammar reads {said.n_read}"
        if not answers:
            told = f"was not asked, since no target that chooses has {n} texts near it"
        echo(f"find_hypotheses {label}: {settings.path} {told}")
        for fault in said.unread:
            echo(f"find_hypotheses {label}: not read: {fault}")
        return said

    def _cached(self, distance: np.ndarray, epsilon: float) -> np.ndarray:
        """Kernel values (T, N), float32, of the prior's prompts; candidates have none."""
        kind = self.context.config.kernel.kind
        inside = distance < np.float32(support_radius(epsilon, kind))
        result = np.zeros((len(self.counted), len(self.index)), np.float32)
        result[:, : len(self.rows)] = np.where(inside, kernel_values(distance, epsilon, kind), 0.0)[
            self.counted
        ]
        return result

    def _combined(
        self, label: str, drawn: pd.DataFrame, distance: np.ndarray, epsilon: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights (T, N) of cached neighbours and candidates as the estimator `combined` has them, and what they add up to."""
        context, variant, radius = (
            self.context,
            str(self.variant),
            support_radius(epsilon, self.context.config.kernel.kind),
        )
        log_q = read_table(self._file(label, ".cache.parquet"))
        of_cached = {
            target: pd.Series(group["logq"].to_numpy(), index=group["row"].to_numpy())
            for target, group in log_q[log_q["epsilon"] == epsilon].groupby("target_id")
        }
        owner, place = np.nonzero(distance < np.float32(radius))
        start = np.searchsorted(owner, np.arange(len(distance) + 1))
        here = SiteCells(
            context=context,
            site=context.site(label),
            test=self.test,
            left_out=self.test,
            train=context.prompt_ids("train"),
            exact=pd.DataFrame(),
            near=Neighbours(
                start, self.rows[place], distance[owner, place], np.full(len(distance), len(self.rows))
            ),
            nearest=np.zeros(0, np.int64),
            labels={},
            train_labels={},
        )
        settings = context.config.variant(variant)
        reader = VariantCells(
            here, settings.generator, variant, np.intersect1d(context.cache_rows(settings), self.rows)
        )
        groups = dict(list(drawn.groupby("target_id")))
        weights = np.zeros((len(self.counted), len(self.index)), np.float32)
        mass = np.zeros(len(self.counted))
        for i, target in enumerate(map(int, self.counted)):
            found = reader.candidates(groups[target], epsilon)
            rows, cached = reader.cache_draws(target, epsilon, of_cached.get(target))
            unknown = np.full(len(found.index), np.nan)
            draws = GeneratorDraws(unknown, found.kernel, found.log_prior, found.log_density, found.log_q)
            log_weight = mixture_log_weights(cached, draws)
            index = found.index[found.kernel > 0]
            # The target's own prompt would speak for itself.
            log_weight[len(rows) :][index == self.test[target]] = -np.inf
            kept = np.isfinite(log_weight)
            places = np.searchsorted(self.rows, rows), len(self.rows) + np.searchsorted(self.extra, index)
            column = np.concatenate(places)[kept]
            mass[i] = np.exp(log_weight[kept]).sum()
            np.add.at(weights[i], column, truncate_weights(relative_weights(log_weight[kept])))
        return weights, mass
