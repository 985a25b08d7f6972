"""What is known to be wrong with a configuration before any work starts, beyond the range of single values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from inversescope.config.entries import Misplaced
from inversescope.config.functions import is_function
from inversescope.config.methods import BUILT_IN
from inversescope.errors import InputError
from inversescope.sites import Site, expand_sites

if TYPE_CHECKING:
    from inversescope.config.schema import Config, ExperimentConfig


#: Prompts of the reference that the median ball of a bandwidth by share must hold at least.
LEAST_IN_BALL = 3
SHARE_REMEDY = (
    "raise n_reference, or the smallest of kernel.share, kernel.shares and variants' share and share_range"
)


def too_few(shares: Iterable[float], size: int) -> str:
    """What is wrong with bandwidths that are shares of so many reference prompts; empty if nothing is."""
    least = min(shares, default=1.0)
    held = (
        f"a median ball of {100 * least:g}% of the prior holds {least * size:.3g} of {size} reference prompts"
    )
    return f"{held}, fewer than {LEAST_IN_BALL}" if least * size < LEAST_IN_BALL else ""


def check(config: Config) -> None:
    """Refuse a configuration whose parts do not fit together.

    Raises:
        Misplaced: names that are paths, models, variants and sites that are not there, experiments that contradict each other.
    """
    for part in ("experiments", "models", "variants"):
        for name in getattr(config, part):
            if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
                message = f"name {name!r} may hold letters, digits, '-', '_' and '.' only"
                raise Misplaced((part, name), message)
    _check_models(config)
    _check_prompts(config)
    for name, experiment in config.experiments.items():
        view = config.view(name)
        _check_features(view, name, experiment)
        _check_variants(view, name, experiment)
        _check_shares(view, name, experiment)
        _check_labeller(view, name, {e.model for e in config.experiments.values()})
        _check_sites(view, name, experiment)


def _check_models(config: Config) -> None:
    """Each experiment has a model, no two the same one on a task; a control is read too."""
    read: dict[tuple[str, str], str] = {}
    for name, experiment in config.experiments.items():
        if experiment.model not in config.models:
            message = f"names model {experiment.model!r}, which is not in 'models'"
            raise Misplaced(("experiments", name, "model"), message)
        other = read.setdefault((experiment.task, experiment.model), name)
        if other != name:
            message = f"experiment {other} reads this model on this task too"
            raise Misplaced(("experiments", name), message, "merge their lists of sites")
    for name, experiment in config.experiments.items():
        control = config.models[experiment.model].control
        if control and (experiment.task, control) not in read:
            message = f"is shown beside model {control!r}, which no experiment on {experiment.task} reads"
            raise Misplaced(("experiments", name, "model"), message)


def _check_labeller(view: Config, name: str, read: set[str]) -> None:
    """A labeller that is an entry of `models` has weights from elsewhere, and some experiment reads it."""
    chat = view.labeller.model if view.labeller else None
    if chat is not None and not (chat in read and view.models[chat].is_fetched):
        message = f"names {chat!r}: no experiment reads such a model from elsewhere"
        raise Misplaced(("experiments", name, "settings", "labeller", "model"), message)


def _check_prompts(config: Config) -> None:
    """Experiments share their task's prompts; RAVEL needs validation prompts."""
    first: dict[str, str] = {}
    for name, experiment in config.experiments.items():
        other = first.setdefault(experiment.task, name)
        for key in ("n_train", "n_test", "n_val", "n_reference", "prompt"):
            own, theirs = getattr(experiment, key), getattr(config.experiments[other], key)
            if own != theirs:
                message = f"is {own}, but {theirs} in experiment {other}, which has the same prompts"
                raise Misplaced(("experiments", name, key), message, "make them equal, or run one by 'only'")
        if experiment.task == "ravel" and not experiment.n_val:
            message = "ravel chooses hyperparameters and bandwidth on validation prompts"
            raise Misplaced(("experiments", name, "n_val"), message, "set it")


