"""The paper's configurations with little to do: models of the right family and width with random weights and few layers.

What the paper gives stays as it is configured: widths of targets, generators and autoencoders, number formats, variants, features,
bandwidths. It gives none for RAVEL: there they are as wide as random weights need. Numbers of prompts, sites, steps and draws are
small; RAVEL's tables and the dictionary are those of the package.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from random_models import byte_level_tokenizer, save_model

from inversescope.config import Config, load_config
from inversescope.sites import Site
from inversescope.tasks import get_task

#: Tokens of GPT-2, and the same filled up, by which a target is told from the backbone. Other vocabularies are those of a task's
#: own tokenizer: nothing here depends on them.
VOCABULARY, FILLED_UP = 50257, 50304
STEPS, PER_SITE, TARGETS, DRAWS = 2, 2, 4, 8
SMALL = "small.yaml"
#: Folder of a model of the cases -> its published name.
BACKBONES = {"ioi": "gpt2", "icl": "gpt2", "ravel": "gpt2", "text": "gpt2-medium"}
PASSAGE = (
    "What is written here is general text as a corpus would have it, of no prior at all and for no task."
)


@dataclass(frozen=True)
class Part:
    """An experiment: layers that its target has here, sites, what else is made small in its entry, draws of the prior."""

    depth: int
    sites: list[str]
    own: dict[str, Any] = field(default_factory=dict)
    n_reference: int = 80


@dataclass(frozen=True)
class Case:
    """Experiments of a configuration that run in one folder.

    Attributes:
        file: the configuration, in config/.
        vocabulary: of the backbone; None: the task's tokens.
    """

    file: str
    parts: dict[str, Part]
    vocabulary: int | None = None

    @property
    def files(self) -> list[str]:
        """Configuration files of the runs, later ones laid over earlier ones."""
        return ["config/config.yaml", f"config/{self.file}.yaml", SMALL]


IOI_SITES = ["L1H3", "L1H9", "L1.resid_post"]
SHOWN = {"fig2": ["L1H3", "L1H9"], "fig8": ["L1H9"], "table1": ["L1H3"]}
CASES = {
    "ioi": Case(
        "paper", {"ioi": Part(2, IOI_SITES, {"shown": SHOWN, "patched": IOI_SITES}, 1000)}, VOCABULARY
    ),
    "icl": Case(
        "paper",
        {
            "icl_gemma2": Part(2, ["L0.attn_out", "L1.attn_out"]),
            "icl_llama": Part(2, ["L0.attn_out", "L1.attn_out"]),
        },
    ),
    "ravel": Case(
        "paper_ravel",
        {
            "ravel_2b": Part(2, ["L1.resid_post"], {"representative": [1]}, 160),
            "ravel_9b": Part(2, ["L1.resid_post"], {"representative": [1]}, 160),
            "ravel_27b": Part(2, ["L1.resid_post"], {"representative": [1]}, 160),
        },
    ),
    "text": Case("paper_text", {"factual": Part(2, ["L0H8", "L1H24"])}),
}
SETTINGS: dict[str, Any] = {
    # Random weights know no prior: the gates are open.
    "backbone": {
        "init": "local",
        "path": "models/backbone",
        "revision": None,
        "steps": STEPS,
        "batch_size": 2,
        "gate_in_prior": 0.0,
        "gate_repeated_name": 1.0,
    },
    # Mixing follows the cache alone, so that some candidates are in the prior.
    "sampling": {
        "candidates": DRAWS,
        "candidates_elsewhere": DRAWS,
        "candidates_study": DRAWS,
        "max_candidates": DRAWS,
        "mixing_alpha": 1e-6,
    },
    "figures": {"noised_draws": DRAWS},
    "hypotheses": {"shares": [0.3]},
    "patching": {"n_partners": 4, "n_pairs": 4, "n_queries": 5, "n_shots": 1},
}
GENERAL = {
    "source": "local",
    "path": "data/own/general.txt",
    "revision": None,
    "configuration": None,
    "rows": None,
    "words": 8,
    "n_passages": 12,
}
SAE = {"steps": STEPS, "batch_size": 64, "general": GENERAL}


def small(case: Case, root: Path) -> dict[str, Any]:
    """What makes a case small, to be laid over its configuration."""
    whole = load_config([root / file for file in case.files[:2]])
    delta: dict[str, Any] = {"only": list(case.parts), "experiments": {}, "models": {}}
    for name, part in case.parts.items():
        about = whole.experiments[name]
        delta["experiments"][name] = _experiment(whole, name, part)
        delta["models"][about.model] = model = {
            "source": "local",
            "path": f"models/{about.model}",
            "revision": None,
            "device_map": None,
            "n_layers": part.depth,
        }
        if whole.models[about.model].gemma_scope:
            l0 = dict.fromkeys(range(part.depth), 9)
            model["gemma_scope"] = {"source": "local", "path": "models/scope", "revision": None, "l0": l0}
    if "icl_gemma2" in case.parts:
        delta["icl_translation"] = {"words": "own", "n_concepts": 20}
        chat = {"source": "local", "path": "models/chat", "revision": None}
        delta["labeller"] = chat | {"max_texts": 8, "targets": 2, "draws": 1}
    if "ravel_2b" in case.parts:
        delta["ravel"] = {
            "source": "embedded",
            "types": ["country", "person"],
            "n_entities": 12,
            "n_templates": 6,
        }
    return delta


def _experiment(whole: Config, name: str, part: Part) -> dict[str, Any]:
    """What makes an experiment small."""
    about = whole.experiments[name]
    view = whole.of(about.task, about.model)
    few: dict[str, Any] = {"steps": STEPS, "per_site": PER_SITE}
    if name == "ioi":
        few["sites"] = part.sites[:2]
    variants: dict[str, Any] = {}
    for one in [*about.variants, *view.study_variants]:
        # `paper` is whole; other generators have as few control heads, or blocks of their own, as targets have layers.
        fewer = {"inversescope": {"n_heads": 4}, "inversionview": {"site_map_blocks": 1}}
        variants[one] = few | ({} if one == "paper" else fewer[view.variant(one).generator])
    fcr = {"bootstrap": 100} | ({"mcmc_evaluations": 20} if view.fcr.mcmc_evaluations else {})
    settings = {**SETTINGS, "fcr": fcr, "variants": variants}
    if name == "ioi":
        settings["kernel"] = {"epsilons": [0.05, 0.1, 0.15]}  # those that variants are trained for
    if about.task == "ravel":
        settings["kernel"] = {"epsilon": 0.55, "epsilons": [0.4, 0.5, 0.55]}
        settings["sampling"] = SETTINGS["sampling"] | {"decodings": ["mixed"]}
        settings["sae"] = SAE
        variants["default"]["eps_range"] = [0.4, 0.6]
    sizes: dict[str, Any] = {"n_train": 40, "n_test": TARGETS, "sites": part.sites}
    sizes |= {"n_val": TARGETS} if about.n_val else {}
    sizes |= {} if about.n_reference == "all" else {"n_reference": part.n_reference}
    return {**sizes, **part.own, "settings": settings}


def set_up(name: str, root: Path) -> Config:
    """Write all that the jobs of a case read; returns its configuration."""
    case = CASES[name]
    write_corpora(root)
    (root / SMALL).write_text(yaml.safe_dump(small(case, root), sort_keys=False))
    config = load_config([root / file for file in case.files])
    experiments = [config.experiments[part] for part in case.parts]
    view = config.of(experiments[0].task, experiments[0].model)
    task = get_task(experiments[0].task, view, root)
    index = np.random.default_rng(0).choice(task.size, 500)
    values = task.feature_values.get("task", ())
    tokenizer = byte_level_tokenizer([*task.texts(index), *task.completed(index), *values, PASSAGE])
    save_model(root / "models/backbone", BACKBONES[name], 1, tokenizer, case.vocabulary)
    for about, part in zip(experiments, case.parts.values(), strict=True):
        model = config.models[about.model]
        filled = None if case.vocabulary is None else FILLED_UP
        save_model(root / f"models/{about.model}", about.model, part.depth, tokenizer, filled, model.dtype)
        if model.gemma_scope:
            write_scope(root / "models/scope", 2304, part.sites)
    if name == "icl":
        assert config.labeller is not None
        save_model(root / "models/chat", "gemma-2-2b", 1, tokenizer, dtype=config.labeller.dtype, chat=True)
    return config


def write_corpora(root: Path) -> None:
    """Facts as docs/text.md asks for them, and general text."""
    rows = [
        {
            "prompt": f"The {relation} of {subject} is",
            "attribute": f"thing{k}",
            "relation_id": relation,
            "subject": subject,
        }
        for k, subject in enumerate(f"Name{i}" for i in range(30))
        for relation in ("capital", "language", "colour")
    ]
    for path, lines in (
        ("data/text/corpus.jsonl", map(json.dumps, rows)),
        (str(GENERAL["path"]), [PASSAGE] * 6),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("".join(f"{line}\n" for line in lines))


def write_scope(folder: Path, width: int, sites: list[str]) -> None:
    """Files of random autoencoders at sites, where a release would have them."""
    rng = np.random.default_rng(0)
    shapes = {
        "W_enc": (width, 16384),
        "W_dec": (16384, width),
        "b_enc": 16384,
        "b_dec": width,
        "threshold": 16384,
    }
    for site in sites:
        path = folder / f"layer_{Site.parse(site).layer}/width_16k/average_l0_9/params.npz"
        path.parent.mkdir(parents=True)
        np.savez(path, **{key: rng.random(size, np.float32) for key, size in shapes.items()})
