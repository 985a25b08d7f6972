"""What every stage knows: where files lie, what is configured, how progress is reported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inversescope.config import Config
from inversescope.config.methods import Bandwidth, VariantConfig
from inversescope.errors import InputError, neutral
from inversescope.sites import Site
from inversescope.streams import stream as stream
from inversescope.tasks import Task, get_task
from inversescope.workflow import paths
from inversescope.workflow.plan import ExperimentPlan

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


def centre_of(z: np.ndarray) -> np.ndarray:
    """Mean (d,), float32, of activations (N, d) or (N, P, d): a site's centre.

    With `kernel.centred` it is taken off before anything else sees the site's activations. A cosine distance is then that of the
    angle at the centre, and Appendix B's noise turns an activation around the centre: its norm band is one of the distance to it.
    Euclidean distances are as they were; `normalised_euclidean` divides by the distance to the centre.
    """
    return z.reshape(-1, z.shape[-1]).mean(0, dtype=np.float64).astype(np.float32)


class Known:
    """Activations of prompts that were run, by prompt.

    Args:
        parts: prompts (n,), each once or more, and their activations (n, ...).
    """

    def __init__(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self._parts = [(ids, np.argsort(ids, kind="stable"), z) for ids, z in parts]

    def of(self, index: np.ndarray) -> np.ndarray:
        """Activations (N, ...) of prompts (N,). Raises `InputError` if one was not run."""
        first = self._parts[0][2]
        found, left = np.empty((len(index), *first.shape[1:]), first.dtype), np.ones(len(index), bool)
        for ids, order, z in self._parts:
            row = order[np.minimum(np.searchsorted(ids, index, sorter=order), len(ids) - 1)]
            here = left & (ids[row] == index)
            found[here] = z[row[here]]
            left &= ~here
        if left.any():
            raise InputError(
                f"prompt {index[left.argmax()]} is not among those whose activations were extracted",
                "rerun make_prompts for all splits, then extract_activations",
            )
        return found


@dataclass(frozen=True)
class Context:
    """One experiment as its stages see it: what is planned, and where files lie.

    Args:
        root: the project's root; all paths are below it.
        config: the configuration as the experiment sees it (`Config.of`).
        task_name: name of the task.
        model_name: name of the target model.
        whole: the configuration of all experiments, for stages over several of them; `config` if absent.
    """

    root: Path
    config: Config
    task_name: str
    model_name: str
    whole: Config | None = None

    @cached_property
    def plan(self) -> ExperimentPlan:
        """Sites, variants and bandwidths."""
        return ExperimentPlan(self.config, self.task_name, self.model_name)

    @cached_property
    def task(self) -> Task:
        """The task's prior, parser and features."""
        return get_task(self.task_name, self.config, self.root)

    # -------------------------------------------------------------------------------------------------------- features
    @property
    def functions(self) -> list[str]:
        """Features whose rates are asked for that are none of the task's own, but label functions of the grammar."""
        return self.plan.functions

    def labels_of(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Label codes (N,) of each feature of prompts, int32: the task's own and those by the grammar; -1 where the index is -1."""
        own = self.task.features_of(index)
        return own | (self.task.functions_of(self.functions, index) if self.functions else {})

    def chance(self, feature: str) -> float:
        """Probability that two draws from the prior share a feature's label."""
        return self.task.chance(feature) if feature in self.task.features else self.task.chance_of(feature)

    def labelled(self, prompts: pd.DataFrame) -> pd.DataFrame:
        """A table of prompts with `feature_<name>` for each label function; "" where `prompt_id` is -1."""
        if not self.functions:
            return prompts
        codes = self.task.functions_of(self.functions, prompts["prompt_id"].to_numpy())
        values = {
            name: np.array([*self.task.feature_values[name], ""], object)[code]
            for name, code in codes.items()
        }
        return prompts.assign(**{f"feature_{name}": value for name, value in values.items()})

    def beside(self, model: str) -> Context:
        """The experiment on another model and the same task."""
        whole = self.whole or self.config
        return Context(self.root, whole.of(self.task_name, model), self.task_name, model, whole)

    def site(self, label: str) -> Site:
        """One site by label. Raises `InputError` if it is not part of the experiment's model."""
        sites = self.plan.expand([label])
        if len(sites) > 1:
            raise InputError(f"{label} names {len(sites)} sites", "name a single one, such as L0H0")
        return sites[0]

    # ------------------------------------------------------------------------------------------------------ bandwidths
    @cached_property
    def _epsilons(self) -> dict[tuple[str, str], float]:
        """(bandwidth, site) -> epsilon of bandwidths that are shares of the prior."""
        from inversescope.store import read_table

        table = read_table(need(self.path(paths.BANDWIDTHS), "choose_bandwidths"))
        keys = zip(table["bandwidth"], table["site"], strict=True)
        return dict(zip(keys, map(float, table["epsilon"]), strict=True))

    def epsilon(self, bandwidth: Bandwidth, label: str) -> float:
        """The epsilon of a bandwidth at a site. Raises `InputError` if it is a share of the prior that was not chosen there."""
        if bandwidth.kind == "epsilon":
            return bandwidth.value
        if (str(bandwidth), label) not in self._epsilons:
            raise InputError(
                f"{self.path(paths.BANDWIDTHS)} has no epsilon of {bandwidth.label} at site {label}",
                "run the rule choose_bandwidths again",
            )
        return self._epsilons[str(bandwidth), label]

    def resolved(self, label: str) -> list[tuple[Bandwidth, float]]:
        """Each bandwidth that is read, and its epsilon at a site. Several may have one."""
        return [(one, self.epsilon(one, label)) for one in self.plan.bandwidths]

    def epsilons(self, label: str, variant: str | None = None) -> list[float]:
        """All epsilons, ascending, at which a site is read; or those at which a variant is read there."""
        asked = self.plan.bandwidths if variant is None else self.config.bandwidths_of(variant)
        return sorted({self.epsilon(one, label) for one in asked})

    def headline(self, label: str, variant: str | None = None) -> float:
        """The epsilon of the headline bandwidth at a site; or of the one at which figures show a variant."""
        kernel = self.config.kernel
        return self.epsilon(kernel.headline if variant is None else self.config.headline_of(variant), label)

    # ----------------------------------------------------------------------------------------------------------- files
    def path(self, pattern: str, **values: str) -> Path:
        """A file of this experiment, by its pattern in `workflow.paths`."""
        return self.root / pattern.format(task=self.task_name, model=self.model_name, **values)

    @property
    def data(self) -> Path:
        """data/{task}/{model}."""
        return self.path(paths.DATA, file="")

    @property
    def results(self) -> Path:
        """results/{task}/{model}."""
        return self.path(paths.RESULT, file="")

    @property
    def target_dir(self) -> Path:
        """Directory of the selected target model."""
        return self.path(paths.TARGET, file="")

    def made_target(self) -> Path:
        """The same, if it is there. Raises `InputError` naming the rule that makes it."""
        rules = {"trained": "select_target", "checkpoint": "import_checkpoint"}
        rule = rules.get(self.plan.target.source, "fetch_target")
        return need(self.path(paths.TARGET, file="target.json"), rule).parent

    @cached_property
    def identity(self) -> str:
        """What tells the target from any other model: recorded with all that is made of it, and compared wherever that is read."""
        from inversescope.store import identity, read_json

        return identity(read_json(self.made_target() / "target.json"))

    def write(self, frame: pd.DataFrame, path: Path) -> None:
        """Write a parquet table that is made of the target, with what tells it from others."""
        from inversescope.store import write_table

        write_table(frame, path, {"target": self.identity})

    def read(self, path: Path, rule: str, columns: list[str] | None = None) -> pd.DataFrame:
        """Read a table of `write`. Raises `InputError` if it is not there, naming the rule that makes it, or of another target."""
        from inversescope.store import read_table

        return read_table(need(path, rule), columns, target=self.identity)

    def candidate_dir(self, candidate: str) -> Path:
        """Directory of one candidate of the target scan."""
        return self.path(paths.CANDIDATE, candidate=candidate, file="")

    def prompts_path(self, split: str) -> Path:
        """Prompts of a split."""
        return self.path(paths.PROMPTS, split=split)

    def prompts(self, split: str, columns: list[str] | None = None) -> pd.DataFrame:
        """Read the prompts of a split."""
        from inversescope.store import read_table

        return read_table(need(self.prompts_path(split), "make_prompts"), columns)

    def prompt_ids(self, split: str) -> np.ndarray:
        """Which prompts a split holds, int64 (N,)."""
        return self.prompts(split, columns=["prompt_id"])["prompt_id"].to_numpy()

    def activations_path(self, split: str, label: str) -> Path:
        """Activations of a split at a site, as `extract_activations` writes them."""
        return self.path(paths.ACTIVATIONS, split=split, site=label)

    def _extracted(self, split: str, label: str) -> np.ndarray:
        from inversescope.store import check_provenance, file_hash, map_array, read_activations

        path = need(self.activations_path(split, label), "extract_activations")
        if path not in self._checked:
            meta = read_activations(path)[1]
            expected = {"prompt_hash": file_hash(self.prompts_path(split)), "target": self.identity}
            check_provenance(meta, path, **expected)
            self._checked.add(path)
        # Mapped anew for each caller: what was read of a file counts as memory of the process for as long as it is mapped.
        return map_array(path, "z")

    @cached_property
    def _checked(self) -> set[Path]:
        """Files of activations that were found to be whole and of the present prompts and target."""
        return set()

    def known(self, label: str, *splits: str) -> Known:
        """Activations at a site of all prompts that were run for some splits."""
        kept = dict.fromkeys(map(self.plan.kept_in, splits))
        return Known([(self.prompt_ids(split), self._extracted(split, label)) for split in kept])

    def activations(self, split: str, label: str, raw: bool = False) -> np.ndarray:
        """Read activations (N, d), row i = prompt i of the split, after checking that they belong to the present prompts.

        They are as they are compared, without the site's centre if `kernel.centred` says so, or raw: as the target computes them.
        Of an enumerated prior, they are looked up among those of all its prompts. At position `any` a prompt has an activation
        for each of its tokens, (N, P, d); a target prompt one of them, drawn at random.
        """
        selected = self.plan.kept_in(split) != split
        z = self.known(label, split).of(self.prompt_ids(split)) if selected else self._extracted(split, label)
        if split == "test" and self.site(label).position == "any":
            rng = stream(self.config.seed, "extract_activations", label, 0)
            z = z[np.arange(len(z)), rng.integers(z.shape[1], size=len(z))]
        return z if raw else self.centred(label, z)

    def centred(self, label: str, z: np.ndarray) -> np.ndarray:
        """Activations (..., d) of a site as they are compared: without the mean of the cached ones, if `kernel.centred` says so."""
        if not self.config.kernel.centred:
            return z
        if label not in self._centres:
            self._centres[label] = centre_of(self.activations("train", label, raw=True))
        return z - self._centres[label]

    @cached_property
    def _centres(self) -> dict[str, np.ndarray]:
        """Means (d,) of cached activations by site, as far as they were asked for."""
        return {}

    @property
    def backbone_dir(self) -> Path:
        """Checkpoint of the fine-tuned backbone."""
        return self.path(paths.BACKBONE, file="")

    def generator_dir(self, generator: str, variant: str) -> Path:
        """Checkpoint of a generator."""
        return self.path(paths.CHECKPOINT, generator=generator, variant=variant, file="")

    def training_log(self, generator: str, variant: str) -> Path:
        """Training log of a generator."""
        return self.path(paths.TRAINING_LOG, generator=generator, variant=variant)

    def samples_path(self, generator: str, variant: str, label: str, suffix: str = ".parquet") -> Path:
        """Raw candidates of a generator at a site; by another suffix, what goes with them (`workflow.paths`)."""
        return self.path(paths.SAMPLES, generator=generator, variant=variant, site=label, suffix=suffix)

    def cache_rows(self, variant: VariantConfig) -> np.ndarray:
        """Rows of the train split that a variant may use, in order."""
        index = self.prompt_ids("train")
        keep = np.ones(len(index), bool) if variant.cache_pairs == "all" else self.task.split_of(index) == 0
        return np.flatnonzero(keep)[: variant.cache_size]
