"""Stages `make_report` and `make_studies`: the two self-contained pages of what the other stages made, without torch.

They hold headline numbers, figures, rates and samples; every text of a model is escaped.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined, UndefinedError

from inversescope import __version__
from inversescope.config import Config
from inversescope.config.methods import PLAIN
from inversescope.context import Context, need
from inversescope.errors import InputError, neutral
from inversescope.figures.headline import by_section, headline_files, read_headlines
from inversescope.figures.study import Study
from inversescope.figures.tables import DECODINGS, VARIANTS, full_cache, select
from inversescope.store import atomic_path, read_table
from inversescope.workflow import paths
from inversescope.workflow.figures import Shown, all_of
from inversescope.workflow.plan import FEW_SHOT, IOI, ExperimentPlan, Plan, weights_note

#: Captions are shared with `snakemake --report`: reStructuredText that reads as plain text too.
CAPTIONS = Path(__file__).resolve().parents[3] / "report"
#: The page; jinja2 escapes whatever is put into it.
TEMPLATE = Path(__file__).resolve().with_name("page.html.j2")
#: What studies are about; of a task that is not named here nothing is said.
ABOUT = {
    "ioi": "Sections 4.1 and E of the paper: which names do attention heads and the residual stream encode? docs/ioi.md",
    "ioi_small": "The same with fewer words, so that all prompts are run on a language model. docs/ioi.md",
    "ravel": "Sections 4.2, D.2 and E.3 of the paper: which attribute of an entity does the residual stream encode? docs/ravel.md",
    "icl_translation": "Sections 4.3, D.3 and E.4 of the paper: where the task and the query enter. docs/icl.md",
    "icl_words": "Section 4.3 of the paper on a model that was not made for it: where task and query enter. docs/icl.md",
    "counting": "InversionView's case study: how often does a letter occur? docs/counting.md",
    "addition": "InversionView's case study: three-digit addition. docs/counting.md",
    "text": "Prompts from a file. docs/text.md",
}


@dataclass(frozen=True)
class Section:
    """A study on a page.

    Attributes:
        title: its heading.
        prefix: how names of its files begin.
        experiment: whose figures are shown; of several, any.
    """

    title: str
    prefix: str
    experiment: ExperimentPlan

    @property
    def name(self) -> str:
        """What links to it end in."""
        return self.prefix.removesuffix("_")

    def filled(self, root: Path) -> dict[str, Any]:
        """What the template shows; figures that were not drawn are named as not run.

        Raises:
            InputError: there are no headline numbers.
        """
        plan, drawn = self.experiment, all_of(self.experiment)
        numbers = read_headlines(headline_files(root, self.prefix, drawn))
        if numbers is None:
            path = root / "results" / "tables" / f"{self.prefix}headline.csv"
            rule = next(one.stage for one in drawn if one.name == "headline")
            raise InputError(f"{path} does not exist", f"Run {rule}")
        shown = [one for one in drawn if one.kind == "figure"]
        pictures = [picture(root, self.prefix, one, plan.config) for one in shown]
        headline = [(title, grid(table)) for title, table in by_section(numbers).items()]
        about = f"{ABOUT.get(plan.task, '')} {weights_note(plan.config, self.prefix)}".strip()
        text = {"name": self.name, "title": self.title, "about": about}
        return text | {"headline": headline, "figures": pictures}


def make_report(context: Context) -> None:
    """Write results/report.html, the page of one study on indirect object identification, with all of its rates and samples.

    The page needs no other file: pictures are data URIs. It holds no date, so equal tables give equal bytes.

    Raises:
        InputError: a table of `plot_figures` is missing; what other stages draw is named as not run instead.
    """
    study, config = Study(context), context.config
    task, model = context.task_name, context.model_name
    section = Section(f"{task} on {model}", f"{task}_{model}_", context.plan)
    filled = section.filled(context.root)
    tables = [("Feature consistency rates", *_rates(study, feature)) for feature in study.features]
    tables.append(("Refusal, entropy gap and FCR error", "", _refusal(study)))
    for name, title, left_out in (
        ("table1", "Samples with their distances", ["target_id", "seed", "reason"]),
        ("failures", "Failure cases", ["target_id", "draw"]),
    ):
        table = read_table(need(context.path(paths.TABLE, name=name, suffix="csv"), "plot_figures"))
        tables.append((title, caption(name, config), grid(table.drop(columns=left_out), {"distance": ".3f"})))
    path = context.root / "results/report.html"
    write_page(path, title=section.title, sections=[filled], tables=tables, seed=config.seed)


def sections(config: Config) -> list[Section]:
    """All studies of the configuration but the one that the report shows.

    Args:
        config: the whole configuration, not as one experiment sees it.
    """
    found: dict[str, Section] = {}
    plan = Plan(config)
    for one in plan.experiments:
        if one.task == "ravel":
            found.setdefault("ravel", Section("RAVEL, all targets", "ravel_", one))
        elif one is not plan.reported and one.studied:  # a control is shown beside another model
            kinds = {"In-context learning": FEW_SHOT, "Indirect object identification": IOI}
            title = next((kind for kind, tasks in kinds.items() if one.task in tasks), one.task.capitalize())
            found[one.name] = Section(f"{title}: {one.model}", f"{one.task}_{one.model}_", one)
    return list(found.values())


def make_studies(context: Context) -> None:
    """Write results/studies.html, the page of all other studies, which needs no other file.

    Raises:
        InputError: a table of headline numbers is missing.
    """
    config = context.whole or context.config
    filled = [section.filled(context.root) for section in sections(config)]
    path = context.root / "results/studies.html"
    write_page(path, title="all other studies", sections=filled, tables=[], seed=config.seed)


def write_page(path: Path, **values: Any) -> None:
    """Fill in the page, escaping whatever is put into it, and write it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(version=__version__, **values)
    with atomic_path(path) as part:
        part.write_text(page, encoding="utf-8")


