"""Stage `choose_bandwidths`: the epsilons of bandwidths that are shares of the prior, site by site."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from inversescope.config.check import SHARE_REMEDY, too_few
from inversescope.config.methods import Bandwidth
from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.kernel.bandwidths import epsilons_of_shares, one_position, shares_of_epsilons
from inversescope.kernel.distances import distance_of
from inversescope.progress import Progress
from inversescope.store import write_table
from inversescope.workflow import paths


def choose_bandwidths(context: Context) -> None:
    """Choose at each site the epsilon at which the median ball of the validation prompts holds a share of the prior.

    Target prompts have no part in it. Writes results/{task}/{model}/bandwidths.csv: a row a (site, bandwidth) with epsilon,
    share (as asked for; of an absolute epsilon, what is measured), measured (share of the reference prompts that the median
    ball holds at this epsilon), n_val and n_reference.

    Raises:
        InputError: no bandwidth is a share of the prior, or one is so small that the reference split cannot tell it.
    """
    config, plan = context.config, context.plan
    if not config.shares:
        raise InputError("no bandwidth is a share of the prior", "set kernel.share or kernel.shares")
    size = len(context.prompts("reference", columns=["prompt_id"]))
    fault = too_few(config.shares, size)
    if fault:
        raise InputError(fault, SHARE_REMEDY)
    absolute = [one.value for one in plan.bandwidths if one.kind == "epsilon"]
    metric, progress = (
        distance_of(config.kernel.distance),
        Progress("choose_bandwidths", len(plan.sites), echo),
    )
    rows = []
    for done, site in enumerate(plan.labels, 1):
        queries = one_position(np.array(context.activations("val", site)))
        reference = np.asarray(context.activations("reference", site))
        chosen = epsilons_of_shares(metric, queries, reference, config.shares)
        measured = shares_of_epsilons(metric, queries, reference, [*absolute, *chosen])
        asked = [
            *(Bandwidth("epsilon", e) for e in absolute),
            *(Bandwidth("share", s) for s in config.shares),
        ]
        for bandwidth, epsilon, share in zip(asked, [*absolute, *chosen], measured, strict=True):
            nominal = bandwidth.value if bandwidth.kind == "share" else share
            about: dict[str, Any] = {"task": context.task_name, "model": context.model_name, "site": site}
            about |= {"bandwidth": str(bandwidth), "epsilon": epsilon, "share": nominal, "measured": share}
            rows.append(about | {"n_val": len(queries), "n_reference": size})
        progress(done)
    write_table(pd.DataFrame(rows), context.path(paths.BANDWIDTHS))
    echo(f"choose_bandwidths: {len(plan.labels)} sites, {len(config.shares)} shares of the prior")
