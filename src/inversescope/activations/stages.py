"""Stage `extract_activations`: activations of all sites of an experiment for one split, in one forward."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inversescope import __version__
from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.progress import Progress
from inversescope.store import Rows, file_hash, map_array, read_arrays, write_arrays

if TYPE_CHECKING:
    from inversescope.activations.batches import Batch
    from inversescope.activations.capture import Passes
    from inversescope.targets.models import Target

#: Bytes of activations a shard: what is held in memory, and what a killed run repeats, at most.
SHARD = 1 << 28
#: Bytes of a site that are put together at a time.
BLOCK = 1 << 25


def extract_activations(context: Context, split: str, loaded: Target | None = None) -> None:
    """Write data/{task}/{model}/activations/{split}/{site}.safetensors for every site of the experiment.

    Distinct prompts are run in the order of their tokens, so that beginnings are shared. What they give is written shard by
    shard; a killed run goes on behind its finished shards. Per-site files are put together at the end, a block at a time: memory
    does not grow with the number of prompts. Row i belongs to prompt i of the split; at position `any` a prompt has an
    activation for each of its tokens.

    Args:
        loaded: the target model, if it is loaded already.

    Raises:
        InputError: the split is a selection of an enumerated prior, whose activations are those of another split.
    """
    from inversescope.activations.capture import Passes
    from inversescope.activations.positions import inputs_of, width_of
    from inversescope.targets.models import load_target

    kept = context.plan.kept_in(split)
    if kept != split:
        raise InputError(
            f"activations of split {split} are looked up among those of {kept}, which is all of the prior",
            f"extract split {kept}",
        )
    name, sites = f"extract_activations {split}", context.plan.sites
    index = context.prompt_ids(split)
    target = loaded or load_target(context.made_target())
    read = Progress(f"{name}, prompts read", len(index), echo)
    inputs = inputs_of(context.task, target, index, sites, lambda done, _: read(done))
    passes = Passes(target, inputs, sites, width=width_of(context.task, target, sites))
    size = 4 * sum(math.prod(shape) for shape in passes.shapes.values())
    echo(f"{name}: {len(index)} prompts, {len(sites)} sites, {size * len(index) / 2**20:.0f} MiB to write")
    meta = {
        "model": target.name,
        "target": target.identity,
        "revision": target.revision,
        "weight_processing": "raw_hf",
        "tokenizer_hash": target.tokenizer_hash,
        "prompt_hash": file_hash(context.prompts_path(split)),
        "package_version": __version__,
    }
    folder = context.activations_path(split, "shards").with_suffix("")
    shards = _run(passes, size, folder, meta, Progress(name, len(index), echo))
    numbers, together = passes.order.numbers, Progress(f"{name}, sites put together", len(sites), echo)
    for done, site in enumerate(sites, 1):
        shape = passes.shapes[site.label]
        rows = Rows((len(index), *shape), _rows_of(site.label, shape, shards, numbers))
        write_arrays(context.activations_path(split, site.label), {"z": rows}, {**meta, "site": str(site)})
        together(done)
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Shard:
    """Activations at all sites of distinct prompts low ... high - 1 in the order in which they are run.

    Attributes:
        path: its file.
        batches: what runs these prompts.
    """

    path: Path
    batches: Sequence[Batch]

    @property
    def low(self) -> int:
        """Number of the first prompt."""
        return self.batches[0].low

    @property
    def high(self) -> int:
        """Number behind the last prompt's."""
        return self.batches[-1].high


def _shards(batches: Sequence[Batch], size: int, folder: Path) -> Iterator[Shard]:
    """Batches by shard: as many as fit into `SHARD` at `size` bytes a prompt, at least one."""
    some: list[Batch] = []
    for batch in batches:
        if some and (batch.high - some[0].low) * size > SHARD:
            yield Shard(folder / f"{some[0].low:09d}.safetensors", some)
            some = []
        some.append(batch)
    if some:
        yield Shard(folder / f"{some[0].low:09d}.safetensors", some)


def _run(passes: Passes, size: int, folder: Path, meta: Mapping[str, str], progress: Progress) -> list[Shard]:
    """Run all prompts, `size` bytes of activations each, but those of shards that are there already; returns the shards."""
    shards = list(_shards(passes.batches, size, folder))
    starts = passes.order.starts
    done = 0
    with passes.ready(lambda: progress(done)):
        for shard in shards:
            about = {**meta, "prompts": f"{shard.low} to {shard.high - 1}"}
            if _is_done(shard, passes.shapes, about):
                done = int(starts[shard.high])
                continue
            parts: dict[str, list[np.ndarray]] = {label: [] for label in passes.shapes}
            for batch in shard.batches:
                for label, values in passes.run(batch).items():
                    parts[label].append(values)
                done = int(starts[batch.high])
                progress(done)
            count = shard.high - shard.low
            write_arrays(
                shard.path,
                {label: Rows((count, *shape), parts[label]) for label, shape in passes.shapes.items()},
                about,
            )
            parts.clear()  # before the next shard takes as much
    return shards


def _is_done(shard: Shard, shapes: Mapping[str, tuple[int, ...]], about: Mapping[str, str]) -> bool:
    """Whether a shard is there, whole, and of these prompts and sites, this model and this tokenizer."""
    if not shard.path.exists():
        return False
    try:
        arrays, found = read_arrays(shard.path, "Delete it")
    except InputError:
        return False
    same = all(found.get(key) == value for key, value in about.items())
    return same and {label: z.shape[1:] for label, z in arrays.items()} == shapes


def _rows_of(
    label: str, shape: tuple[int, ...], shards: Sequence[Shard], numbers: np.ndarray
) -> Iterator[np.ndarray]:
    """Activations at a site of all prompts, in their own order; `numbers` (N,) are those by which shards know them."""
    lows = np.array([shard.low for shard in shards])
    at_once = max(1, BLOCK // (4 * math.prod(shape)))
    for start in range(0, len(numbers), at_once):
        some = numbers[start : start + at_once]
        block, which = (
            np.empty((len(some), *shape), np.float32),
            np.searchsorted(lows, some, side="right") - 1,
        )
        for number in np.unique(which):
            here = which == number
            block[here] = map_array(shards[number].path, label)[some[here] - lows[number]]
        yield block
