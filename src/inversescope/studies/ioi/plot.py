"""Stages `draw_exact`, `plot_figures`, `plot_study`, `plot_frontier`, `make_report`: from tables to pictures, without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.dataset as ds

from inversescope.config import Config
from inversescope.context import Context, echo, need
from inversescope.figures.tables import (
    PLAIN,
    example_heads,
    highest_and_median_head,
    select,
    tidy,
)
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values
from inversescope.store import read_table, write_table
from inversescope.streams import stream
from inversescope.studies.ioi import figures
from inversescope.studies.ioi import samples as tables

GENERATOR = "inversescope"
#: Variants that every figure shows side by side.
VARIANTS = ("paper", "default")
#: The target prompt that Figure 2 and Table 1 show: the first one, so that nobody picks.
SHOWN_TARGET = 0
#: Bandwidths of the paper's Figure 9.
FIG9_EPSILONS = (0.05, 0.10, 0.15)
_AGREEMENT_BINS = 200
_FEWEST_IN_BIN = 50
_MOST_TARGETS = 200
_BLOCK = 1 << 16


def figure_path(root: Path, task: str, model: str, name: str) -> Path:
    """Path of a figure without its suffix."""
    return root / "results" / "figures" / f"{task}_{model}_{name}"


def table_path(root: Path, task: str, model: str, name: str) -> Path:
    """Path of a table without its suffix."""
    return root / "results" / "tables" / f"{task}_{model}_{name}"


def draw_exact(context: Context) -> None:
    """Draw from the exact P(x; z) at the heads that figures show, from the reference split: no generator.

    Writes results/{task}/{model}/exact_draws.parquet (site, target_id, draw, text, distance, feature_*:
    kernel-weighted draws without replacement for the target that Figure 2 and Table 1 show) and
    exact_agreement.csv (site, distance, n, agreement: share of reference prompts that keep the target's first
    headline feature, by bins of distance, over the targets).

    Raises:
        InputError: fcr.csv, prompts or activations are missing.
    """
    config = context.config
    feature, epsilon, kernel = config.fcr.features[0], config.kernel.epsilon, config.kernel
    fcr = _fcr(context)
    curves = _fig8_heads(fcr, config)
    prompts = context.prompts("test")
    reference = context.prompts("reference")
    names = [name for name in reference.columns if name.startswith("feature_")]
    labels, values = pd.factorize(reference[f"feature_{feature}"].astype(str))
    wanted = pd.Index(values).get_indexer(prompts[f"feature_{feature}"].astype(str))
    draws, agreement = [], []
    metric = distance_of(kernel.distance)
    for site in _shown_heads(fcr, config):
        targets = metric.prepare(np.asarray(context.activations("test", site)))
        keys = context.activations("reference", site)
        count = min(len(targets), _MOST_TARGETS) if site in curves else SHOWN_TARGET + 1
        near = np.empty(len(keys), np.float32)
        totals = np.zeros((2, _AGREEMENT_BINS + 1))
        width = (2.0 if kernel.distance == "cosine" else 8 * epsilon) / _AGREEMENT_BINS
        for low in range(0, len(keys), _BLOCK):
            block = slice(low, low + _BLOCK)
            d = metric.between(targets[:count], metric.prepare(np.asarray(keys[block])))
            near[block] = d[SHOWN_TARGET]
            if site in curves:
                bins = np.clip((d / width).astype(np.int64), 0, _AGREEMENT_BINS)
                same = labels[block][None, :] == wanted[:count, None]
                totals[0] += np.bincount(bins.ravel(), minlength=_AGREEMENT_BINS + 1)
                totals[1] += np.bincount(bins[same], minlength=_AGREEMENT_BINS + 1)
        weight = kernel_values(near, epsilon, kernel.kind)
        size = min(tables.SHOWN_TABLE1, int((weight > 0).sum()))
        if size:
            rng = stream(config.seed, "draw_exact", site)
            picks = rng.choice(len(keys), size=size, replace=False, p=weight / weight.sum())
            part = reference.iloc[picks][["text", *names]].assign(distance=near[picks].astype(np.float64))
            part[names] = part[names].astype(str)
            draws.append(part.assign(site=site, target_id=SHOWN_TARGET, draw=np.arange(size)))
        if site in curves:
            seen = np.flatnonzero(totals[0, :-1] >= _FEWEST_IN_BIN)
            share = totals[1, seen] / totals[0, seen]
            agreement.append(
                pd.DataFrame(
                    {
                        "site": site,
                        "distance": (seen + 0.5) * width,
                        "n": totals[0, seen].astype(int),
                        "agreement": share,
                    }
                )
            )
        echo(
            f"draw_exact: {site}, {int((weight > 0).sum())} of {len(keys)} reference prompts in the shown ball"
        )
    columns = ["site", "target_id", "draw", "text", "distance", *names]
    table = pd.concat(draws, ignore_index=True)[columns] if draws else pd.DataFrame(columns=columns)
    write_table(table, context.results / "exact_draws.parquet")
    write_table(pd.concat(agreement, ignore_index=True), context.results / "exact_agreement.csv")


def plot_figures(context: Context) -> None:
    """Draw every figure and sample table of one study but those of `plot_study`.

    Reads fcr.csv, refusal.csv, coverage.csv, exact_draws.parquet, exact_agreement.csv,
    training/inversescope/{paper,default}.csv, samples/inversescope/{paper,default}/*.parquet under
    results/{task}/{model}, and the test prompts; writes results/figures/{task}_{model}_{figure}.{png,pdf,csv}
    and results/tables/{task}_{model}_{table}.{csv,md}.

    Raises:
        InputError: a table, or rows that a figure needs, are missing; the message names the rule that makes
        them.
    """
    root, config = context.root, context.config
    task, model = context.task_name, context.model_name
    epsilon, features = config.kernel.epsilon, config.fcr.features
    feature = features[0]
    fcr, refusal = _fcr(context), _read(context, "refusal.csv", "collect_tables")
    coverage = _read(context, "coverage.csv", "collect_tables")
    exact, agreement = (
        _read(context, "exact_draws.parquet", "draw_exact"),
        _read(context, "exact_agreement.csv", "draw_exact"),
    )
    prompts = context.prompts("test")
    for name in prompts.columns:
        if name.startswith("feature_"):
            prompts[name] = prompts[name].astype(str)
    logs = {
        v: read_table(need(context.training_log(GENERATOR, v), f"train_generator (variant {v})"))
        for v in VARIANTS
    }

    def out(name: str) -> Path:
        echo(f"plot_figures: {name}")
        return figure_path(root, task, model, name)

    headline = tuple(features[:2])
    paper = _paper_variants(config)
    curves = _fig8_heads(fcr, config)
    examples = example_heads(fcr, features, epsilon)
    plain = {
        variant: {site: _samples(context, variant, site, PLAIN, epsilon) for site in {*curves, *examples}}
        for variant in VARIANTS
    }
    beside = tables.fig2_examples(plain, exact, prompts, curves, SHOWN_TARGET, feature)
    figures.plot_fig2(fcr, beside, out("fig2"), epsilon, feature)
    figures.plot_fig4(fcr, out("fig4"), epsilon, headline)
    figures.plot_scatter(fcr, out("scatter"), epsilon, headline)
    figures.plot_refusal(refusal, out("refusal"), epsilon)
    figures.plot_controls(fcr, out("controls"), epsilon, headline)
    figures.plot_estimators(fcr, coverage, out("estimators"), headline)
    figures.plot_fcr_vs_eps(fcr, out("fcr_vs_eps"), paper, headline, epsilon)
    wanted = [e for e in FIG9_EPSILONS if any(np.isclose(e, v) for v in config.epsilons_of("default"))]
    figures.plot_fig9(fcr, out("fig9"), wanted or config.epsilons_of("default")[-3:], paper, feature)
    noised = {
        variant: {site: _samples(context, variant, site, "noised", epsilon) for site in curves}
        for variant in VARIANTS
    }
    figures.plot_fig8(
        tables.fig8_points(noised, prompts, curves, feature), agreement, curves, out("fig8"), epsilon, feature
    )
    figures.plot_training(logs, out("training"))
    shown = tables.table1(plain, exact, prompts, examples, SHOWN_TARGET, features)
    tables.write_table1(shown, table_path(root, task, model, "table1"), epsilon)
    order, failed = _failures(context, refusal, epsilon)
    tables.write_failures(
        tables.failures(failed, prompts, order), table_path(root, task, model, "failures"), epsilon
    )


def plot_study(context: Context) -> None:
    """Draw the figures of the study over dimension, training time and seeds, and of the ablations.

    Reads study.csv and ablations.csv under results/{task}/{model}; writes
    results/figures/{task}_{model}_{misleads,ablations}.* and the claim's numbers as
    results/tables/{task}_{model}_misleads.csv.

    Raises:
        InputError: a table is missing, or has no rows at the headline bandwidth.
    """
    from inversescope.studies.variants.figures import misleading_claim

    root, config = context.root, context.config
    task, model = context.task_name, context.model_name
    study, ablations = (_read(context, name, "collect_study") for name in ("study.csv", "ablations.csv"))
    epsilon = config.kernel.epsilon
    figures.plot_misleads(study, figure_path(root, task, model, "misleads"), epsilon)
    ablations = ablations[ablations["epsilon"] == config.kernel.epsilon]
    figures.plot_ablations(ablations, figure_path(root, task, model, "ablations"))
    claim = misleading_claim(study, epsilon, config.fcr.confidence)
    write_table(claim, table_path(root, task, model, "misleads").with_suffix(".csv"))


def plot_frontier(context: Context) -> None:
    """Draw Figure 5 and what it hides: InverseScope beside InversionView, by refusal, seconds, FCR error and entropy.

    Reads frontier.csv, frontier_time.csv, frontier_heads.csv and frontier_pairs.csv under results/{task}/{model}; writes
    results/figures/{task}_{model}_{fig5,refusal_seconds,frontier}.* and
    results/tables/{task}_{model}_{fig5_methods,frontier_matched}.{csv,md}.

    Raises:
        InputError: a table is missing.
    """
    root, config = context.root, context.config
    task, model = context.task_name, context.model_name
    frontier, time, heads, pairs = (
        _read(context, f"{name}.csv", "collect_frontier")
        for name in ("frontier", "frontier_time", "frontier_heads", "frontier_pairs")
    )
    epsilon = config.kernel.epsilon
    figures.plot_fig5(heads, frontier, figure_path(root, task, model, "fig5"), epsilon)
    figures.plot_refusal_seconds(time, figure_path(root, task, model, "refusal_seconds"), epsilon)
    figures.plot_frontier(frontier, figure_path(root, task, model, "frontier"), epsilon)
    figures.write_fig5_methods(pairs, table_path(root, task, model, "fig5_methods"), epsilon)
    figures.write_frontier_matched(
        frontier, table_path(root, task, model, "frontier_matched"), config.fcr.confidence
    )
    echo("plot_frontier: " + ", ".join([*figures.FRONTIER_FIGURES, *figures.FRONTIER_TABLES]))


def make_report(context: Context) -> None:
    """Write results/report.html and results/tables/{task}_{model}_headline.{csv,md}, the numbers and goals.

    Raises:
        InputError: a table or a figure of `plot_figures` is missing; what `plot_study` makes is named as not
        run instead.
    """
    from inversescope.report.page import write_report

    write_report(context.root, context.config, context.task_name, context.model_name)


def _read(context: Context, name: str, rule: str) -> pd.DataFrame:
    return read_table(need(context.results / name, rule))


def _fcr(context: Context) -> pd.DataFrame:
    """Tidy fcr.csv of one study."""
    return tidy(_read(context, "fcr.csv", "collect_tables"))


def _fig8_heads(fcr: pd.DataFrame, config: Config) -> dict[str, str]:
    """The two heads of Figures 2 and 8, and why."""
    feature = config.fcr.features[0]
    exact = select(fcr, estimator="exact", feature=feature, epsilon=config.kernel.epsilon).drop_duplicates(
        "site"
    )
    reasons = (f"highest exact {feature} FCR", f"median exact {feature} FCR")
    return dict(zip(highest_and_median_head(exact), reasons, strict=False))


def _shown_heads(fcr: pd.DataFrame, config: Config) -> list[str]:
    """Heads of which exact draws are shown anywhere."""
    return list(
        dict.fromkeys(
            [*_fig8_heads(fcr, config), *example_heads(fcr, config.fcr.features, config.kernel.epsilon)]
        )
    )


def _paper_variants(config: Config) -> dict[float, str]:
    """Bandwidth -> variant of the paper's method that was trained at it and is read there."""
    found: dict[float, str] = {}
    for name in sorted(config.studied_variants, key=lambda n: (len(n), n)):
        if name == "paper" or name.startswith("paper_eps"):
            found.setdefault(config.epsilons_of(name)[0], name)
    return found


def _samples(context: Context, variant: str, site: str, decoding: str, epsilon: float) -> pd.DataFrame:
    """Raw candidates of a variant at a site, one decoding and bandwidth. Raises `InputError` if there is none."""
    path = need(
        context.samples_path(GENERATOR, variant, site), f"sample_prompts (variant {variant}, site {site})"
    )
    near = (pc.field("epsilon") > epsilon * (1 - 1e-6)) & (pc.field("epsilon") < epsilon * (1 + 1e-6))
    rows = ds.dataset(path).to_table(filter=near & (pc.field("decoding") == decoding)).to_pandas()
    if rows.empty:
        select(rows.assign(decoding=""), str(path), decoding=decoding)
    for name in rows.columns:
        if name.startswith("feature_"):
            rows[name] = rows[name].astype(object).where(rows[name].notna(), "").astype(str)
    return rows.sort_values(["target_id", "draw"], kind="stable").reset_index(drop=True)


def _failures(
    context: Context, refusal: pd.DataFrame, epsilon: float
) -> tuple[dict[str, list[str]], dict[str, dict[str, pd.DataFrame]]]:
    """Sites of each variant by falling refusal, and candidates of as many of them as the failure table needs."""
    order: dict[str, list[str]] = {}
    found: dict[str, dict[str, pd.DataFrame]] = {}
    rows = tidy(refusal)
    for variant in VARIANTS:
        part = select(rows, "refusal.csv", variant=variant, decoding=PLAIN, epsilon=epsilon)
        order[variant] = list(
            part.sort_values("refusal_rate", ascending=False, kind="stable")["site"].drop_duplicates()
        )
        # Enough sites to fill both lists, though not each site has both kinds of failure.
        order[variant] = order[variant][: 3 * tables.SHOWN_FAILURES]
        found[variant] = {site: _samples(context, variant, site, PLAIN, epsilon) for site in order[variant]}
    return order, found
