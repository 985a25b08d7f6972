"""Stage `extract_activations`: activations of all sites of an experiment for one split, in one forward."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from inversescope import __version__
from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.progress import Progress
from inversescope.store import file_hash, read_activations, write_activations
from inversescope.streams import stream

SHARD = 65_536  # prompts a shard: what a killed run repeats at most


def extract_activations(context: Context, split: str) -> None:
    """Write data/{task}/{model}/activations/{split}/{site}.safetensors for every site of the experiment.

    Works shard by shard and keeps finished shards, so that a killed run goes on where it was; per-site files are put together
    at the end, one site at a time. Distances to prompts are compared by row: row i belongs to prompt i of the split. At position
    `any` a prompt has an activation for each of its tokens, a target prompt one of them, drawn at random.
    """
    from inversescope.activations.positions import capture_prompts
    from inversescope.targets.models import load_target

    index = context.prompts(split, columns=["prompt_id"])["prompt_id"].to_numpy()
    target = load_target(context.made_target())
    sites = context.plan.sites
    size = len(index)
    numbers = sum(target.site_dim(site) for site in sites)
    echo(
        f"extract_activations: {size} prompts, {len(sites)} sites, {4 * size * numbers / 2**20:.0f} MiB to write"
    )
    folder = context.data / "activations" / split
    shards = folder / "shards"
    progress = Progress(f"extract_activations {split}", size, echo)
    meta = {
        "model": target.name,
        "revision": target.revision,
        "weight_processing": "raw_hf",
        "tokenizer_hash": target.tokenizer_hash,
        "prompt_hash": file_hash(context.prompts_path(split)),
        "package_version": __version__,
    }
    starts = range(0, size, SHARD)
    for low in starts:
        paths = {site.label: shards / f"{low:09d}" / f"{site.label}.safetensors" for site in sites}
        if all(_is_done(path, meta) for path in paths.values()):
            continue

        def heard(done: int, _: int, low: int = low) -> None:
            progress(low + done)

        rows = index[low : low + SHARD]
        captured = capture_prompts(context.task, target, rows, sites, progress=heard)
        for site in sites:
            z = captured[site.label]
            if split == "test" and site.position == "any":
                # What is asked about is one activation: of a token of the prompt, drawn at random.
                rng = stream(context.config.seed, "extract_activations", site.label, low)
                z = z[np.arange(len(z)), rng.integers(z.shape[1], size=len(z))]
            write_activations(paths[site.label], z, {**meta, "site": str(site)})
    for site in sites:
        parts = [read_activations(shards / f"{low:09d}" / f"{site.label}.safetensors")[0] for low in starts]
        write_activations(context.activations_path(split, site.label), parts, {**meta, "site": str(site)})
    shutil.rmtree(shards)


def _is_done(path: Path, meta: dict[str, str]) -> bool:
    """Whether a shard is there, whole, and written for these prompts, this model and this tokenizer."""
    if not path.exists():
        return False
    try:
        found = read_activations(path)[1]
    except InputError:
        return False
    return all(found.get(key) == value for key, value in meta.items())
