"""`inversescope questions`: all that a reader of somebody else's needs to answer an experiment's questions, and no answer.

docs/score.md describes the files, and says what they give away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.progress import Progress
from inversescope.reader.answers import Truth
from inversescope.store import Rows, write_arrays, write_json, write_table
from inversescope.streams import stream

#: Of the form of the files.
FORMAT = 1


def asked_targets(context: Context) -> np.ndarray:
    """Row of the test split that each question's target_id stands for, int64 (T,): in an order that tells nothing."""
    counted = np.flatnonzero(context.task.counted(context.prompt_ids("test")))
    return stream(context.config.seed, "questions", context.task_name, context.model_name).permutation(
        counted
    )


def write_questions(context: Context, folder: Path, examples: int) -> None:
    """Write the questions of an experiment into an empty folder.

    Args:
        examples: cached prompts that are given with their activations, at most.

    Raises:
        InputError: the folder is not empty, or prompts, activations or bandwidths are missing.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder", "name one that does not exist yet")
    plan, values = context.plan, Truth.of(context).values
    targets, progress = asked_targets(context), Progress("questions", len(plan.sites), echo)
    write_table(_told(context, "reference"), folder / "prior.parquet")
    cached = _told(context, "train", examples) if examples else None
    if cached is not None:
        write_table(cached, folder / "examples.parquet")
    rows = []
    for done, site in enumerate(plan.sites, 1):
        z = np.array(context.activations("test", site.label, raw=True))[targets]
        arrays = {"z": z}
        if context.config.kernel.centred:
            arrays["centre"] = -context.centred(site.label, np.zeros((1, z.shape[1]), np.float32))
        _write(folder / "activations" / f"{site.label}.safetensors", arrays)
        if cached is not None:
            z_cached = np.asarray(context.activations("train", site.label, raw=True)[: len(cached)])
            _write(folder / "examples" / f"{site.label}.safetensors", {"z": z_cached})
        head = "" if site.head is None else site.head
        where = {"site": site.label, "name": str(site), "layer": site.layer, "head": head, "kind": site.kind}
        where |= {"position": site.position, "width": z.shape[1], "epsilon": context.headline(site.label)}
        rows.append(where)
        progress(done)
    write_table(pd.DataFrame(rows), folder / "sites.csv")
    # Last, so that a folder with this file is whole.
    write_json(_about(context, len(targets), values), folder / "about.json")
    echo(f"questions: {len(rows)} sites, {len(targets)} targets, features {', '.join(values)} in {folder}")


def _told(context: Context, split: str, most: int | None = None) -> pd.DataFrame:
    """The prompts of a split, or the first of them: their texts, and their values of the headline features as text."""
    named = {name: f"feature_{name}" for name in context.config.fcr.features}
    own = [column for name, column in named.items() if name not in context.functions]
    prompts = context.labelled(context.prompts(split, ["prompt_id", "text", *own]).iloc[:most])
    return prompts[["text", *named.values()]].astype(dict.fromkeys(named.values(), str))


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Arrays without provenance: a hash of the target prompts' file is no business of who is to guess them."""
    write_arrays(path, {name: Rows(z.shape, [z]) for name, z in arrays.items()}, {})


def _about(context: Context, n_targets: int, values: dict[str, list[str]]) -> dict[str, Any]:
    kernel, target = context.config.kernel, context.plan.target
    model: dict[str, str | None] = {"name": context.model_name, "source": target.source}
    if target.source in ("hub", "wheel"):  # the path of a local one is nobody else's
        model |= {"path": target.path, "revision": target.revision}
    return {
        "format": FORMAT,
        "task": context.task_name,
        "model": model,
        "distance": kernel.distance,
        "centred": kernel.centred,
        "kernel": kernel.kind,
        "bandwidth": kernel.headline.label,
        "prior": "all prompts" if context.plan.is_enumerated else "draws",
        "n_targets": n_targets,
        "features": values,
    }