def _check_features(view: Config, name: str, experiment: ExperimentConfig) -> None:
    """The task has the features whose rates are asked for."""
    own = "features" in experiment.settings.fcr.model_fields_set
    known = getattr(view, experiment.task).feature_names
    for feature in view.fcr.features:
        if feature not in known and not is_function(feature):
            where = (*(("experiments", name, "settings") if own else ()), "fcr", "features")
            message = f"experiment {name}: task {experiment.task} has no feature {feature!r}"
            raise Misplaced(
                where,
                message,
                f"choose from {', '.join(known)}, or write a label function such as twice(capital)",
            )


def _check_variants(view: Config, name: str, experiment: ExperimentConfig) -> None:
    """An experiment's variants and studies exist, and their decoding settings can be drawn."""
    where = ("experiments", name)
    for variant in experiment.variants:
        if variant not in view.variants:
            raise Misplaced((*where, "variants"), f"variant {variant!r} is studied but not in 'variants'")
    for study in experiment.studies:
        if study not in view.studies and study not in view.variants:
            raise Misplaced((*where, "studies"), f"{study!r} is no study and no variant of one")
    for variant, place in _run(view, name, experiment):
        settings = view.variants[variant]
        for setting in settings.settings:
            if setting not in view.sampling.settings and setting not in BUILT_IN[:3]:
                message = f"variant {variant!r} is read under {setting!r}, which is no decoding setting"
                raise Misplaced((*place, "settings"), message)
            attends = settings.neighbour_logits or settings.neighbour_words
            if attends and view.sampling.rule(setting).varies:
                message = f"variant {variant!r} attends to neighbours: no noise or schedule ({setting!r})"
                raise Misplaced((*place, "settings"), message)


def _check_shares(view: Config, name: str, experiment: ExperimentConfig) -> None:
    """Shares of the prior have validation prompts to be chosen on, and enough reference prompts to be told."""
    if view.shares and not experiment.n_val:
        message = "bandwidths by share of the prior are chosen on validation prompts"
        raise Misplaced(("experiments", name, "n_val"), message, "set it, for example n_val: 100")
    if isinstance(experiment.n_reference, int):
        fault = too_few(view.shares, experiment.n_reference)
        if fault:
            raise Misplaced(("experiments", name, "n_reference"), fault, SHARE_REMEDY)


def _check_sites(view: Config, name: str, experiment: ExperimentConfig) -> None:
    """The model has all sites, and the experiment reads all that its variants are trained on."""
    size = view.models[experiment.model].size
    if size is None:
        return
    where = ("experiments", name)

    def expanded(patterns: list[str], path: tuple[Any, ...]) -> list[Site]:
        try:
            return expand_sites(patterns, *size)
        except InputError as error:
            raise Misplaced(path, error.culprit, error.remedy) from None

    read = expanded(experiment.sites, (*where, "sites"))
    for site in expanded(experiment.patched, (*where, "patched")):
        if site.kind == "resid_mid":
            message = f"{site.label} cannot be replaced: patch resid_pre, attn_out, mlp_out or resid_post"
            raise Misplaced((*where, "patched"), message)
    heads = {site.label for site in read if site.head is not None and site.position == "last"}
    for figure, labels in experiment.shown.items():
        for label in labels:
            if label not in heads:
                message = f"{label!r} is no head that the experiment reads"
                raise Misplaced((*where, "shown", figure), message)
    for layer in experiment.representative or ():
        if layer not in {site.layer for site in read}:
            message = f"layer {layer} is not read"
            raise Misplaced((*where, "representative"), message)
    for variant, place in _run(view, name, experiment):
        for site in expanded(view.variants[variant].sites or [], (*place, "sites")):
            if site not in read:
                what = f"variant {variant} is trained on site {site.label}"
                remedy = f"add it to experiments.{name}.sites, or change these"
                raise Misplaced((*place, "sites"), f"{what}, which the experiment does not read", remedy)


def _run(view: Config, name: str, experiment: ExperimentConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The variants that an experiment trains, each with the place of its entry."""
    for variant in dict.fromkeys([*view.studied_variants, *view.study_variants]):
        own = variant in experiment.settings.variants
        yield variant, (*(("experiments", name, "settings") if own else ()), "variants", variant)
