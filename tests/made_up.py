"""A made-up study: every table that figures read, with numbers that look like a study's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from inversescope.config import Config, ExperimentConfig
from inversescope.config.methods import Bandwidth, VariantConfig
from inversescope.config.targets import ModelConfig
from inversescope.context import Context
from inversescope.store import file_hash, identity, write_activations, write_json, write_table
from inversescope.workflow.figures import planned
from inversescope.workflow.plan import ExperimentPlan

EPSILONS = (0.005, 0.02, 0.05, 0.1, 0.15)
FEATURES = ("object", "subject", "item", "template")
LABELS = {
    "object": ["Anna", "Ben", "Carl", "Dora"],
    "subject": ["Anna", "Ben", "Carl", "Dora"],
    "item": ["ring", "drink", "kiss"],
    "template": ["when", "then"],
}
EVIL = "<script>alert('x')</script> [bold]Then[/bold] $a_b$ | `x`"
TASK, MODEL = "ioi", "toy"
KEY = {"task": TASK, "model": MODEL}
NOTE = f"{MODEL}: weights dequantised from toy.gguf."
CACHE = 50000


@dataclass(frozen=True)
class Sizes:
    """How large the made-up study is."""

    layers: int = 2
    heads: int = 4
    targets: int = 6
    draws: int = 20
    reference: int = 400
    steps: int = 30
    dimension: int = 4


def site_rows(sizes: Sizes) -> list[dict]:
    heads = [
        {"site": f"L{i}H{j}", "layer": i, "head": j} for i in range(sizes.layers) for j in range(sizes.heads)
    ]
    return heads + [{"site": f"L{i}.resid_post", "layer": i, "head": None} for i in range(sizes.layers)]


def make_config(
    sizes: Sizes, patched: tuple[str, ...] = (), shown: dict[str, list[str]] | None = None
) -> Config:
    variants = {
        "paper": VariantConfig(base="paper", colour="#D55E00"),
        "paper_s1": VariantConfig(base="paper", study="dimension"),
        "paper_eps0.05": VariantConfig(base="paper", epsilon=0.05, change="eps 0.05"),
        "paper_eps0.15": VariantConfig(base="paper", epsilon=0.15, change="eps 0.15"),
        "default": VariantConfig(base="default", pairs="kernel", eps_input=True, colour="#0072B2"),
        "default_sparse": VariantConfig(
            base="default", pairs="kernel", eps_input=True, cache_size=5000, change="cache of 5,000"
        ),
    }
    return Config(
        experiments={
            "toy": ExperimentConfig(
                model=MODEL,
                sites=["L*H*", "L*.resid_post"],
                patched=list(patched),
                n_test=sizes.targets,
                variants=[name for name, one in variants.items() if not one.study],
                studies=["paper_s1"],
                shown=shown or {},
            )
        },
        models={
            MODEL: ModelConfig(source="local", path="toy.gguf", n_layers=sizes.layers, n_heads=sizes.heads)
        },
        variants=variants,
    ).of(TASK, MODEL)


def make_study(root: Path, sizes: Sizes) -> Config:
    """Write every table that figures read, with numbers that look like a study's."""
    rng = np.random.default_rng(1)
    config = make_config(sizes)
    results = root / "results" / TASK / MODEL
    sites = site_rows(sizes)
    write_json({}, root / "data" / TASK / MODEL / "target" / "target.json")
    write_table(make_fcr(rng, config, sizes), results / "fcr.csv")
    write_table(make_refusal(rng, config, sizes), results / "refusal.csv")
    coverage = [
        KEY
        | {"site": site["site"], "epsilon": e, "cache_size": CACHE, "share_lt1": min(0.9, 0.0004 / e)}
        | {"share": e, "bandwidth": f"epsilon {e}"}
        | {"share_lt10": min(1, 0.002 / e), "share_lt100": min(1, 0.01 / e), "median_neighbours": 10.0}
        for site in sites
        for e in EPSILONS
    ]
    write_table(pd.DataFrame(coverage), results / "coverage.csv")

    for variant, floor in (("paper", 8.1), ("default", 8.6)):
        step = np.arange(1, sizes.steps + 1) * (3000 // sizes.steps)
        loss = floor + 0.5 + 3 * np.exp(-step / 300) + rng.normal(0, 0.08, sizes.steps)
        bayes = np.where(np.arange(sizes.steps) % 10 == 0, floor, np.nan)
        log = pd.DataFrame(
            {
                "step": step,
                "seconds": step * 0.1,
                "loss": loss,
                "bayes_floor": bayes,
                "learning_rate": 1e-3,
                "tokens_per_second": 1e4,
            }
        )
        write_table(log, results / "training" / "inversescope" / f"{variant}.csv")

    prompts = make_prompts(rng, sizes.targets)
    write_table(prompts, root / "data" / TASK / "prompts" / "test.parquet")
    reference = make_prompts(rng, sizes.reference)
    write_table(reference, root / "data" / TASK / "prompts" / "reference.parquet")
    make_exact(rng, results, sizes)
    for site in sites:
        code = rng.normal(size=(4, sizes.dimension))
        for split, frame in (("test", prompts), ("reference", reference)):
            label = frame["feature_object"].map(LABELS["object"].index).to_numpy()
            noise = rng.normal(0, 0.2, size=(len(frame), sizes.dimension))
            hashed = file_hash(root / "data" / TASK / "prompts" / f"{split}.parquet")
            path = root / "data" / TASK / MODEL / "activations" / split / f"{site['site']}.safetensors"
            write_activations(path, code[label] + noise, {"prompt_hash": hashed, "target": identity({})})
        for variant in ("paper", "default"):
            write_table(
                make_samples(rng, prompts, sizes),
                results / "samples" / "inversescope" / variant / f"{site['site']}.parquet",
            )
    make_study_tables(results, rng)
    return config


def make_fcr(
    rng: np.random.Generator, config: Config, sizes: Sizes, epsilons: tuple[float, ...] = EPSILONS
) -> pd.DataFrame:
    """Exact rates that fall with the bandwidth, and estimates around them: `paper` off, residual sites more so."""
    rows: list[dict] = []

    def add(key: dict, value: float, half: float, rmse: float, **more: object) -> None:
        low, mean, high = np.clip([value - half, value, value + half], 0, 1)
        rows.append(key | {"fcr": mean, "ci_low": low, "ci_high": high, "cell_rmse": rmse} | more)

    for k, site in enumerate(site_rows(sizes)):
        spread = 0.8 + 0.4 * rng.random()
        for feature in FEATURES:
            chance = 1 / len(LABELS[feature])
            peak = chance + (1 - chance) * rng.beta(0.5, 1.6)
            if (feature, k) in (("object", 5), ("subject", 3)):
                peak = 0.97
            for epsilon in epsilons:
                truth = chance + (peak - chance) * np.exp(-epsilon / 0.25)
                key = (
                    KEY
                    | site
                    | {"epsilon": epsilon, "share": epsilon, "bandwidth": f"epsilon {epsilon}"}
                    | {"feature": feature, "chance": chance, "ess": 40.0, "ess_low": 0.1}
                )
                key |= {
                    "n_targets": sizes.targets,
                    "n_samples": 100,
                    "generator": "",
                    "variant": "",
                    "decoding": "",
                }
                key |= {"cache_size": 0}
                add(key, truth, 0.02, 0.0, estimator="exact")
                wrong = 0.02 * spread / epsilon**0.4
                add(key, truth + rng.normal(0, 0.004), 0.03, wrong, estimator="cache", cache_size=CACHE)
                for name in ("mcmc", "nearest", "majority", "prior"):
                    add(key, truth * 0.3 + chance * 0.7 + rng.normal(0, 0.01), 0.02, 0.1, estimator=name)
                for variant, settings in config.variants.items():
                    if Bandwidth("epsilon", epsilon) not in config.bandwidths_of(variant):
                        continue
                    headline = config.bandwidth_of(variant).value
                    size = settings.cache_size or CACHE
                    own = key | {"generator": "inversescope", "variant": variant, "cache_size": size}
                    bias = (0.08 if site["head"] is None else 0.03) * (
                        2.2 if settings.base == "paper" else 0.8
                    )
                    wide = (1 if size == CACHE else 2) * spread
                    for decoding in config.decodings_of(
                        variant, epsilon == headline, site["head"] is not None
                    ):
                        own["decoding"] = decoding
                        if decoding == "noised":
                            continue
                        ends = {"error_low": bias - 0.03, "error_high": bias + 0.03}
                        drawn = truth + bias + rng.normal(0, 0.01)
                        add(own, drawn, 0.03, 0.07 * wide, estimator="generated", **ends)
                        wrong = 0.06 * wide / epsilon**0.1
                        add(own, truth + bias / 4 + rng.normal(0, 0.006), 0.03, wrong, estimator="reweighted")
                        add(own, chance + 0.02, 0.02, 0.2, estimator="shuffled")
                        if decoding == "plain":
                            wrong = 0.016 * wide / epsilon**0.32
                            add(own, truth + rng.normal(0, 0.004), 0.03, wrong, estimator="combined")
                            if size != CACHE:
                                few = max(1, round(sizes.targets * (1 - min(0.9, 0.004 / epsilon))))
                                add(own, truth, 0.05, 3 * wrong, estimator="cache", n_targets=few)
    return pd.DataFrame(rows)


def make_exact(
    rng: np.random.Generator, results: Path, sizes: Sizes, features: tuple[str, ...] = FEATURES
) -> None:
    """Exact values of every target: what early layers tell of the first features, later ones tell of the others."""
    targets = np.arange(sizes.targets)
    for site in site_rows(sizes):
        parts = []
        for epsilon in EPSILONS:
            frame = pd.DataFrame({"target_id": targets, "epsilon": epsilon, "n_ball": 40.0, "entropy": 3.0})
            frame["log_mass"] = np.log(np.minimum(1, epsilon * rng.uniform(0.05, 0.2, len(targets))))
            for number, feature in enumerate(features):
                peak = sizes.layers * (number + 0.5) / len(features)
                told = np.exp(-(((site["layer"] - peak) / max(1, sizes.layers / 5)) ** 2))
                told *= 1 if site["head"] is None else rng.beta(0.3, 1)
                frame[f"fcr_{feature}"] = np.clip(told + rng.normal(0, 0.05, len(targets)), 0.03, 1)
            parts.append(frame)
        write_table(pd.concat(parts, ignore_index=True), results / "exact" / f"{site['site']}.parquet")


def make_causes(rng: np.random.Generator, results: Path, sizes: Sizes) -> None:
    """Effects of heads on the answer: those of late layers, both ways."""
    rows = []
    for feature, compared in (("object", "answers"), ("subject", "labels")):
        for site in site_rows(sizes):
            effect = rng.normal(0, 1) * (site["layer"] + 1) / sizes.layers
            row = KEY | site | {"position": "last", "feature": feature, "chance": 0.25, "path": True}
            row |= {"fcr": rng.random(), "compared": compared, "same_as": site["site"], "total": 4.0}
            row |= {"effect": effect, "effect_low": effect - 0.1, "effect_high": effect + 0.1}
            rows.append(row | {"share": effect / 4, "answer_changes": 1.0, "n_pairs": 50})
    write_table(pd.DataFrame(rows), results / "causes.csv")


def make_reports(rng: np.random.Generator, study: pd.DataFrame) -> pd.DataFrame:
    """What generators report at each site of a study, at an epsilon and at a share: `paper` the more the larger the site."""
    parts = []
    for bandwidth, share in (("epsilon 0.1", 0.6), ("share 0.01", 0.01)):
        for feature in ("object", "subject"):
            rows = study.assign(bandwidth=bandwidth, feature=feature, share=share, chance=0.05)
            exact = 0.1 + 0.6 * (rows["kind"] == "H") * (feature == "object")
            wrong = np.where(rows["base"] == "paper", 0.12 * np.log2(rows["dim"] / 8), 0.01)
            rows["fcr"] = np.minimum(1, exact + wrong) + rng.normal(0, 0.01, len(rows))
            rows = rows.assign(exact=exact, exact_low=exact - 0.03, exact_high=exact + 0.03, n_targets=6)
            rows = rows.assign(ci_low=rows["fcr"] - 0.02, ci_high=rows["fcr"] + 0.02)
            parts.append(rows.assign(parse_refusal=0.1, distance_refusal=rows["refusal_rate"] - 0.1))
    return pd.concat(parts, ignore_index=True)


def make_refusal(rng: np.random.Generator, config: Config, sizes: Sizes) -> pd.DataFrame:
    """Refusal rows of every variant, site, bandwidth and decoding."""
    rows = []
    for k, site in enumerate(site_rows(sizes)):
        for variant, settings in config.variants.items():
            for bandwidth in config.bandwidths_of(variant):
                own = bandwidth == config.bandwidth_of(variant)
                for decoding in config.decodings_of(variant, own, site["head"] is not None):
                    paper, residual = settings.base == "paper", site["head"] is None
                    rate = 0.15 + 0.35 * rng.random() - 0.1 * (decoding == "mixed") + 0.05 * paper
                    row = {
                        "epsilon": bandwidth.value,
                        "share": bandwidth.value,
                        "bandwidth": str(bandwidth),
                        "n_candidates": sizes.targets * sizes.draws,
                        "refusal_rate": rate,
                    }
                    row |= {"entropy_gap": -0.3 * rng.random() - (0.9 if paper and residual else 0.1)}
                    row |= {
                        "parse_refusal": 0.02 * rng.random(),
                        "distance_refusal": rate - 0.01,
                        "copies": 0.001,
                    }
                    row |= {
                        "ci_low": rate - 0.03,
                        "ci_high": rate + 0.03,
                        "gap_low": -1.0,
                        "gap_high": 0.5,
                        "decoding": decoding,
                        "bits": 4 + k % 7,
                    }
                    row |= {"cache_size": settings.cache_size or CACHE, "bits_generated": 4.2 + k % 7}
                    row |= {"fcr_error": (0.12 if paper else 0.03) * rng.random() + 0.01}
                    if decoding != "noised":
                        rows.append(KEY | {"generator": "inversescope", "variant": variant} | site | row)
    return pd.DataFrame(rows)


def make_prompts(rng: np.random.Generator, count: int) -> pd.DataFrame:
    columns = {name: rng.choice(labels, count) for name, labels in LABELS.items()}
    text = [
        f"{template.capitalize()}, {subject} and {other} went to the restaurant downtown. {subject} gave a {item} to"
        for template, subject, other, item in zip(
            columns["template"], columns["subject"], columns["object"], columns["item"], strict=True
        )
    ]
    frame = pd.DataFrame({"prompt_id": np.arange(count) * 7, "text": text})
    return frame.assign(
        **{f"feature_{name}": pd.Categorical(values, LABELS[name]) for name, values in columns.items()}
    )


def make_samples(rng: np.random.Generator, prompts: pd.DataFrame, sizes: Sizes) -> pd.DataFrame:
    parts = []
    for decoding in ("plain", "mixed", "noised"):
        count = len(prompts) * sizes.draws
        frame = make_prompts(rng, count).drop(columns="prompt_id")
        names = [name for name in frame.columns if name.startswith("feature_")]
        frame[names] = frame[names].astype(object)
        target = np.repeat(np.arange(len(prompts)), sizes.draws)
        distance = rng.gamma(1.5, 0.12 if decoding == "noised" else 0.035, count)
        keep = rng.random(count) < np.exp(-distance / 0.3)
        for name in ("feature_object", "feature_subject"):
            frame.loc[keep, name] = prompts[name].astype(str).to_numpy()[target[keep]]
        parsed = rng.random(count) > 0.03
        frame.loc[~parsed, "text"] = EVIL
        frame.loc[~parsed, names] = ""
        frame = frame.assign(
            target_id=target, draw=np.tile(np.arange(sizes.draws), len(prompts)), parsed=parsed
        )
        frame = frame.assign(
            distance=np.where(parsed, distance, np.nan), accepted=parsed & (distance < 0.1), logq=-10.0
        )
        parts.append(frame.assign(epsilon=0.1, decoding=decoding, temperature=1.0))
    return pd.concat(parts, ignore_index=True)


def make_study_tables(results: Path, rng: np.random.Generator) -> None:
    rows = []
    for base in ("paper", "default"):
        for multiple in (1, 3):
            for seed in (1, 2, 3):
                for kind, dim in (("H", 16), (".resid_post", 64), (".mlp_post", 256)):
                    for layer in range(2):
                        site = f"L{layer}H0" if kind == "H" else f"L{layer}{kind}"
                        wrong = (0.02 + 0.035 * np.log2(dim / 8)) if base == "paper" else 0.03
                        rows.append(
                            {
                                "variant": f"{base}_s{seed}",
                                "base": base,
                                "seed": seed,
                                "steps_multiple": multiple,
                                "site": site,
                                "dim": dim,
                                "kind": kind,
                                "epsilon": 0.1,
                                "bandwidth": "epsilon 0.1",
                                "refusal_rate": 0.3 / np.log2(dim / 4) / multiple**0.3 + rng.normal(0, 0.005),
                                "entropy_gap": (-0.25 * np.log2(dim / 8) if base == "paper" else -0.3)
                                + rng.normal(0, 0.03),
                                "fcr_error": wrong + rng.normal(0, 0.004),
                                "fcr_error_weighted": wrong / 2 + rng.normal(0, 0.003),
                                "train_seconds": 60.0 * multiple,
                            }
                        )
    write_table(pd.DataFrame(rows), results / "study.csv")
    write_table(make_reports(rng, pd.DataFrame(rows)), results / "study_rates.csv")
    changes = {
        "paper": "",
        "paper_subspace": "noise in the head's subspace",
        "paper_unit": "norm not seen",
        "paper_unfrozen": "backbone unfrozen",
        "paper_map": "two residual blocks in the site map",
        "default": "",
        "default_hard": "one drawn neighbour as the label",
        "default_nomean": "no kernel mean embedding",
        "default_frozen": "backbone frozen",
        "default_widen": "anchors without a neighbour: bandwidth widened until one is found",
    }
    rows = []
    for variant, change in changes.items():
        base = variant.partition("_")[0]
        for group in ("heads", "residual"):
            error = (
                (0.08 if base == "paper" else 0.03)
                * (1.5 if group == "residual" else 1)
                * (1 + 0.5 * rng.random())
            )
            rows.append(
                {
                    "variant": variant,
                    "base": base,
                    "change": change,
                    "group": group,
                    "refusal_rate": 0.1 + 0.3 * rng.random(),
                    "entropy_gap": -rng.random(),
                    "fcr_error": error,
                    "fcr_error_weighted": error / 3,
                    "cell_rmse": 0.03,
                    "epsilon": 0.1,
                    "bandwidth": "epsilon 0.1",
                    "ci_low": error * 0.9,
                    "ci_high": error * 1.1,
                }
            )
    write_table(pd.DataFrame(rows), results / "ablations.csv")


def context_of(root: Path, config: Config) -> Context:
    return Context(root, config, TASK, MODEL)


def names_of(stage: str, kind: str, config: Config) -> list[str]:
    return [one.name for one in planned(stage, ExperimentPlan(config, TASK, MODEL)) if one.kind == kind]
