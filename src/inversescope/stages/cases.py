"""Stage `plot_cases`: figures and tables of a case study with sites at named positions, from tables alone."""

from __future__ import annotations

from pathlib import Path

from inversescope.config import Config
from inversescope.figures.cases import (
    CASE_FIGURES,
    CASE_TABLES,
    plot_causes,
    plot_completeness,
    plot_distances,
    plot_sites,
    write_cases,
    write_sizes,
)
from inversescope.figures.tables import tidy
from inversescope.sites import Site, expand_sites
from inversescope.stages.common import Context, echo, need
from inversescope.store import read_table


def plot_cases(root: Path, config: Config, task: str, model: str) -> None:
    """Draw what the sites of one experiment tell and do.

    Reads fcr.csv, refusal.csv, causes.csv, causes_rank.csv, distances.csv and completeness* under results/{task}/{model};
    writes results/figures/{task}_{model}_{sites,causes,distances,completeness}.* and
    results/tables/{task}_{model}_{cases,sizes}.{csv,md}.

    Raises:
        InputError: a table is missing; the message names the rule that makes it.
    """
    context = Context(root, config, task, model)
    fcr, refusal = (
        tidy(read_table(need(context.results / f"{n}.csv", "collect_tables"))) for n in ("fcr", "refusal")
    )
    causes, ranks = (
        read_table(need(context.results / f"{name}.csv", "check_causes"))
        for name in ("causes", "causes_rank")
    )
    order = [site.label for site in computed_order(context)]
    epsilon, features = config.kernel.epsilon, list(config.fcr.features)
    figures = root / "results" / "figures"
    plot_sites(fcr, refusal, order, features, epsilon, figures / f"{task}_{model}_sites")
    plot_causes(causes, ranks, figures / f"{task}_{model}_causes")
    distances, points, recall, sizes = (
        read_table(need(context.results / name, rule))
        for name, rule in (
            ("distances.csv", "compare_distances"),
            ("completeness.parquet", "check_completeness"),
            ("completeness_recall.csv", "check_completeness"),
            ("completeness_sizes.csv", "check_completeness"),
        )
    )
    plot_distances(distances, order, features, figures / f"{task}_{model}_distances")
    plot_completeness(points, recall, figures / f"{task}_{model}_completeness")
    write_sizes(sizes, refusal, epsilon, root / "results" / "tables" / f"{task}_{model}_sizes")
    write_cases(fcr, order, features, epsilon, root / "results" / "tables" / f"{task}_{model}_cases")
    echo("plot_cases: " + ", ".join([*CASE_FIGURES, *CASE_TABLES]))


def computed_order(context: Context) -> list[Site]:
    """Sites of an experiment position by position as it names them, each in the order of computation."""
    places: dict[str, None] = {}
    for pattern in context.experiment.sites:
        for site in expand_sites([pattern], *context.shape_of_target()):
            places.setdefault(site.position)
    rank = {
        "resid_pre": 0,
        "result": 1,
        "z": 1,
        "attn_out": 2,
        "resid_mid": 3,
        "mlp_post": 4,
        "mlp_out": 5,
        "resid_post": 6,
    }
    positions = list(places)
    return sorted(
        context.sites(), key=lambda s: (positions.index(s.position), s.layer, rank[s.kind], s.head or 0)
    )
