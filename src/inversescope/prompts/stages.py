"""Stages `fetch_corpus` and `make_prompts`: bring a corpus of the hub, and draw the prompts of a split from the prior."""

from __future__ import annotations

import numpy as np

from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.store import write_table
from inversescope.streams import stream

SPLITS = ("train", "test", "reference", "val")


def fetch_corpus(context: Context) -> None:
    """Copy the columns that the task `text` reads of its data set to data/text/source, and look through the prior that they make.

    Raises:
        InputError: the corpus is local, the data set cannot be had, or it is no prior (see `TextTask`).
    """
    from inversescope.config.tasks import FETCHED
    from inversescope.tasks.corpus import copy_corpus

    config = context.config.text
    if config.source == "local":
        raise InputError("the corpus of the task text is local: it needs no download", "set text.source: hub")
    folder = context.root / "data/text" / FETCHED
    manifest = copy_corpus(config, config.used_columns, folder, echo)
    echo(f"fetch_corpus: {manifest['n_rows']} rows of {config.named}, {context.task.size} prompts")


def make_prompts(context: Context, split: str) -> None:
    """Write data/{task}/prompts/{split}.parquet.

    `test` prompts (whose activations are read) come from the task's test split: of IOI the held-out name pairs, of
    in-context translation held-out combinations, which the target model was not trained on; of RAVEL entities that are in no
    prompt of the prior. `val` is what bandwidths and hyperparameters of baselines are chosen on: a split of the task (RAVEL), or
    further prompts of its test split.
    `train` (the activation cache) are draws from the whole prior P(X) without the test prompts (combinations): the cache stands
    for P(X) in P(x; z), and a cache without all of the held-out part would stand for another distribution (`cache_pairs: train`
    shows how much that costs). `reference` is all of the prior, or independent draws from it, for the exact values.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}", f"choose one of {', '.join(SPLITS)}")
    task, experiment = context.task, context.plan.settings
    rng = stream(context.config.seed, "make_prompts", split)
    if split == "reference":
        everything = experiment.n_reference == "all"
        index = task.enumerate() if everything else task.draw(int(experiment.n_reference), None, rng)
    elif split == "test":
        index = _targets(context)
    elif split == "val":
        if not experiment.n_val:
            raise InputError(
                f"task {task.name} has no validation prompts",
                f"set n_val, or choose one of {', '.join(SPLITS[:3])}",
            )
        if split in task.splits:
            index = np.asarray(task.sample(experiment.n_val, split, rng))
        else:
            # Prompts like the targets, but none of them.
            drawn = task.sample(experiment.n_val + experiment.n_test, "test", rng)
            index = drawn[~np.isin(drawn, _targets(context))][: experiment.n_val]
    else:
        held_out = task.combination(_targets(context))
        index = np.zeros(0, np.int64)
        # Few prompts share a combination with a target; where more do, all of the prior is gone through.
        for count in (experiment.n_train + experiment.n_test, task.size):
            if len(index) < experiment.n_train:
                drawn = task.sample(min(count, task.size), None, rng)
                index = drawn[~np.isin(task.combination(drawn), held_out)][: experiment.n_train]
        if len(index) < experiment.n_train:
            raise InputError(
                f"the prior has {task.size} prompts, too few for n_train = {experiment.n_train} beside the test split",
                "lower n_train",
            )
    write_table(task.frame(index), context.prompts_path(split))
    echo(f"make_prompts: {len(index)} prompts of split {split}, prior of {task.size}")


def _targets(context: Context) -> np.ndarray:
    """The target prompts (n_test,), in order; the one that the configuration names stands first.

    Raises:
        InputError: it is not in the prior.
    """
    experiment, task = context.plan.settings, context.task
    drawn = np.asarray(
        task.sample(experiment.n_test, "test", stream(context.config.seed, "make_prompts", "test"))
    )
    if experiment.prompt is None:
        return drawn
    (named,) = task.parse([experiment.prompt])
    if named < 0:
        example = task.texts(drawn[:1])[0]
        raise InputError(
            f"experiments.{context.plan.name}.prompt is not in the prior of {task.name}: {experiment.prompt!r}",
            f"write one such as {example!r}",
        )
    return np.append(named, drawn[drawn != named])[: experiment.n_test]
