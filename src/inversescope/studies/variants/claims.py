"""One change of `paper` at a time, seed by seed: what the paper says of its training, and what lowers the error of its rates."""

from __future__ import annotations

import pandas as pd

from inversescope.context import Context
from inversescope.figures.registry import Page, table
from inversescope.figures.save import interval, markdown_table
from inversescope.figures.study import Study
from inversescope.figures.tables import t_interval
from inversescope.store import read_table

#: Columns of claims.csv that are compared, and their names for readers.
METRICS = {
    "refusal_rate": "refused",
    "fcr_error": "FCR error",
    "entropy_gap": "entropy gap (nats)",
    "copies": "copies of the target prompt",
    "loss_start": "loss at the start (nats)",
    "loss_end": "loss at the end (nats)",
    "loss_rise": "largest rise of the loss (nats)",
}
#: Part of the training whose loss is that of its end.
_END = 0.2


def training_losses(context: Context, name: str) -> dict[str, float]:
    """Loss of a variant's training, nats a prompt, from its log: a row is a mean over 50 steps.

    Returns:
        loss_start (first row), loss_end (mean of the last fifth), loss_rise (largest from a row to the next, 0 if there is none).
    """
    log = read_table(context.training_log(context.config.variant(name).generator, name))
    loss = log["loss"]
    end = loss[log["step"] > (1 - _END) * log["step"].iloc[-1]]
    return {
        "loss_start": float(loss.iloc[0]),
        "loss_end": float(end.mean()),
        "loss_rise": max(0.0, float(loss.diff().max())) if len(loss) > 1 else 0.0,
    }


def changes(claims: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """What each change does, compared seed by seed with the runs that change nothing.

    Args:
        claims: claims.csv, a row a run and group of sites; `change` is empty where nothing is changed.
        confidence: level of the Student t intervals over seeds.

    Returns:
        change, group, metric, n_seeds, value and unchanged (means over seeds), spread and spread_unchanged (standard deviations),
        difference (value - unchanged), low, high.
    """
    rows = []
    claims = claims.assign(change=claims["change"].fillna(""))
    for group, part in claims.groupby("group", sort=False):
        runs = dict(list(part.set_index("seed").groupby("change", sort=False)))
        same = runs.pop("")
        for change, run in runs.items():
            for metric in METRICS:
                both = pd.concat([run[metric], same[metric]], axis=1, keys=["run", "same"]).dropna()
                mean, half = t_interval((both["run"] - both["same"]).to_numpy(float), confidence)
                rows.append(
                    {
                        "change": change,
                        "group": group,
                        "metric": metric,
                        "n_seeds": len(both),
                        "value": both["run"].mean(),
                        "unchanged": both["same"].mean(),
                        "spread": both["run"].std(),
                        "spread_unchanged": both["same"].std(),
                        "difference": mean,
                        "low": mean - half,
                        "high": mean + half,
                    }
                )
    return pd.DataFrame(rows)


@table("claims", "plot_claims", title="Changes of the published method, seed by seed")
def claims_table(study: Study) -> Page:
    """`changes` of the study."""
    frame = changes(study.table("claims.csv", "collect_study"), study.config.fcr.confidence)
    shown = pd.DataFrame(
        {
            "change": frame["change"],
            "sites": frame["group"],
            "": frame["metric"].map(METRICS),
            "value": frame["value"],
            "unchanged": frame["unchanged"],
            "difference": [interval(r.difference, r.low, r.high, "+.3f") for r in frame.itertuples()],
        }
    )
    about = (
        "Each change of `paper` beside runs of the same seeds that change nothing: means over seeds, and the paired difference "
        "with its Student t interval over seeds. The losses are of the whole generator, so they are the same for all sites."
    )
    return frame, f"# Changes of the published method, seed by seed\n\n{about}\n\n{markdown_table(shown)}"
