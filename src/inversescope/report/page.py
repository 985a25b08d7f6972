"""The self-contained report: headline numbers, figures, rates, samples; every text of a model escaped."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined, UndefinedError

from inversescope import __version__
from inversescope.config import Config
from inversescope.errors import InputError, neutral
from inversescope.figures.tables import MIXED, PLAIN, full_cache, select, tidy
from inversescope.report.lines import Line
from inversescope.store import atomic_path, read_table, write_table
from inversescope.studies.cases.figures import CAUSE_FIGURES
from inversescope.studies.ioi.figures import FIGURES, FRONTIER_FIGURES, STUDY_FIGURES, TABLES
from inversescope.studies.ioi.headline import headline, headline_frame
from inversescope.studies.ioi.samples import markdown

#: Captions are shared with `snakemake --report`: reStructuredText that reads as plain text too.
CAPTIONS = Path(__file__).resolve().parents[3] / "report"
#: The page; jinja2 escapes whatever is put into it.
TEMPLATE = Path(__file__).resolve().with_name("page.html.j2")


def write_report(root: Path, config: Config, task: str, model: str) -> list[Path]:
    """Write results/report.html and the headline table (results/tables/{task}_{model}_headline.{csv,md}).

    The page needs no other file: pictures are data URIs. It holds no date, so equal tables give equal bytes.

    Args:
        root: repository root.
        config: the configuration.
        task: name of the task.
        model: name of the target model.

    Returns:
        The paths written.

    Raises:
        InputError: a table or figure is missing; those of `plot_causes`, `plot_study` and `plot_frontier` are named as not
        run instead.
    """
    results, stem = root / "results", f"{task}_{model}"
    lines = headline(root, config, task, model)
    checked = CAUSE_FIGURES if config.experiment(task, model).patched else {}
    optional = checked | STUDY_FIGURES | FRONTIER_FIGURES
    captions = {name: caption(name, config) for name in [*FIGURES, *optional, *TABLES]}
    made_by = {
        **dict.fromkeys(checked, "plot_causes"),
        **dict.fromkeys(STUDY_FIGURES, "plot_study"),
        **dict.fromkeys(FRONTIER_FIGURES, "plot_frontier"),
    }
    pictures = []
    for name, title in (FIGURES | optional).items():
        path = results / "figures" / f"{stem}_{name}.png"
        if name in FIGURES and not path.exists():
            raise InputError(f"{path} does not exist", "Run plot_figures")
        pictures.append(picture(path, title, captions[name], f"inversescope {made_by.get(name)}"))
    fcr = tidy(_need(results / task / model / "fcr.csv", "collect_tables"))
    refusal = tidy(_need(results / task / model / "refusal.csv", "collect_tables"))
    samples = _need(results / "tables" / f"{stem}_table1.csv", "plot_figures")
    failed = _need(results / "tables" / f"{stem}_failures.csv", "plot_figures")
    html = write_page(
        results / "report.html",
        title=f"{task} on {model}",
        studies=[],
        task=task,
        model=model,
        seed=config.seed,
        epsilon=f"{config.kernel.epsilon:g}",
        confidence=f"{config.fcr.confidence:.0%}",
        headline=by_section(lines),
        figures=pictures,
        captions=captions,
        rates=[_rates(fcr, feature, config.kernel.epsilon) for feature in config.fcr.features],
        refusal=_refusal(refusal, config.kernel.epsilon),
        samples=_grid(
            samples.drop(columns=["target_id", "seed", "reason"], errors="ignore"), {"distance": ".3f"}
        ),
        failures=_grid(failed.drop(columns=["target_id", "draw"], errors="ignore"), {"distance": ".3f"}),
    )
    return [html, *write_headline(lines, results / "tables" / f"{stem}_headline")]


def write_page(path: Path, **values: Any) -> Path:
    """Fill in the page, escaping whatever is put into it, and write it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(version=__version__, **values)
    with atomic_path(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def by_section(lines: list[Line]) -> list[tuple[str, list[Line]]]:
    """Headline numbers under their sections."""
    sections: dict[str, list[Line]] = {}
    for line in lines:
        sections.setdefault(line.section, []).append(line)
    return list(sections.items())


def picture(path: Path, title: str, about: str, command: str) -> dict[str, Any]:
    """A figure for the page, as a data URI; without its file, the command that makes it stands instead."""
    image = base64.b64encode(path.read_bytes()).decode("ascii") if path.exists() else None
    return {"name": path.stem, "title": title, "caption": about, "image": image, "command": command}


def write_headline(lines: list[Any], out: Path) -> list[Path]:
    """Write the headline numbers as CSV and Markdown."""
    frame = headline_frame(lines)
    csv, md = out.parent / f"{out.name}.csv", out.parent / f"{out.name}.md"
    write_table(frame, csv)
    text = ["| | default | goal | | paper |", "| --- | --- | --- | --- | --- |"]
    for section, part in frame.groupby("section", sort=False):
        text.append(f"| **{markdown(section)}** | | | | |")
        for row in part.drop(columns="section").itertuples(index=False):
            text.append(" ".join(["|", " | ".join(markdown(cell) for cell in row), "|"]))
    with atomic_path(md) as part_path:
        part_path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return [csv, md]


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
            snakemake={"config": config.model_dump(mode="json")}
        )
    except UndefinedError as error:
        raise InputError(
            f"The caption {path} uses what the configuration lacks ({error})", "Mend the caption"
        ) from None
    return " ".join(text.replace("``", "").split())


