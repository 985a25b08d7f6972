"""From the hand-written form to complete entries: `base: NAME` takes over the entry beside it, `studies` make variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inversescope.config.entries import Entries, fault, merge, section, validated
from inversescope.config.schema import ExperimentConfig, StudyConfig, SweepConfig

#: What describes a variant alone: those that name it as their base do not take it over.
ITS_OWN = ("study", "change", "label", "colour")


def expand(values: Mapping[str, Any]) -> Entries:
    """The configuration with every `base` and all `studies` filled in; each value keeps its origin.

    An experiment's own changes to variants reach their descendants too. Experiments that `only` leaves out are dropped.

    Raises:
        InputError: a base is unknown or a circle, two runs have one name, a mapping is missing; names file and line.
    """
    written = Entries(values)
    for name in ("studied_variants", "study_variants"):
        if name in written:
            remedy = "write 'variants' or 'studies' into an entry of 'experiments'"
            raise fault(written, (name,), "is said of each experiment", remedy)
    for part in ("models", "experiments"):
        written.put(part, _inherit(written, part), written.origins.get(part))
    written.put("experiments", _kept(written), written.origins.get("experiments"))
    tree = Entries(written)
    tree.put("variants", _variants(written), written.origins.get("variants"))
    experiments = Entries(tree["experiments"])
    for name, entry in tree["experiments"].items():
        experiments.put(name, _with_its_variants(tree, written, name), entry.origins.get(name))
    tree.put("experiments", experiments, written.origins.get("experiments"))
    return tree


def _inherit(tree: Entries, part: str, leave_out: tuple[str, ...] = ()) -> Entries:
    """The entries of a part, each laid over its base."""
    entries, done = section(tree, part), Entries()

    def complete(name: str, below: tuple[str, ...]) -> Entries:
        if name in done:
            return done[name]
        entry = section(tree, part, name)
        if "base" in entry and entry["base"] is not None:
            base, path = entry["base"], (part, name, "base")
            if not isinstance(base, str) or base not in entries:
                known = ", ".join(map(str, entries))
                raise fault(tree, path, f"there is no {base!r} in {part!r}", f"choose one of {known}")
            if base in (name, *below):
                circle = " -> ".join([*below, name, base])
                raise fault(tree, path, f"the bases form a circle: {circle}", "break it")
            entry = merge(complete(base, (*below, name)).inherited(base, leave_out), entry)
        done.put(name, entry, entries.origins.get(name))
        return entry

    for name in entries:
        complete(name, ())
    in_order = Entries()
    for name in entries:
        in_order.put(name, done[name], entries.origins.get(name))
    return in_order


def _kept(tree: Entries) -> Entries:
    """The experiments that `only` names; all of them if it is absent."""
    experiments, only = tree["experiments"], tree.get("only")
    if not isinstance(only, list):
        return experiments
    for name in only:
        if name not in experiments:
            known = ", ".join(map(str, experiments))
            raise fault(tree, ("only",), f"names {name!r}, which is no experiment", f"choose from {known}")
    kept = Entries(experiments)
    for name in experiments:
        if name not in only:
            del kept[name]
    return kept


def _variants(tree: Entries) -> Entries:
    """All variants, complete: those of `variants`, then the runs of `studies`, over which an entry of `variants` may be laid."""
    written, runs = section(tree, "variants"), _runs(tree)
    whole, entries = Entries(tree), Entries()
    for name in [*(name for name in written if name not in runs), *runs]:
        entry = section(tree, "variants", name)
        if "study" in entry:
            raise fault(tree, ("variants", name, "study"), "comes from 'studies'", "put it there")
        if name in runs:
            base, study = runs[name]["base"], runs[name]["study"]
            if entry.get("base", base) != base:
                message = f"{name} is a run of study {study} on {base}: {runs.origins.get(name)}"
                raise fault(tree, ("variants", name, "base"), message, "give the new variant another name")
            entry = merge(runs[name], entry)
        entries.put(name, entry, written.origins.get(name, runs.origins.get(name)))
    whole.put("variants", entries, written.origins.get("variants"))
    result = _inherit(whole, "variants", ITS_OWN)
    for name, entry in result.items():
        if entry.get("base") is None:
            own = Entries(entry)
            own.put("base", name, None)
            result.put(name, own, result.origins.get(name))
    return result


def _runs(tree: Entries) -> Entries:
    """The runs of all studies: one entry a run, sweep, seed and multiple of its steps."""
    runs = Entries()
    for study in section(tree, "studies"):
        settings = validated(StudyConfig, tree, ("studies", study))
        own, origins = section(tree, "studies", study), section(tree, "studies", study, "runs").origins
        for run in settings.runs:
            path = ("studies", study, "runs", run)
            entry = section(tree, *path)
            base = entry.get("base")
            if base is None or "study" in entry:
                raise fault(tree, path, "needs a 'base' and no 'study'", "name the variant that it changes")
            steps = entry.get("steps", settings.steps.get(base))
            for sweep in settings.sweeps or [SweepConfig()]:
                for seed in sweep.seeds[:1] if run in settings.once else sweep.seeds:
                    for times in sweep.times:
                        name = sweep.name.format(run=run, seed=seed, times=f"{times:g}")
                        if name in runs:
                            message = f"a second run is called {name!r}"
                            raise fault(tree, path, message, "tell them apart in sweeps.name")
                        made = Entries(entry)
                        made.put("study", study, origins.get(run))
                        if "sites" not in entry and settings.sites is not None:
                            made.put("sites", settings.sites, own.origins.get("sites"))
                        if "seed" not in entry:
                            made.put("seed", seed, own.origins.get("sweeps"))
                        if steps is not None:
                            where = entry.origins.get("steps", own.origins.get("steps"))
                            made.put("steps", max(1, round(times * steps)), where)
                        elif times != 1:
                            raise fault(tree, path, "has no steps to be multiplied", "give it 'steps'")
                        if sweep.headline and "settings" in entry:
                            made.put("settings", entry["settings"][:1], entry.origins.get("settings"))
                        runs.put(name, made, origins.get(run))
    return runs


def _with_its_variants(tree: Entries, written: Entries, name: str) -> Entries:
    """An experiment whose changes to variants are worked into each variant that it runs."""
    experiment = section(tree, "experiments", name)
    path = ("experiments", name, "settings", "variants")
    changes = section(tree, *path)
    if not changes:
        return experiment
    whole = Entries(written)
    whole.put("variants", merge(section(written, "variants"), changes), None)
    variants = _variants(whole)
    main = experiment.get("variants", ExperimentConfig.model_fields["variants"].default)
    studies = experiment.get("studies", [])
    run = [v for v in variants if v in main or v in studies or variants[v].get("study") in studies]
    own = Entries()
    for variant in run:
        own.put(variant, variants[variant], variants.origins.get(variant))
    for variant, entry in changes.items():
        if variant not in tree["variants"]:
            if variant not in run:
                known = ", ".join(tree["variants"])
                raise fault(tree, (*path, variant), "is no variant", f"choose one of {known}")
        elif "base" in entry and entry["base"] != tree["variants"][variant]["base"]:
            raise fault(tree, (*path, variant, "base"), "an experiment keeps it", "give it another name")
    settings = Entries(section(tree, "experiments", name, "settings"))
    settings.put("variants", own, settings.origins.get("variants"))
    result = Entries(experiment)
    result.put("settings", settings, experiment.origins.get("settings"))
    return result
