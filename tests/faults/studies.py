"""Smallest studies that faults are tried on: IOI alone, and all the others with models and upstream files beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from project import copy_workflow
from test_counting_study import checkpoint
from test_icl_translation import MIRROR as LISTS
from test_icl_translation import byte_level
from test_ravel import MIRROR as TABLES

from inversescope.config.targets import ArchitectureConfig
from inversescope.targets.models import build_model
from inversescope.tasks.icl_translation import CONCEPTS

TASK_FILES = ("config/config.yaml", "config/test/smallest_tasks.yaml", "upstream.yaml")
TASK_TARGETS = ("ravel", "icl_translation", "counting", "addition", "pages", "study")
MIRRORED = LISTS.is_dir() and TABLES.is_dir()
CHAT = "{% for m in messages %}user {{ m['content'] }}{% endfor %}{% if add_generation_prompt %}?{% endif %}"


def copy_of_tasks(folder: Path) -> Path:
    """The workflow in a folder of its own, with what the studies of smallest_tasks.yaml read from elsewhere."""
    copy_workflow(folder)
    checkpoint(folder / "models/checkpoint")
    words = [f"Input: {a}, Output: {b}\n Input: {b}, Output: {a}" for a, b, *_ in CONCEPTS]
    for name, architecture in (("llama", "llama"), ("chat", "gemma2")):
        tokenizer = byte_level(words, 600)
        tokenizer.bos_token = "<|end|>"
        tokenizer.chat_template = CHAT if name == "chat" else None
        shape = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_model": 16, "n_positions": 1024}
        model = build_model(
            ArchitectureConfig(architecture=architecture, **shape), len(tokenizer), 0, initializer_range=0.3
        )
        model.save_pretrained(folder / "models" / name)
        tokenizer.save_pretrained(folder / "models" / name)
    # Random weights answer nothing.
    delta: dict[str, Any] = {"models": {"smallest-checkpoint": {"training": {"gate_accuracy": 0.0}}}}
    if MIRRORED:
        shutil.copytree(LISTS, folder / "models/lists")
        shutil.copytree(TABLES, folder / "models/tables")
        delta |= {
            "icl_translation": {"words": "lists", "n_concepts": None, "mirror": "models/lists"},
            "ravel": {
                "source": "upstream",
                "mirror": "models/tables",
                "types": ["nobel_prize_winner", "physical_object"],
            },
        }
    (folder / "upstream.yaml").write_text(yaml.safe_dump(delta))
    return folder