def _need(path: Path, rule: str) -> pd.DataFrame:
    if not path.exists():
        raise InputError(f"{path} does not exist", f"Run {rule}")
    return read_table(path)


def _grid(frame: pd.DataFrame, formats: dict[str, str] | None = None) -> dict[str, Any]:
    """A table for the page: cells as text (escaped by the template), numeric columns to the right."""
    formats = formats or {}
    columns = list(frame.columns)
    rows = [
        [(name, _cell(value, formats.get(name, ".3g"))) for name, value in zip(columns, row, strict=True)]
        for row in frame.itertuples(index=False)
    ]
    numeric = [
        name
        for name in columns
        if pd.api.types.is_numeric_dtype(frame[name]) and not pd.api.types.is_bool_dtype(frame[name])
    ]
    return {"columns": columns, "rows": rows, "numeric": numeric}


def _cell(value: Any, form: str) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return format(float(value), form) if np.isfinite(value) else ""
    return "" if value is None or value is pd.NA else neutral(str(value))


def _rates(fcr: pd.DataFrame, feature: str, epsilon: float) -> dict[str, Any]:
    """Rates of one feature with intervals, one row a site: exact, both variants' estimators, cache."""
    rows = full_cache(select(fcr, feature=feature, epsilon=epsilon))
    shown = [("exact", "", "exact"), ("cache", "", "cache")]
    for variant in ("paper", "default"):
        shown += [(name, variant, f"{variant}, {name}") for name in ("generated", "reweighted", "combined")]
    table: dict[str, dict[str, str]] = {site: {} for site in dict.fromkeys(rows["site"])}
    for estimator, variant, title in shown:
        part = rows[rows["estimator"] == estimator]
        part = part[(part["variant"] == variant) & (part["decoding"] == PLAIN)] if variant else part
        part = part.drop_duplicates("site").set_index("site")
        for site in table:
            if site in part.index:
                one = part.loc[site]
                table[site][title] = (
                    f"{one['fcr']:.3f} [{one['ci_low']:.3f}, {one['ci_high']:.3f}]"
                    if np.isfinite(one["fcr"])
                    else "–"
                )
            else:
                table[site][title] = "–"
    frame = pd.DataFrame.from_dict(table, orient="index").rename_axis("site").reset_index()
    exact = rows[rows["estimator"] == "exact"].drop_duplicates("site")
    targets = f"{int(exact['n_targets'].min())}" if len(exact) else "?"
    chance = f"{float(rows['chance'].mean()):.3f}"
    title = f"{feature}: rate [interval], ε = {epsilon:g}, {targets} target prompts a site, chance {chance}"
    grid = _grid(frame)
    return grid | {"title": title, "numeric": [name for name in frame.columns if name != "site"]}


def _refusal(refusal: pd.DataFrame, epsilon: float) -> dict[str, Any]:
    """Refusal with its interval, entropy gap and FCR error of every site, variant and decoding."""
    rows = full_cache(
        select(refusal, "refusal.csv", epsilon=epsilon, variant=["paper", "default"], decoding=[PLAIN, MIXED])
    )
    rows = rows.drop_duplicates(["site", "variant", "decoding"])
    frame = pd.DataFrame(
        {
            "site": rows["site"],
            "variant": rows["variant"],
            "decoding": rows["decoding"].map({PLAIN: "plain", MIXED: "cache mixing"}),
            "refused": [
                f"{r:.3f} [{a:.3f}, {b:.3f}]"
                for r, a, b in zip(rows["refusal_rate"], rows["ci_low"], rows["ci_high"], strict=True)
            ],
            "not in the prior": rows["parse_refusal"],
            "too far": rows["distance_refusal"],
            "entropy gap (nats)": rows["entropy_gap"],
            "FCR error": rows["fcr_error"],
            "copies": rows["copies"],
            "bits (exact)": rows["bits"],
            "bits (generated)": rows["bits_generated"],
            "candidates": rows["n_candidates"],
        }
    )
    forms = {
        name: ".3f" for name in ("not in the prior", "too far", "entropy gap (nats)", "FCR error", "copies")
    }
    grid = _grid(frame, forms | {"bits (exact)": ".2f", "bits (generated)": ".2f"})
    return grid | {"numeric": [*grid["numeric"], "refused"]}
