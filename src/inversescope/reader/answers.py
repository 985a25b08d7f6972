"""Stage `score_readers`: what controls and variants answer to the questions of an experiment, judged by the exact posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from inversescope.config.methods import PLAIN
from inversescope.context import Context, echo, need
from inversescope.errors import InputError
from inversescope.fcr.cells import SiteCells
from inversescope.fcr.estimators import GeneratorDraws, combined_weights
from inversescope.fcr.generated import VariantCells
from inversescope.fcr.posterior import as_shares, exact_posteriors, label_sums
from inversescope.fcr.stages import load_site
from inversescope.kernel.bandwidths import one_position
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import support_radius
from inversescope.progress import Progress
from inversescope.reader.score import CERTAIN, READER, Answers, judged
from inversescope.store import read_table, write_table
from inversescope.workflow import paths

#: Cached prompts that the linear probe is fitted to, at most, and how far their covariance is shrunk towards the identity.
PROBED, SHRINKAGE = 4096, 1e-3
#: Columns of the table of answers in which few values recur.
_NAMES = [*READER, "site", "feature"]

#: Columns of the candidates that are looked at.
_SAMPLES = ["target_id", "prompt_id", "parsed", "distance", "accepted", "logq", "epsilon", "decoding"]


@dataclass(frozen=True)
class Truth:
    """Questions of one experiment with their exact answers.

    Where reference prompts are draws, others may have labels that none of these has. The exact answer gives such a label no
    probability; behind the V - 1 values of a feature all labels that are none of them count as one more.

    Attributes:
        values: feature -> its values; of a label function those that reference and cached prompts have.
        targets: target prompts that the task counts, ascending rows of the test split.
        prior: feature -> (V,) shares of the reference prompts.
    """

    values: dict[str, list[str]]
    targets: np.ndarray
    prior: dict[str, np.ndarray]

    @classmethod
    def of(cls, context: Context) -> Truth:
        """The questions of an experiment: its headline features."""
        task, features = context.task, context.config.fcr.features
        labels, _ = (context.labels_of(context.prompt_ids(split)) for split in ("reference", "train"))
        values = {name: list(task.feature_values[name]) for name in features}
        counts = {n: np.bincount(labels[n][labels[n] >= 0], minlength=len(values[n]) + 1) for n in features}
        counted = np.flatnonzero(task.counted(context.prompt_ids("test")))
        return cls(values, counted, {name: count / count.sum() for name, count in counts.items()})

    def size(self, name: str) -> int:
        """V of a feature."""
        return len(self.prior[name])

    def codes(self, name: str, labels: np.ndarray) -> np.ndarray:
        """Labels (n,) of a feature as codes below V; -1 stays."""
        return np.minimum(labels, len(self.values[name]))


def score_readers(context: Context, variants: Sequence[str], out: str = "") -> None:
    """Judge the answers of controls, and of variants at the sites that each reads, at the headline bandwidth.

    Writes results/.../answers.parquet: reader, estimator, site, feature, target_id and the columns of `score.judged`; and
    results/.../posteriors.parquet, the exact answers: site, feature, target_id, value, probability (positive ones). With `out` the
    variants' answers alone go to results/.../{out}/, and the exact ones are read.
    """
    sites = context.plan.labels_of(variants) if out else context.plan.labels
    truth, progress = Truth.of(context), Progress("score_readers", len(sites), echo)
    reference = {} if out else context.labels_of(context.prompt_ids("reference"))
    known = exact_answers(context, truth) if out else {}
    answers, listed = [], []
    for done, label in enumerate(sites, 1):
        z, z_train = (np.array(context.activations(split, label)) for split in ("test", "train"))
        here = load_site(context, label, z, z_train)
        said: dict[tuple[str, str], dict[str, Answers]] = {}
        if out:
            exact = {name: known[label, name] for name in truth.values}
        else:
            exact = _exact(context, label, z[truth.targets], truth, reference)
            listed.append(_listed(exact, label, truth))
            probe = LinearProbe(one_position(z_train[:PROBED]))
            said = control_answers(here, exact, truth, probe, z[truth.targets])
        for variant in variants:
            if label in context.plan.labels_of([variant]):
                said |= {(variant, name): of for name, of in variant_answers(here, variant, truth).items()}
        answers += _judged(said, exact, truth, label)
        progress(done)
    group = f"{out}/" if out else ""
    table = pd.concat(answers, ignore_index=True)
    write_table(_small(table, _NAMES), context.path(paths.ANSWERS, group=group))
    if listed:
        table = pd.concat(listed, ignore_index=True)
        write_table(_small(table, ["site", "feature", "value"]), context.path(paths.POSTERIORS))
    echo(f"score_readers: {len(sites)} sites, {len(truth.targets)} targets, {len(truth.values)} features")


def _exact(
    context: Context, label: str, z: np.ndarray, truth: Truth, reference: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Exact answers (targets, V) of each feature at a site, from the targets' activations there."""
    kernel = context.config.kernel
    return exact_posteriors(
        distance_of(kernel.distance).prepare(z),
        context.activations("reference", label),
        reference,
        {name: truth.size(name) for name in truth.values},
        context.headline(label),
        kernel.distance,
        kernel.kind,
    )


