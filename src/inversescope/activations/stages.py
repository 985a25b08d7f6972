"""Stage `extract_activations`: activations of all sites of an experiment for one split, in one forward."""

from __future__ import annotations

import shutil
from pathlib import Path

from inversescope import __version__
from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.progress import Progress
from inversescope.store import file_hash, read_activations, write_activations

SHARD = 65_536  # prompts a shard: what a killed run repeats at most


def extract_activations(context: Context, split: str) -> None:
    """Write data/{task}/{model}/activations/{split}/{site}.safetensors for every site of the experiment.

    Works shard by shard and keeps finished shards, so that a killed run goes on where it was; per-site files are put together
    at the end, one site at a time. Row i belongs to prompt i of the split; at position `any` a prompt has an activation for each
    of its tokens.

    Raises:
        InputError: the split is a selection of an enumerated prior, whose activations are those of another split.
    """
    from inversescope.activations.positions import capture_prompts
    from inversescope.targets.models import load_target

    kept = context.plan.kept_in(split)
    if kept != split:
        raise InputError(
            f"activations of split {split} are looked up among those of {kept}, which is all of the prior",
            f"extract split {kept}",
        )
    index = context.prompt_ids(split)
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
            write_activations(paths[site.label], captured[site.label], {**meta, "site": str(site)})
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
