"""Stages `plot_cases`, `plot_causes`, `plot_answers`: figures and tables of a case study, from tables alone."""

from __future__ import annotations

from inversescope.context import Context, echo, need
from inversescope.figures.tables import tidy
from inversescope.sites import Site, expand_sites
from inversescope.store import read_table
from inversescope.studies.cases.figures import (
    CASE_FIGURES,
    CASE_TABLES,
    plot_completeness,
    plot_digits,
    plot_distances,
    plot_effects,
    plot_sites,
    write_answers,
    write_cases,
    write_sizes,
)


def plot_cases(context: Context) -> None:
    """Draw what the sites of one experiment tell.

    Reads fcr.csv, refusal.csv, distances.csv and completeness* under results/{task}/{model};
    writes results/figures/{task}_{model}_{sites,distances,completeness}.* and
    results/tables/{task}_{model}_{cases,sizes}.{csv,md}.

    Raises:
        InputError: a table is missing; the message names the rule that makes it.
    """
    root, config = context.root, context.config
    task, model = context.task_name, context.model_name
    fcr, refusal = (
        tidy(read_table(need(context.results / f"{n}.csv", "collect_tables"))) for n in ("fcr", "refusal")
    )
    order = [site.label for site in computed_order(context)]
    epsilon, features = config.kernel.epsilon, list(config.fcr.features)
    figures = root / "results" / "figures"
    plot_sites(fcr, refusal, order, features, epsilon, figures / f"{task}_{model}_sites")
    distances, points, recall, sizes = (
        read_table(need(context.results / name, rule))
        for name, rule in (
            ("distances.csv", "compare_distances"),
            ("completeness.parquet", "check_completeness"),
            ("completeness_recall.csv", "check_completeness"),
            ("completeness_sizes.csv", "check_completeness"),
        )
    )
    # The decoders of other sizes are compared in the table.
    shown = [name for name in config.studied_variants if config.variant(name).study != "capacity"]
    plot_distances(distances, order, features, shown, figures / f"{task}_{model}_distances")
    plot_completeness(points, recall, shown, figures / f"{task}_{model}_completeness")
    write_sizes(sizes, refusal, epsilon, root / "results" / "tables" / f"{task}_{model}_sizes")
    write_cases(fcr, order, features, epsilon, root / "results" / "tables" / f"{task}_{model}_cases")
    echo("plot_cases: " + ", ".join([*CASE_FIGURES, *CASE_TABLES]))


def plot_causes(context: Context) -> None:
    """Draw FCR against causal effect: results/figures/{task}_{model}_causes.*, from causes.csv and causes_rank.csv.

    Raises:
        InputError: a table is missing; the message names the rule that makes it.
    """
    root, results = context.root, context.results
    task, model = context.task_name, context.model_name
    causes, ranks = (
        read_table(need(results / f"{n}.csv", "check_causes")) for n in ("causes", "causes_rank")
    )
    plot_effects(causes, ranks, root / "results" / "figures" / f"{task}_{model}_causes")
    echo(f"plot_causes: {len(set(causes['site']))} sites")


def plot_answers(context: Context) -> None:
    """Draw which sites carry which token of the answer, and write the table: results/{figures,tables}/{task}_{model}_answers.*.

    Raises:
        InputError: a table is missing; the message names the rule that makes it.
    """
    root, results = context.root, context.results
    task, model = context.task_name, context.model_name
    answers, ranks = (
        read_table(need(results / f"{n}.csv", "trace_answers")) for n in ("answers", "answers_rank")
    )
    plot_digits(answers, ranks, root / "results" / "figures" / f"{task}_{model}_answers")
    write_answers(answers, root / "results" / "tables" / f"{task}_{model}_answers")
    echo(f"plot_answers: {answers['digit'].max()} tokens")


def computed_order(context: Context) -> list[Site]:
    """Sites of an experiment position by position as it names them, each in the order of computation."""
    places: dict[str, None] = {}
    for pattern in context.plan.settings.sites:
        for site in expand_sites([pattern], *context.plan.shape):
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
        context.plan.sites, key=lambda s: (positions.index(s.position), s.layer, rank[s.kind], s.head or 0)
    )