def _listed(exact: Mapping[str, np.ndarray], label: str, truth: Truth) -> pd.DataFrame:
    """Exact answers (targets, V) of each feature at a site as rows; a question without an answer has none."""
    parts = []
    for name, shares in exact.items():
        row, value = np.nonzero(np.nan_to_num(shares))
        columns = {"site": label, "feature": name, "target_id": truth.targets[row]}
        columns |= {"value": np.array(truth.values[name])[value], "probability": shares[row, value]}
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def exact_answers(context: Context, truth: Truth) -> dict[tuple[str, str], np.ndarray]:
    """Exact answers (targets, V) of each (site, feature), as `score_readers` wrote them; NaN where a question has none."""
    table = read_table(need(context.path(paths.POSTERIORS), "score_readers"))
    found = {}
    for (site, name), rows in table.groupby(["site", "feature"], observed=True):
        values = truth.values[name]
        shares = np.zeros((len(truth.targets), truth.size(str(name))))
        row = np.searchsorted(truth.targets, rows["target_id"])
        shares[row, pd.Index(values).get_indexer(rows["value"].astype(str))] = rows["probability"]
        shares[shares.sum(1) == 0] = np.nan
        found[str(site), str(name)] = shares
    return found


def _judged(
    said: Mapping[tuple[str, str], Mapping[str, Answers]],
    exact: Mapping[str, np.ndarray],
    truth: Truth,
    label: str,
) -> list[pd.DataFrame]:
    """What every reader said at a site, judged feature by feature; questions without an exact answer are left out."""
    parts, readers = [], len(said)
    for name, shares in exact.items():
        asked = ~np.isnan(shares).any(1)
        count = int(asked.sum())
        answers = Answers(
            np.concatenate([of[name].shares[asked] for of in said.values()]),
            np.concatenate([of[name].samples[asked] for of in said.values()]),
        )
        wanted = np.tile(shares[asked], (readers, 1))
        frame = judged(wanted, np.broadcast_to(truth.prior[name], wanted.shape), answers)
        who = {key: np.repeat([one[k] for one in said], count) for k, key in enumerate(READER)}
        asked_of = {"site": label, "feature": name, "target_id": np.tile(truth.targets[asked], readers)}
        parts.append(frame.assign(**who, **asked_of))
    return parts


