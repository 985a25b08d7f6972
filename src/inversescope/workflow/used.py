"""What of the configuration a job depends on: the job is made again when one of these values changes, and only then.

A key is a path into the configuration as the job's experiment sees it (`kernel/epsilon`), a field of the experiment's own entry
(`n_test`, `patched`), or one of `DERIVED`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inversescope.workflow.plan import ExperimentPlan

#: How activations are compared and weighed, at whatever bandwidth.
COMPARED = ("kernel/distance", "kernel/centred", "kernel/kind")
#: The same at the one bandwidth where most of a study is done.
HEADLINE = ("kernel/epsilon", "kernel/share", *COMPARED)
#: Fields of a variant that only tell readers about it, or how it is read.
TOLD = {"base", "change", "study", "settings", "label", "colour"}


def training(plan: ExperimentPlan, variant: str) -> dict[str, Any]:
    """How a variant is made. One that draws its epsilon reaches as far as it is read."""
    config = plan.config
    settings = config.variant(variant)
    reached = config.bandwidths_of(variant) if settings.eps_input and config.kernel.by_share else []
    return settings.model_dump(mode="json", exclude=TOLD) | {"reached": [str(one) for one in reached]}


def drawing(plan: ExperimentPlan, variant: str) -> dict[str, Any]:
    """How candidates of a variant are drawn. How many at a time makes no difference to what is drawn."""
    sampling = plan.config.sampling
    return {
        **sampling.model_dump(mode="json", exclude={"batch", "settings"}),
        "settings": {
            name: sampling.rule(name).model_dump(mode="json")
            for name in plan.config.variant(variant).settings
        },
        "studied": variant in plan.studied,
        "bandwidths": [str(one) for one in plan.config.bandwidths_of(variant)],
    }


def looks(plan: ExperimentPlan) -> dict[str, Any]:
    """How variants are called and coloured in figures."""
    told = {"label", "colour"}
    return {name: one.model_dump(include=told) for name, one in plan.config.variants.items()}


def model_files(plan: ExperimentPlan) -> dict[str, list[int]]:
    """Bytes and time (nanoseconds) of each of the user's own files that the target is read from, but those that are pinned."""
    target, found = plan.target, list[Path]()
    if target.source == "local":
        found = [Path(target.path or "")]
    if target.checkpoint is not None:
        found = [Path(plan.config.mirror or "", target.checkpoint.folder), Path(target.checkpoint.folder)]
    files = [file for path in found for file in ([path] if path.is_file() else sorted(path.glob("*")))]
    pinned = {*target.sha256, *(target.checkpoint.sha256 if target.checkpoint else {})}
    kept = [file for file in files if file.is_file() and file.name not in pinned]
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in kept}


#: First part of a key -> what it stands for, given the rest.
DERIVED: dict[str, Callable[..., Any]] = {
    "bandwidth": lambda plan: plan.config.bandwidth_label,
    "bandwidths": lambda plan: [str(one) for one in plan.bandwidths],
    "shares": lambda plan: plan.config.shares,
    "functions": lambda plan: plan.functions,
    "training": training,
    "drawing": drawing,
    "looks": looks,
    "model_files": model_files,
}


def value(plan: ExperimentPlan, key: str) -> Any:
    """The present value of a key.

    Raises:
        KeyError: the configuration has no such key (any more).
        InputError: it has no such variant.
    """
    first, *rest = key.split("/")
    if first in DERIVED:
        return DERIVED[first](plan, *rest)
    if not rest and first in type(plan.settings).model_fields:
        return plan.settings.model_dump(mode="json")[first]
    return functools.reduce(lambda part, name: part[name], [first, *rest], plan.values)


def used(plan: ExperimentPlan, *keys: str) -> dict[str, Any]:
    """Values of keys, for a rule's `params`."""
    return {key: value(plan, key) for key in keys}
