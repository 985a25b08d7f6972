"""The headline numbers of RAVEL beside their goals: what `inversescope show ravel` prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from inversescope.config import Config
from inversescope.errors import InputError
from inversescope.report.lines import cost_lines
from inversescope.store import read_table
from inversescope.studies.ioi.headline import MET, MISSED, NO_GOAL, NOT_MEASURED, Line, section_table

#: InverseScope's accuracy minus the exact posterior's, and its refusal rate over all layers.
AGREEMENT, REFUSAL = 0.03, 0.15
#: Bandwidths whose validation accuracy differs by no more are as good: the widest leaves fewest balls empty.
TIE = 0.01
#: Decoding rules: suffix of a method's name -> in words.
DECODINGS = {"": "plain", "_mixed": "cache mixing"}
METHODS = ("exact_top", "default_top", "paper_top", "sae_ravel", "sae_general", "probe", "nearest")
#: Minutes that the whole study may take on two cores.
MINUTES = 8.0
#: Benchmark of training throughput, and its column with the ratio to the peer.
BENCH, RATIO = "sae.csv", "speed_ratio"


def headline(root: Path, config: Config) -> list[Line]:
    """Compute the headline numbers from results/ravel/*.csv.

    Raises:
        InputError: a table is missing.
    """
    folder = root / "results" / "ravel"
    tables = {}
    for name in ("scores", "refusal", "targets", "bandwidth", "saes"):
        path = folder / f"{name}.csv"
        if not path.exists():
            raise InputError(f"{path} does not exist", "Run `snakemake --cores 2 -- ravel` (rule plot_ravel)")
        tables[name] = read_table(path)
    scores = tables["scores"].sort_values(["d_model", "model", "layer"])
    models = list(dict.fromkeys(scores["model"]))
    lines = _targets(tables["targets"])
    for model in models:
        lines += _layers(scores[scores["model"] == model], model)
    for model in models:
        lines += _refusal(tables["refusal"], model, config)
    lines += _sizes(scores)
    lines += _bandwidth(tables["bandwidth"], config)
    lines += _autoencoders(tables["saes"])
    lines += _bench(root / "results" / "bench" / BENCH)
    return lines + cost_lines(root, "ravel", "RAVEL", MINUTES)


def show_ravel(root: Path, config: Config, console: Console | None = None) -> bool:
    """Print the headline numbers; true if no goal is missed."""
    console = console or Console()
    lines = headline(root, config)
    for section in dict.fromkeys(line.section for line in lines):
        console.print(section_table([line for line in lines if line.section == section]))
    return all(line.verdict != MISSED for line in lines)


def _targets(rows: pd.DataFrame) -> list[Line]:
    lines = []
    for row in rows.to_dict("records"):
        trained = row["accuracy"]
        held_out = row["accuracy_held_out"]
        value = (
            f"{trained:.3f}; held-out templates {held_out:.3f}"
            if np.isfinite(trained)
            else "not trained here"
        )
        verdict = NO_GOAL if not np.isfinite(trained) else MET if trained >= 0.99 else MISSED
        lines.append(
            Line("answers of the targets", f"{row['model']}, trained templates", value, "≥ 0.99", verdict)
        )
    return lines


def _layers(rows: pd.DataFrame, model: str) -> list[Line]:
    """Agreement with the exact posterior, macro-F1 against SAE (RAVEL), growth with depth; seen and new templates apart."""
    lines = []
    for group, title in (("seen", "templates of the prior"), ("new", "new templates")):
        part = rows[rows["group"] == group]
        section = f"{model}: {title}, new entities; by layer"
        accuracy = part.pivot(index="layer", columns="method", values="accuracy")
        f1 = part.pivot(index="layer", columns="method", values="macro_f1")
        if accuracy.empty:
            continue

        def text(values: pd.Series) -> str:
            return " ".join(f"{v:.2f}" for v in values)

        lines.append(Line(section, "accuracy, exact posterior", text(accuracy["exact"]), "", NO_GOAL))
        for decoding, how in DECODINGS.items():
            names = {v: v + decoding for v in ("default", "paper") if v + decoding in accuracy}
            if "default" not in names:
                continue
            gap = {v: accuracy[name] - accuracy["exact"] for v, name in names.items()}
            shown = {
                v: f"{text(accuracy[names[v]])} (largest difference {g.loc[g.abs().idxmax()]:+.3f})"
                for v, g in gap.items()
            }
            goal, verdict = "", NO_GOAL
            if group == "seen":
                goal = f"within {AGREEMENT:g} of exact"
                verdict = MET if float(gap["default"].abs().max()) <= AGREEMENT else MISSED
            what = f"accuracy, InverseScope, {how}"
            lines.append(Line(section, what, shown["default"], goal, verdict, shown.get("paper", "")))
            if group == "seen" and "sae_ravel" in f1:
                goal = "above SAE (RAVEL) at every layer"
                verdict = MET if bool((f1[names["default"]] > f1["sae_ravel"]).all()) else MISSED
            value = {v: text(f1[name]) for v, name in names.items()}
            what = f"macro-F1, InverseScope, {how}"
            lines.append(Line(section, what, value["default"], goal, verdict, value.get("paper", "")))
        for method in METHODS:
            if method in f1:
                both = f"F1 {text(f1[method])}; accuracy {text(accuracy[method])}"
                lines.append(Line(section, method, both, "", NO_GOAL))
        if group == "seen":
            for method in ("exact", "default"):
                values = accuracy[method].to_numpy()
                grows = bool((np.diff(values) >= -0.01).all() and values[-1] > values[0])
                lines.append(
                    Line(
                        section,
                        f"accuracy with depth, {method}",
                        f"{values[0]:.2f} to {values[-1]:.2f}, {'never falls' if grows else 'falls somewhere'}",
                        "grows",
                        MET if grows else MISSED,
                    )
                )
    return lines


def _refusal(refusal: pd.DataFrame, model: str, config: Config) -> list[Line]:
    epsilon = config.of("ravel", model).kernel.epsilon
    here = refusal[(refusal["model"] == model) & np.isclose(refusal["epsilon"], epsilon)]
    lines = []
    for decoding, how in DECODINGS.items():
        rows = here[here["decoding"] == (decoding.removeprefix("_") or "plain")]
        mean = rows.groupby("variant")[["refusal_rate", "parse_refusal", "entropy_gap"]].mean()
        if "default" not in mean.index:
            continue
        text = {
            str(
                v
            ): f"{row['refusal_rate']:.3f} (not in the prior {row['parse_refusal']:.3f}, gap {row['entropy_gap']:+.2f})"
            for v, row in mean.iterrows()
        }
        verdict = MET if float(mean.loc["default", "refusal_rate"]) < REFUSAL else MISSED
        section = "refusal, mean over layers, templates of the prior"
        what = f"{model}, ε = {epsilon:g}, {how}"
        lines.append(Line(section, what, text["default"], f"< {REFUSAL:g}", verdict, text.get("paper", "")))
    return lines


def _sizes(scores: pd.DataFrame) -> list[Line]:
    part = scores[scores["group"] == "seen"]
    mean = part.groupby(["method", "d_model"])["accuracy"].mean()
    lines = []
    for method in ("exact", "default", "paper"):
        values = mean.loc[method]
        text = ", ".join(f"width {w}: {v:.3f}" for w, v in values.items())
        lines.append(Line("accuracy by size, mean over layers", method, text, "", NO_GOAL))
    return lines


def _bandwidth(rows: pd.DataFrame, config: Config) -> list[Line]:
    """The bandwidth is the widest of those by which the exact posterior reads about as many validation prompts as by the best."""
    mean = rows.groupby("epsilon")[["accuracy", "empty"]].mean()
    good = mean.index[mean["accuracy"] >= mean["accuracy"].max() - TIE]
    chosen = float(max(good))
    used = config.of("ravel", str(rows["model"].iloc[0])).kernel.epsilon
    text = ", ".join(f"ε {e:g}: {r['accuracy']:.3f} ({r['empty']:.0%} empty)" for e, r in mean.iterrows())
    section = "bandwidth: accuracy of the exact posterior on validation prompts, mean over models and layers"
    verdict = MET if np.isclose(chosen, used) else MISSED
    goal = f"the widest within {TIE:g} of the best"
    return [Line(section, f"headline ε = {used:g}", text, goal, verdict)]


def _autoencoders(rows: pd.DataFrame) -> list[Line]:
    """Which sparsities validation prompts chose, over models and layers: at the ends of the grid the optimum may lie beyond it."""
    lines = []
    for corpus, part in rows.groupby("corpus"):
        best = part[part["chosen"].astype(bool)]
        counts = best["sparsity"].value_counts()
        grid = sorted(part["sparsity"].unique())
        text = ", ".join(f"λ {value:g}: {counts.get(value, 0)}" for value in grid)
        active = f"{best['l0'].min():.0f} to {best['l0'].max():.0f} features active"
        section = "autoencoders: how often validation prompts chose a sparsity, models and layers"
        lines.append(Line(section, str(corpus), f"{text}; {active}", "", NO_GOAL))
    return lines


def _bench(path: Path) -> list[Line]:
    section = "training of autoencoders, one thread"
    what = "activations/s, and its ratio to a peer library's"
    if not path.exists():
        return [Line(section, what, "not measured: python -m bench sae", "", NOT_MEASURED)]
    rows = read_table(path)
    own = rows[rows["method"] == "inversescope"].iloc[0]
    ratio = f"{own[RATIO]:.2f} times" if RATIO in own and np.isfinite(own[RATIO]) else "peer not installed"
    return [Line(section, what, f"{own['activations_per_second']:.0f}, {ratio}", "", NO_GOAL)]
