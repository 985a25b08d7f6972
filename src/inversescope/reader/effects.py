"""Is what an activation encodes used there? The effect of counterfactual partners of one prompt, written in at the sites read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inversescope.errors import InputError
from inversescope.fcr.intervals import bootstrap_means
from inversescope.fcr.resampling import RESAMPLES
from inversescope.reader.site import Asked
from inversescope.sites import Site
from inversescope.streams import stream
from inversescope.studies.cases.causes import compared_pairs, spelled_answers
from inversescope.studies.cases.patched import have_path, patched_effects

if TYPE_CHECKING:
    from inversescope.reader.study import Study


def effects_of(
    study: Study, asked: Asked, sites: Sequence[Site], feature: str, partners: int
) -> pd.DataFrame:
    """Effect of writing partners' activations at each site, as `check_causes` measures it, of one prompt.

    Partners differ in the feature and keep the rest as far as can be.

    Returns:
        A row a site: `effect`, the mean change of the logit difference over partners with its interval (low, high), `total`, the
        difference between both runs, `share` = effect / total, `compared`: whose logits (the two answers, two labels, or the
        answer and another one), `path`: whether the site can reach the answer at all, `n_partners`, and one of them.

    Raises:
        InputError: the prompt is none of the task's prior, or has no partner that differs in the feature.
    """
    context, task = study.context, study.context.task
    if asked.index < 0:
        raise InputError(
            "the prompt is none of the task's prior, so it has no partners", "ask about one of the prior"
        )
    rng = stream(context.config.seed, "patch", asked.text, feature)
    found = np.unique(task.counterfactuals(feature, np.full(partners, asked.index), rng))
    other = found[found >= 0]
    if not len(other):
        raise InputError(f"the prompt has no partner that differs in {feature}", "ask about another prompt")
    index, target = np.full(len(other), asked.index), study.target
    spelled = spelled_answers(context, target)
    rows, pairs, compared = compared_pairs(task, target, feature, index, other, list(sites), spelled, 1, rng)
    if pairs is None:
        raise InputError(
            f"no partner that differs in {feature} has another answer", "ask about another feature or prompt"
        )
    other = other[rows]
    effects, total = patched_effects(target, pairs, f"patch {feature}")
    paths = have_path(target, pairs)
    mean, low, high = bootstrap_means(effects, RESAMPLES, context.config.fcr.confidence, context.config.seed)
    whole = float(total.mean())
    return pd.DataFrame(
        {
            "site": [site.label for site in sites],
            "feature": feature,
            "effect": mean,
            "low": low,
            "high": high,
            "total": whole,
            "share": mean / whole if compared != "other" and whole else np.nan,
            "compared": compared,
            "path": paths,
            "n_partners": len(other),
            "partner": task.texts(other[:1])[0],
        }
    )