def _small(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The table with few distinct texts as categories."""
    return frame.assign(**{name: frame[name].astype("category") for name in names})


# ------------------------------------------------------------------------------------------------------------ controls
def control_answers(
    here: SiteCells, exact: Mapping[str, np.ndarray], truth: Truth, probe: LinearProbe, z: np.ndarray
) -> dict[tuple[str, str], dict[str, Answers]]:
    """What is said without a reader of the targets' activations z (targets, d): docs/score.md tells what each control knows.

    Args:
        probe: of the first cached activations at the site.
    """
    context, label, targets = here.context, here.site.label, truth.targets
    near = [here.cached(int(target), context.headline(label)) for target in targets]
    owner = np.repeat(np.arange(len(targets)), [len(rows) for rows, _ in near])
    rows, weight = (np.concatenate(part) for part in zip(*near, strict=True))
    said = {
        ("cache", ""): _told(truth, [(owner, {n: here.train_labels[n][rows] for n in truth.values}, weight)])
    }
    for name in truth.values:
        size, cached = truth.size(name), truth.codes(name, here.train_labels[name])
        by_feature = {
            "exact": Answers.stated(exact[name]),
            "prior": Answers.stated(np.broadcast_to(truth.prior[name], exact[name].shape)),
            "prompt only": Answers.point(truth.codes(name, here.labels[name][targets]), size, CERTAIN),
            "shuffled activation": Answers.stated(np.roll(exact[name], 1, axis=0)),
            "nearest neighbour": Answers.point(cached[here.nearest[targets]], size, 1.0),
            "linear probe": Answers.stated(probe.shares(cached[:PROBED], z, size)),
        }
        for reader, answers in by_feature.items():
            said.setdefault((reader, ""), {})[name] = answers
    return said


class LinearProbe:
    """Linear discriminant analysis of activations (N, d): probabilities of labels, their logarithms linear in an activation."""

    def __init__(self, z: np.ndarray) -> None:
        self.centre = z.mean(0, dtype=np.float64)
        self.z = z - self.centre
        self.scatter = self.z.T @ self.z

    def shares(self, labels: np.ndarray, queries: np.ndarray, size: int) -> np.ndarray:
        """Probabilities (Q, size) of the labels at queries (Q, d), from the labels (N,) of the activations, -1 = none."""
        from scipy import linalg

        known = labels >= 0
        counts = np.bincount(labels[known], minlength=size).astype(float)
        sums = np.eye(size)[labels[known]].T @ self.z[known]
        means = sums / np.maximum(counts, 1.0)[:, None]
        unknown = self.z[~known]
        within = (self.scatter - unknown.T @ unknown - (means * counts[:, None]).T @ means) / max(
            1, known.sum()
        )
        # Some directions tell a label for certain: without this they would have no spread at all.
        within += (SHRINKAGE * np.trace(within) / len(within) + 1e-12) * np.eye(len(within))
        slopes = linalg.solve(within, means.T, assume_a="pos")
        with np.errstate(divide="ignore"):
            constant = np.log(counts / counts.sum()) - 0.5 * (means.T * slopes).sum(0)
        logits = (queries - self.centre) @ slopes + constant
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)


# ------------------------------------------------------------------------------------------------------------ variants
def variant_answers(here: SiteCells, variant: str, truth: Truth) -> dict[str, dict[str, Answers]]:
    """What a variant's candidates say: `generated`, the accepted ones; and `combined` with the cached neighbours.

    Candidates of the variant's headline decoding setting, judged by the headline bandwidth.
    """
    context, epsilon = here.context, here.context.headline(here.site.label)
    rows = context.cache_rows(context.config.variant(variant))
    cells = VariantCells(here, context.plan.generator_of(variant), variant, rows)
    samples, q_of, mixes = _candidates(cells, epsilon)
    drawn = cells.candidates(samples, epsilon)
    owner = np.searchsorted(truth.targets, samples["target_id"].to_numpy())
    said = {"generated": _told(truth, [(owner, drawn.labels, (drawn.kernel > 0).astype(float))])}
    if mixes:
        count = len(truth.targets)
        ends = np.searchsorted(owner, np.arange(count + 1))
        weight, cached_rows, cached_weight = np.zeros(len(owner)), [], []
        for number, target in enumerate(truth.targets):
            part = slice(ends[number], ends[number + 1])
            near, cached = cells.cache_draws(int(target), epsilon, q_of.get(int(target)))
            if cached.log_q is not None and np.isnan(cached.log_q).any():
                raise InputError(
                    f"variant {variant} at site {here.site.label} has no log q of all cached neighbours of target {target}",
                    "run sample_prompts again: the candidates are older than the distances",
                )
            of = [getattr(drawn, name)[part] for name in ("kernel", "log_prior", "log_density", "log_q")]
            both = combined_weights(cached, GeneratorDraws(np.empty(0), *of))
            weight[part][of[0] > 0] = both[len(near) :]
            cached_rows.append(near)
            cached_weight.append(both[: len(near)])
        cached_owner = np.repeat(np.arange(count), [len(near) for near in cached_rows])
        near = np.concatenate(cached_rows)
        labels = {name: here.train_labels[name][near] for name in truth.values}
        cache = cached_owner, labels, np.concatenate(cached_weight)
        said["combined"] = _told(truth, [cache, (owner, drawn.labels, weight)])
    return said


def _told(
    truth: Truth, parts: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray], np.ndarray]]
) -> dict[str, Answers]:
    """What weighted prompts say of each feature.

    Args:
        parts: of the prompts (n,), the question's number among the targets, labels by feature and weights.
    """
    count, said = len(truth.targets), {}
    total, squares = (
        sum(np.bincount(owner, weights=weight**power, minlength=count) for owner, _, weight in parts)
        for power in (1, 2)
    )
    samples = np.divide(np.square(total), squares, out=np.zeros(count), where=np.asarray(squares) > 0)
    for name in truth.values:
        sums = [
            label_sums(owner, truth.codes(name, labels[name]), weight, count, truth.size(name))
            for owner, labels, weight in parts
        ]
        said[name] = Answers(as_shares(np.sum(sums, 0)), samples)
    return said


def _candidates(cells: VariantCells, epsilon: float) -> tuple[pd.DataFrame, dict[int, pd.Series], bool]:
    """Candidates by target under the variant's headline decoding setting, log q of each target's cached neighbours by row where it
    was computed, and whether the variant may be combined with the cache.

    A variant that is not read at the headline bandwidth gives the candidates of its own one, accepted or refused anew.
    """
    context, label, variant = cells.site.context, cells.site.site.label, cells.variant
    samples, log_q = (
        read_table(
            need(context.samples_path(cells.generator, variant, label, suffix), "sample_prompts"), names
        )
        for suffix, names in ((".parquet", _SAMPLES), (".cache.parquet", None))
    )
    trained = context.epsilon(context.config.bandwidth_of(variant), label)
    at = epsilon if epsilon in set(samples["epsilon"]) else trained
    decoding = context.config.decodings_of(variant, at == trained, cells.site.site.head is not None)[0]
    counted = context.task.counted(cells.site.test)[samples["target_id"]]
    samples = samples[(samples["epsilon"] == at) & (samples["decoding"] == decoding) & counted]
    samples = samples.sort_values("target_id", kind="stable")
    if at != epsilon:
        radius = np.float32(support_radius(epsilon, context.config.kernel.kind))
        samples = samples.assign(accepted=samples["parsed"].astype(bool) & (samples["distance"] < radius))
    known = log_q[log_q["epsilon"] == epsilon].groupby("target_id")
    q_of = {int(t): pd.Series(g["logq"].to_numpy(), index=g["row"].to_numpy()) for t, g in known}
    return samples, q_of, decoding == PLAIN and not cells.alone