def picture(root: Path, prefix: str, shown: Shown, config: Config) -> dict[str, Any]:
    """A figure for the page, as a data URI; without its file, the rule that makes it stands instead."""
    path = root / "results" / "figures" / f"{prefix}{shown.name}.png"
    image = base64.b64encode(path.read_bytes()).decode("ascii") if path.exists() else None
    text = {"name": path.stem, "title": shown.title, "caption": caption(shown.caption, config)}
    return text | {"image": image, "command": f"rule {shown.stage}"}


def caption(name: str, config: Config) -> str:
    """The caption of a figure or table, on one line, filled in from the configuration.

    Raises:
        InputError: there is no such caption, or it names a key that the configuration lacks.
    """
    path = CAPTIONS / f"{name}.rst"
    if not path.exists():
        raise InputError(
            f"The caption {path} does not exist",
            "Install the package editable from its checkout (pip install -e .)",
        )
    # Captions are ours and hold no markup; the page escapes them like any other text.
    environment = Environment(undefined=StrictUndefined)
    try:
        text = environment.from_string(path.read_text(encoding="utf-8")).render(
            snakemake={"config": captioned(config)}
        )
    except UndefinedError as error:
        raise InputError(
            f"The caption {path} uses what the configuration lacks ({error})", "Mend the caption"
        ) from None
    return " ".join(text.replace("``", "").split())


def captioned(config: Config) -> dict[str, Any]:
    """What captions quote: the configuration, and the headline bandwidth in words."""
    return config.model_dump(mode="json") | {"bandwidth": config.bandwidth_label}


def grid(frame: pd.DataFrame, formats: dict[str, str] | None = None) -> dict[str, Any]:
    """A table for the page: cells as text (escaped by the template), numeric columns to the right."""
    formats = formats or {}
    columns = [str(name) for name in frame.columns]
    rows = [
        [(name, _cell(value, formats.get(name, ".3g"))) for name, value in zip(columns, row, strict=True)]
        for row in frame.itertuples(index=False)
    ]
    numeric = [
        str(name)
        for name in frame.columns
        if pd.api.types.is_numeric_dtype(frame[name]) and not pd.api.types.is_bool_dtype(frame[name])
    ]
    return {"columns": columns, "rows": rows, "numeric": numeric}


def _cell(value: Any, form: str) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return format(float(value), form) if np.isfinite(value) else ""
    return "" if value is None or value is pd.NA else neutral(str(value))


def _rates(study: Study, feature: str) -> tuple[str, dict[str, Any]]:
    """Rates of one feature with intervals, one row a site: exact, cache, both variants' estimators."""
    rows = full_cache(select(study.rates, feature=feature))
    shown = [("exact", ""), ("cache", "")]
    shown += [(name, variant) for variant in VARIANTS for name in ("generated", "reweighted", "combined")]
    sites = list(dict.fromkeys(rows["site"]))
    table = pd.DataFrame({"site": sites})
    for estimator, variant in shown:
        part = rows[rows["estimator"] == estimator]
        part = part[(part["variant"] == variant) & (part["decoding"] == PLAIN)] if variant else part
        part = part.drop_duplicates("site").dropna(subset="fcr")
        cells = {
            one.site: f"{one.fcr:.3f} [{one.ci_low:.3f}, {one.ci_high:.3f}]" for one in part.itertuples()
        }
        title = f"{variant}, {estimator}" if variant else estimator
        table[title] = [cells.get(site, "–") for site in sites]
    exact = rows[rows["estimator"] == "exact"]
    about = (
        f"{feature}: rate [interval], {study.bandwidth_label}, {int(exact['n_targets'].min())} target prompts a site, "
        f"chance {float(rows['chance'].mean()):.3f}"
    )
    return about, grid(table) | {"numeric": list(table.columns[1:])}


def _refusal(study: Study) -> dict[str, Any]:
    """Refusal with its interval, entropy gap and FCR error of every site, variant and decoding."""
    rows = select(study.refusals, "refusal.csv", variant=list(VARIANTS), decoding=list(DECODINGS))
    rows = full_cache(rows).drop_duplicates(["site", "variant", "decoding"])
    refused = [f"{r.refusal_rate:.3f} [{r.ci_low:.3f}, {r.ci_high:.3f}]" for r in rows.itertuples()]
    about = {"site": "site", "variant": "variant", "decoding": "decoding", "refused": "refused"}
    numbers = {
        "parse_refusal": "not in the prior",
        "distance_refusal": "too far",
        "entropy_gap": "entropy gap (nats)",
        "fcr_error": "FCR error",
        "copies": "copies",
    }
    bits = {"bits": "bits (exact)", "bits_generated": "bits (generated)"}
    names = about | numbers | bits | {"n_candidates": "candidates"}
    decoding = rows["decoding"].map(DECODINGS)
    table = rows.assign(refused=refused, decoding=decoding)[list(names)].rename(columns=names)
    found = grid(table, dict.fromkeys(numbers.values(), ".3f") | dict.fromkeys(bits.values(), ".2f"))
    return found | {"numeric": [*found["numeric"], "refused"]}
