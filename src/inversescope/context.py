"""What every stage knows: where files lie, what is configured, how progress is reported."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inversescope.config import Config, ExperimentConfig, VariantConfig
from inversescope.errors import InputError, neutral
from inversescope.sites import Site, expand_sites
from inversescope.streams import stream as stream
from inversescope.tasks import Task, get_task

if TYPE_CHECKING:
    import pandas as pd


def echo(line: str) -> None:
    """Print a line of progress to standard error; what it quotes cannot steer a terminal."""
    print(neutral(line), file=sys.stderr, flush=True)


def need(path: Path, rule: str) -> Path:
    """The path itself, if it exists. Raises `InputError` naming the rule that makes it."""
    if not path.exists():
        raise InputError(f"{path} does not exist", f"run the rule {rule} first")
    return path


@dataclass(frozen=True)
class Context:
    """One (task, model) of the configuration, and the paths of its files below `root`."""

    root: Path
    config: Config
    task_name: str
    model_name: str

    @cached_property
    def task(self) -> Task:
        """The task's prior, parser and features."""
        return get_task(self.task_name, self.config, self.root)

    @property
    def experiment(self) -> ExperimentConfig:
        """Which sites and how many prompts."""
        return self.config.experiment(self.task_name, self.model_name)

    @property
    def data(self) -> Path:
        """data/{task}/{model}."""
        return self.root / "data" / self.task_name / self.model_name

    @property
    def results(self) -> Path:
        """results/{task}/{model}."""
        return self.root / "results" / self.task_name / self.model_name

    @property
    def target_dir(self) -> Path:
        """Directory of the selected target model."""
        return self.data / "target"

    def candidate_dir(self, candidate: str) -> Path:
        """Directory of one candidate of the target scan."""
        return self.target_dir / "candidates" / candidate

    def prompts_path(self, split: str) -> Path:
        """Prompts of a split."""
        return self.root / "data" / self.task_name / "prompts" / f"{split}.parquet"

    def prompts(self, split: str, columns: list[str] | None = None) -> pd.DataFrame:
        """Read the prompts of a split."""
        from inversescope.store import read_table

        return read_table(need(self.prompts_path(split), "make_prompts"), columns)

    def activations_path(self, split: str, label: str) -> Path:
        """Activations of a split at a site."""
        return self.data / "activations" / split / f"{label}.safetensors"

    def activations(self, split: str, label: str) -> np.ndarray:
        """Read activations (N, d), after checking that they belong to the prompts that are there now."""
        from inversescope.store import check_provenance, file_hash, read_activations

        path = need(self.activations_path(split, label), "extract_activations")
        z, meta = read_activations(path)
        check_provenance(meta, path, prompt_hash=file_hash(self.prompts_path(split)))
        return z

    @property
    def backbone_dir(self) -> Path:
        """Checkpoint of the fine-tuned backbone."""
        return self.data / "checkpoints" / "backbone"

    def generator_dir(self, generator: str, variant: str) -> Path:
        """Checkpoint of a generator."""
        return self.data / "checkpoints" / generator / variant

    def training_log(self, generator: str, variant: str) -> Path:
        """Training log of a generator."""
        return self.results / "training" / generator / f"{variant}.csv"

    def samples_path(self, generator: str, variant: str, label: str) -> Path:
        """Raw candidates of a generator at a site."""
        return self.results / "samples" / generator / variant / f"{label}.parquet"

    def cache_logq_path(self, generator: str, variant: str, label: str) -> Path:
        """log q of cached neighbours under a generator at a site."""
        return self.results / "samples" / generator / variant / f"{label}.cache.parquet"

    def shape_of_target(self) -> tuple[int, int]:
        """Layers and heads of the target model, known from the configuration or from its files."""
        from inversescope.store import read_json

        model = self.config.models[self.model_name]
        if model.source == "trained":
            shapes = [c.shape for c in model.candidates.values()]
            if len({(s.n_layers, s.n_heads) for s in shapes}) > 1:
                raise InputError(
                    f"candidates of {self.model_name} differ in layers or heads", "give them one shape"
                )
            return shapes[0].n_layers, shapes[0].n_heads
        if model.n_layers is not None and model.n_heads is not None:
            return model.n_layers, model.n_heads
        meta = read_json(need(self.target_dir / "target.json", "fetch_target"))
        return int(meta["n_layers"]), int(meta["n_heads"])

    def sites(self, patterns: list[str] | None = None) -> list[Site]:
        """Sites of the experiment, or those that match other patterns."""
        return expand_sites(patterns or self.experiment.sites, *self.shape_of_target())

    def variant_sites(self, variant: str) -> list[Site]:
        """Sites that a variant is trained on and read at. Raises `InputError` for one that the experiment does not read."""
        sites, read = self.sites(self.config.variant(variant).sites), set(self.sites())
        for site in sites:
            if site not in read:
                raise InputError(
                    f"variant {variant} is trained on site {site.label}, which the experiment does not read",
                    "add it to the experiment's sites, or change the variant's",
                )
        return sites

    def site(self, label: str) -> Site:
        """One site by label. Raises `InputError` if it is not part of the experiment's model."""
        sites = expand_sites([label], *self.shape_of_target())
        if len(sites) > 1:
            raise InputError(f"{label} names {len(sites)} sites", "name a single one, such as L0H0")
        return sites[0]

    def cache_rows(self, variant: VariantConfig) -> np.ndarray:
        """Rows of the train split that a variant may use, in order."""
        index = self.prompts("train", columns=["prompt_id"])["prompt_id"].to_numpy()
        keep = np.ones(len(index), bool) if variant.cache_pairs == "all" else self.task.split_of(index) == 0
        return np.flatnonzero(keep)[: variant.cache_size]
