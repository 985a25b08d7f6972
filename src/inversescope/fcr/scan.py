"""Stage `score_target`: how clearly a candidate's sites show the features, without any generator."""

from __future__ import annotations

import numpy as np
import pandas as pd

from inversescope.activations.capture import capture
from inversescope.context import Context, centre_of, echo, need
from inversescope.kernel.bandwidths import headline_at
from inversescope.kernel.neighbours import Cache
from inversescope.sites import expand_sites
from inversescope.store import write_table
from inversescope.streams import stream
from inversescope.targets.models import load_target
from inversescope.targets.tokenizers import encode

SCAN_POOL = 16_384  # prior draws that a candidate is scored against
SINGLE_POOL = 2048  # the same where there is one candidate only
SCAN_TARGETS = 64  # prompts whose activations are scored


def score_target(context: Context, candidate: str) -> None:
    """Score a candidate's sites (IOI: heads) against prior draws: FCR of the headline features, without any generator.

    Writes score.csv beside the candidate: site, share of the prior within epsilon, FCR a feature.
    """
    kernel = context.config.kernel
    directory = context.candidate_dir(candidate)
    target = load_target(need(directory / "target.json", "train_target").parent)
    task = context.task
    # Where there is nothing to choose from, a rough score will do.
    size = SCAN_POOL if len(context.config.models[context.model_name].candidates) > 1 else SINGLE_POOL
    index = task.sample(
        min(size, task.split_size("train")), "train", stream(context.config.seed, "score_target")
    )
    sites = expand_sites(list(task.scan_sites), target.n_layers, target.n_heads)
    activations = capture(target, encode(target.tokenizer, task.texts(index)), sites)
    known = context.labels_of(index)
    labels = {name: known[name] for name in context.config.fcr.features}
    rows = []
    for site in sites:
        z = activations[site.label]
        z = z - centre_of(z) if kernel.centred else z
        cache = Cache(z, kernel.distance)
        near = cache.search(cache.keys[:SCAN_TARGETS], headline_at(kernel, z))
        owner = np.repeat(np.arange(len(near.counts)), near.counts)
        row: dict[str, object] = {
            "candidate": candidate,
            "site": site.label,
            "share": near.counts.mean() / cache.size,
        }
        for name, label in labels.items():
            same = label[near.rows] == label[owner]
            row[f"fcr_{name}"] = float((np.bincount(owner, weights=same) / near.counts).mean())
        rows.append(row)
    write_table(pd.DataFrame(rows), directory / "score.csv")
    echo(f"score_target {candidate}: {len(sites)} sites scored")
