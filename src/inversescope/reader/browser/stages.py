"""Stage `make_browser`: the browser of one experiment, from its tables and samples, without torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from inversescope.config.methods import PLAIN
from inversescope.context import Context, echo, need
from inversescope.figures.style import GREEN, GREY
from inversescope.kernel.kernel import support_radius
from inversescope.kernel.neighbours import Cache
from inversescope.progress import Progress
from inversescope.reader.browser.data import BrowserData, Draws, Source, Texts
from inversescope.reader.browser.document import page
from inversescope.store import atomic_path, read_table
from inversescope.workflow import paths
from inversescope.workflow.plan import weights_note

#: Cached prompts of a target at a site that are shown at most.
NEIGHBOURS = 200


def make_browser(context: Context) -> None:
    """Write results/browser/{task}_{model}.html, a page that needs no other file.

    Raises:
        InputError: a table or samples are missing; names the rule that makes them.
    """
    text = page(study_data(context))
    with atomic_path(context.path(paths.BROWSER)) as part:
        part.write_text(text, encoding="utf-8")
    echo(f"make_browser: {len(context.plan.sites)} sites, {len(text.encode()) / 1e6:.1f} MB")


def study_data(context: Context) -> BrowserData:
    """What the page shows of an experiment: tables as they are, samples of all its variants, and the nearest cached prompts."""
    plan, config, task = context.plan, context.config, context.task
    headline = list(dict.fromkeys([*config.fcr.features, *task.features]))
    texts = Texts({name: task.feature_values[name] for name in headline})
    test = context.prompts("test", columns=["prompt_id", "text"])
    targets = _entered(context, texts, test)
    sources = [
        Source(
            name,
            label=config.variant(name).label or name,
            colour=config.variant(name).colour or GREY,
            bandwidth=str(config.bandwidth_of(name)),
            decoding=_decoding(context, name),
        )
        for name in sorted(plan.studied, key=lambda name: name != "default")
    ]
    cache = Source("cache", "cache", "nearest cached prompts", GREEN, str(config.kernel.headline))
    rates = read_table(need(context.results / "fcr.csv", "collect_tables"))
    causes = context.results / "causes.csv"
    notes = [
        f"{len(plan.sites)} sites, {len(test)} target prompts, {config.kernel.headline.label} unless another bandwidth is named.",
        weights_note(config, f"{context.task_name}_{context.model_name}_"),
    ]
    return BrowserData(
        title=f"{context.task_name} on {context.model_name}",
        about=[note for note in notes if note],
        sites=plan.labels,
        texts=texts,
        targets=targets,
        sources=[*sources, cache],
        draws=[*_generated(context, texts), *_cached(context, texts)],
        bandwidths=rates[["site", "bandwidth", "epsilon", "share"]].drop_duplicates(["site", "bandwidth"]),
        headline=str(config.kernel.headline),
        rates=rates,
        refusal=read_table(need(context.results / "refusal.csv", "collect_tables")),
        exact=_exact(context),
        effects=read_table(need(causes, "check_causes")) if plan.settings.patched else pd.DataFrame(),
        hypotheses=_hypotheses(context),
        chance=dict(zip(rates["feature"], rates["chance"], strict=True)),
        counted=task.counted(test["prompt_id"].to_numpy()),
        kernel=config.kernel.kind,
        distance=config.kernel.distance,
        unit=task.token_unit,
    )


def _entered(context: Context, texts: Texts, prompts: pd.DataFrame) -> np.ndarray:
    """Numbers (n,) of prompts (columns prompt_id, -1 = none of the prior, and text) in the table of texts."""
    index = prompts["prompt_id"].to_numpy().astype(np.int64)
    known, back = np.unique(index, return_inverse=True)
    codes = {name: labels[back] for name, labels in context.task.features_of(known).items()}
    return texts.add(prompts["text"].tolist(), codes, context.task.log_prior(known)[back])


def _decoding(context: Context, variant: str) -> str:
    """The decoding whose samples are shown: plain if the variant has it."""
    known = context.config.decodings_of(variant, own=True, is_head=True)
    return PLAIN if PLAIN in known else known[0]


def _generated(context: Context, texts: Texts) -> Iterator[Draws]:
    """Candidates of each variant at its own bandwidth, in the order in which they were drawn."""
    plan, config = context.plan, context.config
    progress = Progress("make_browser: samples", len(plan.studied) * len(plan.sites), echo)
    columns = ["target_id", "draw", "text", "prompt_id", "distance", "logq", "epsilon", "decoding"]
    for v, variant in enumerate(plan.studied):
        for s, site in enumerate(plan.labels_of([variant])):
            path = context.samples_path(config.variant(variant).generator, variant, site)
            rows = read_table(need(path, "sample_prompts"), columns)
            own = np.isclose(
                rows["epsilon"], context.epsilon(config.bandwidth_of(variant), site), rtol=1e-6, atol=0
            )
            rows = rows[own & (rows["decoding"] == _decoding(context, variant))]
            rows = rows.sort_values(["target_id", "draw"], kind="stable")
            yield Draws(
                site,
                variant,
                rows["target_id"].to_numpy(),
                _entered(context, texts, rows),
                rows["distance"].to_numpy(np.float32),
                rows["logq"].to_numpy(float),
            )
            progress(v * len(plan.sites) + s + 1, f"{variant} {site}")


def _cached(context: Context, texts: Texts) -> Iterator[Draws]:
    """The nearest cached prompts of each target, as far as the widest bandwidth that is read."""
    kernel = context.config.kernel
    number = _entered(context, texts, context.prompts("train", columns=["prompt_id", "text"]))
    progress = Progress("make_browser: cached prompts", len(context.plan.sites), echo)
    for s, site in enumerate(context.plan.labels):
        cache = Cache(np.array(context.activations("train", site)), kernel.distance)
        queries = cache.prepare(np.array(context.activations("test", site)))
        radius = float(support_radius(max(context.epsilons(site)), kernel.kind))
        near = cache.search(queries, radius)
        owner = np.repeat(np.arange(len(queries)), near.counts)
        order = np.lexsort((near.rows, near.distance, owner))
        owner, rows, distance = owner[order], near.rows[order], near.distance[order]
        rank = np.arange(len(owner)) - np.repeat(near.start[:-1], near.counts)
        kept, reach = rank < NEIGHBOURS, np.full(len(queries), radius)
        reach[owner[rank == NEIGHBOURS]] = distance[rank == NEIGHBOURS]
        yield Draws(site, "cache", owner[kept], number[rows[kept]], distance[kept], reach=reach)
        progress(s + 1, site)


def _hypotheses(context: Context) -> pd.DataFrame:
    """What was proposed at each site, and how it stood the test; nothing where nobody asked for it."""
    path = context.results / "hypotheses.csv"
    columns = ["site", "hypothesis", "meaning", "accepted", "explains", "rate", "chance", "p"]
    return read_table(path, columns)[columns] if path.exists() else pd.DataFrame()


def _exact(context: Context) -> pd.DataFrame:
    """Exact rates of single targets at the headline bandwidth, all sites."""
    parts = []
    for site in context.plan.labels:
        rows = read_table(need(context.path(paths.EXACT, site=site), "compute_exact"))
        own = np.isclose(rows["epsilon"], context.headline(site), rtol=1e-6, atol=0)
        parts.append(rows[own].assign(site=site))
    return pd.concat(parts, ignore_index=True)
