"""A study of the workflow, opened to ask about single prompts: its files are read, and what they do not hold is computed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inversescope.config import Config, load_config
from inversescope.config.check import SHARE_REMEDY, too_few
from inversescope.config.methods import PLAIN, Bandwidth
from inversescope.context import Context, echo, need
from inversescope.errors import InputError
from inversescope.kernel.bandwidths import ASKED, epsilons_of_shares, one_position
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import check_bandwidth
from inversescope.progress import Progress, waiting
from inversescope.reader.reading import Reading, read_question
from inversescope.reader.site import Asked, Drawn, Labelled, Question, SiteReader
from inversescope.sites import Site
from inversescope.store import read_table
from inversescope.streams import stream
from inversescope.workflow import paths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from inversescope.generator.base import ConditionalGenerator
    from inversescope.generator.condition import Prompts
    from inversescope.targets.models import Target

SECONDS = 2.0  # between two lines of progress
CONFIG = "config/config.yaml"


def open_study(
    task: str, model: str, root: str | Path = ".", config: Sequence[str | Path] | str | Path | None = None
) -> Study:
    """Open the workflow's files of one experiment.

    Args:
        task: its task, or the beginning of the task's name.
        model: its target model.
        root: the project, where config/, data/ and results/ lie.
        config: YAML files, later ones laid over earlier ones. If absent, config/config.yaml, and over it the one file beside it
            that has the experiment, if it has none itself.

    Raises:
        InputError: no configuration has the experiment, or several have.
    """
    base = Path(root)
    if config is None:
        whole, name = _find(base, task, model)
    else:
        whole = load_config([config] if isinstance(config, str | Path) else list(config))
        found = _tasks(whole, task, model)
        if len(found) != 1:
            whole.experiment(task, model)  # says which experiments there are
        name = found[0]
    return Study(Context(base, whole.of(name, model), name, model, whole))


def _tasks(config: Config, task: str, model: str) -> list[str]:
    """Tasks on which a configuration reads a model: of this name or, if there is none, of a name that begins so."""
    names = [e.task for e in config.experiments.values() if e.model == model]
    return [name for name in names if name == task] or [name for name in names if name.startswith(task)]


def _find(root: Path, task: str, model: str) -> tuple[Config, str]:
    """The configuration below root/config that has an experiment, and the name of the experiment's task."""
    first = need(root / CONFIG, "open_study in the project's folder, or name it by root")
    others = [file for file in sorted(first.parent.glob("*.yaml")) if file != first]
    choices: list[tuple[Config, str, str]] = []
    for files in ([first], *([first, other] for other in others)):
        # A file that does not name the model has no experiment on it.
        if len(files) > 1 and model not in files[-1].read_text(encoding="utf-8"):
            continue
        try:
            config = load_config(files)
        except InputError:
            if len(files) > 1:  # made to be laid over yet another file
                continue
            raise
        choices += [(config, name, files[-1].name) for name in _tasks(config, task, model)]
        if choices and len(files) == 1:
            break
    exact = [choice for choice in choices if choice[1] == task] or choices
    if not exact:
        known = ", ".join(f"{e.task}/{e.model}" for e in load_config([first]).experiments.values())
        raise InputError(
            f"no configuration in {first.parent} reads model {model!r} on task {task!r}",
            f"choose one of {known}, or name the files by config",
        )
    if len(exact) > 1:
        names = ", ".join(f"{name} in {file}" for _, name, file in exact)
        raise InputError(
            f"several configurations read model {model!r} on a task {task!r}: {names}",
            "name the files by config",
        )
    return exact[0][:2]


class Study:
    """One experiment, opened for reading.

    Attributes:
        context: the experiment as its stages see it.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self._generators: dict[str, ConditionalGenerator] = {}
        self._prompts: dict[tuple[str, int], Prompts] = {}
        self._proposed: dict[str, pd.DataFrame] = {}

    def __repr__(self) -> str:
        sites = self.sites
        return (
            f"{type(self).__name__}: {self.context.task_name} on {self.context.model_name}, {len(sites)} sites "
            f"({sites[0]} ... {sites[-1]}), {len(self.test.index)} target prompts, features {', '.join(self.features)}"
        )

    @property
    def sites(self) -> list[str]:
        """Labels of the sites that can be read."""
        return self.context.plan.labels

    @property
    def features(self) -> list[str]:
        """Names of the task's features."""
        return list(self.context.task.features)

    @cached_property
    def prompts(self) -> list[str]:
        """The study's target prompts."""
        return self.context.prompts("test", columns=["text"])["text"].tolist()

    @cached_property
    def test(self) -> Labelled:
        """The target prompts and their labels."""
        return Labelled(self.context, "test")

    @cached_property
    def reference(self) -> Labelled:
        """The prompts of the exact values and their labels."""
        return Labelled(self.context, "reference")

    @cached_property
    def cached(self) -> Labelled:
        """The prompts of the activation cache and their labels; where there is none, the reference prompts stand for it."""
        return Labelled(self.context, "train" if self.context.plan.variants else "reference")

    # --------------------------------------------------------------------------------------------------------- reading
    def read(
        self,
        prompt: str,
        site: str | Sequence[str],
        *,
        share: float | None = None,
        epsilon: float | None = None,
        variants: Sequence[str] | None = None,
    ) -> Reading:
        """Read what the activation of a prompt tells at one or several sites.

        Args:
            prompt: a target prompt of the study, another prompt of its prior, or any text.
            site: a label (L23H3), a TransformerLens name, or a pattern such as L23H*; `L10` stands for the residual stream after
                layer 10, `L*` for that after each layer. Or a list of them.
            share: bandwidth as a share of the prior; epsilon: the same as a radius. If both are absent, the study's headline.
            variants: whose candidates are read. If absent, all whose candidates the study holds; for a prompt that is none of its
                targets `default`, which draws now. Empty: none, cached neighbours alone.

        Raises:
            InputError: the study does not read the site, or its files are not there; both share and epsilon are given.
        """
        if share is not None and epsilon is not None:
            raise InputError("both share and epsilon are given", "leave one of them out")
        sites = self._expand([site] if isinstance(site, str) else list(site))
        self._prepare(sites)
        asked, questions = self._asked(prompt), []
        z = self._activations(asked, sites)
        labels = self._labels(asked)
        progress = Progress("read", len(sites), echo, SECONDS)
        for done, one in enumerate(sites, 1):
            reader = self._reader(one)
            bandwidth, at = self._bandwidth(one.label, share, epsilon)
            question = reader.ask(asked, z[one.label], labels, at)
            drawn = [self._drawn(question, name) for name in self._read_by(question, variants)]
            questions.append(read_question(question, bandwidth, drawn))
            if done < len(sites):
                progress(done, one.label)
        return Reading(self, asked, questions)

    def _expand(self, patterns: list[str]) -> list[Site]:
        """Sites that patterns name and the study reads. Raises `InputError` for one that it does not read."""
        found: dict[Site, None] = {}
        for pattern in patterns:
            whole = re.sub(r"^(L(\d+|\*))(?=@|$)", r"\1.resid_post", pattern)
            named = self.context.plan.expand([whole])
            read = [one for one in named if self._can_read(one)]
            if not read:
                shown = self.sites if len(self.sites) <= 12 else [*self.sites[:6], "...", *self.sites[-5:]]
                raise InputError(
                    f"site {pattern} is none that the study reads", f"choose from {', '.join(shown)}"
                )
            found |= dict.fromkeys(read)
        return list(found)

    def _can_read(self, site: Site) -> bool:
        """Whether a site is one of the study's."""
        return site in self.context.plan.sites

    def _prepare(self, sites: Sequence[Site]) -> None:
        """Make what reading needs, where the study makes its own files."""

    def _asked(self, prompt: str) -> Asked:
        """Look a prompt up: among the targets, then in the prior."""
        if prompt in self.prompts:
            row = self.prompts.index(prompt)
            return Asked(prompt, int(self.test.index[row]), row)
        return Asked(prompt, int(self.context.task.parse([prompt])[0]), None)

    def _labels(self, asked: Asked) -> dict[str, int]:
        """Feature -> the prompt's label, -1 = unknown."""
        context = self.context
        if asked.index >= 0:
            codes = context.labels_of(np.array([asked.index]))
        else:
            codes = context.task.features_of_texts([asked.text])
            codes |= context.task.functions_of_texts(context.functions, [asked.text])
        return {name: int(code[0]) for name, code in codes.items()}

    def _reader(self, site: Site) -> SiteReader:
        return SiteReader(self.context, site, self.test, self.reference, self.cached, self._prior_samples)

    @cached_property
    def _prior_samples(self) -> pd.DataFrame:
        """What the backbone writes without any activation; no rows if there is none."""
        file = self.context.path(paths.PRIOR_SAMPLES)
        if file.exists():
            return read_table(file)
        columns = ["parsed", *(f"feature_{name}" for name in self.features)]
        return pd.DataFrame({name: pd.Series(dtype=object) for name in columns})

    def proposed(self, label: str) -> pd.DataFrame:
        """Hypotheses at a site (`find_hypotheses`), found once."""
        if label not in self._proposed:
            from inversescope.reader.find import hypotheses_at

            with waiting(f"looking for hypotheses at {label}", echo, SECONDS):
                self._proposed[label] = hypotheses_at(self.context, label)
        return self._proposed[label]

    # ------------------------------------------------------------------------------------------------------ activations
    @cached_property
    def target(self) -> Target:
        """The target model, loaded when it is first needed."""
        with waiting("loading the target model", echo, SECONDS):
            from inversescope.targets.models import load_target

            return load_target(self.context.made_target())

    def _activations(self, asked: Asked, sites: Sequence[Site]) -> dict[str, np.ndarray]:
        """Site label -> the prompt's activation (1, d), as activations are compared: from the study's files, or computed."""
        context = self.context
        if asked.row is not None:
            return {s.label: np.array(context.activations("test", s.label)[[asked.row]]) for s in sites}
        index = np.array([asked.index])
        if asked.index >= 0 and context.plan.is_enumerated:
            raw = {s.label: context.known(s.label, "reference").of(index) for s in sites}
        else:
            raw = self._computed(asked, sites)
        return {s.label: context.centred(s.label, self._one_position(asked, s, raw[s.label])) for s in sites}

    def _computed(self, asked: Asked, sites: Sequence[Site]) -> dict[str, np.ndarray]:
        """Site label -> the prompt's activation (1, d), at `any` (1, P, d), as the target computes it."""
        target = self.target
        with waiting("running the target model", echo, SECONDS):
            from inversescope.activations.capture import capture
            from inversescope.activations.positions import capture_prompts

            if asked.index >= 0:
                return capture_prompts(self.context.task, target, np.array([asked.index]), sites)
            named = {s.position for s in sites} - {"last", "any"}
            for position in sorted(name for name in named if not name.isdecimal()):
                raise InputError(
                    f"position @{position} is known in prompts of task {self.context.task_name} alone",
                    "read a prompt of its prior, or a site at the last token or at an index such as @4",
                )
            return capture(target, target.encode([asked.text]), sites)

    def _one_position(self, asked: Asked, site: Site, z: np.ndarray) -> np.ndarray:
        """An activation (1, d) as it is; of those (1, P, d) at all positions one, drawn at random as for target prompts."""
        if z.ndim == 2:
            return z
        rng = stream(self.context.config.seed, "read", site.label, asked.text)
        return z[:, int(rng.integers(z.shape[1]))]

    def _bandwidth(self, label: str, share: float | None, epsilon: float | None) -> tuple[Bandwidth, float]:
        """The bandwidth that is asked for, and its epsilon at a site."""
        if epsilon is not None:
            check_bandwidth(epsilon)
            return Bandwidth("epsilon", epsilon), epsilon
        context, size = self.context, len(self.reference.index)
        bandwidth = context.config.kernel.headline if share is None else Bandwidth("share", share)
        if bandwidth.kind == "epsilon":
            return bandwidth, bandwidth.value
        if bandwidth.value in context.config.shares and context.path(paths.BANDWIDTHS).exists():
            return bandwidth, context.epsilon(bandwidth, label)
        if not 0 < bandwidth.value < 1:
            raise InputError(f"{bandwidth.value} is no share of the prior", "give a number between 0 and 1")
        if fault := too_few([bandwidth.value], size):
            raise InputError(fault, f"ask for a larger share ({SHARE_REMEDY})")
        # As the workflow does: around validation prompts, or around some of the prior where there are none.
        split, most = ("val", None) if context.plan.settings.n_val else ("reference", ASKED)
        queries = one_position(np.array(context.activations(split, label)[:most]))
        reference = np.asarray(context.activations("reference", label))
        metric = distance_of(context.config.kernel.distance)
        return bandwidth, epsilons_of_shares(metric, queries, reference, [bandwidth.value])[0]

    # -------------------------------------------------------------------------------------------------------- candidates
    def _trained(self, name: str, label: str) -> bool:
        """Whether a variant's generator is there and knows a site."""
        from inversescope.store import read_json

        context = self.context
        file = context.generator_dir(context.config.variant(name).generator, name) / "meta.json"
        return file.exists() and label in read_json(file)["shape"]["sites"]

    def _read_by(self, question: Question, names: Sequence[str] | None) -> list[str]:
        """Variants whose candidates are read: those that the study holds or, for prompts of one's own, `default`."""
        context, label = self.context, question.reader.label
        chosen: Iterable[str] = context.plan.studied if names is None else names
        able = [
            name
            for name in chosen
            if self._trained(name, label)
            and (context.config.variant(name).eps_input or question.epsilon in context.epsilons(label, name))
        ]
        for name in set(names or ()) - set(able):
            raise InputError(
                f"variant {name} has no generator at {label} for epsilon {question.epsilon:.4g}",
                "run the rule train_generator, or leave it out",
            )
        if names is not None:
            return able
        stored = [name for name in able if self._stored(question, name) is not None]
        return stored or [name for name in able if name == "default"] or able[:1]

    def _stored(self, question: Question, name: str) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """Candidates and log q of cached prompts that the study holds for a target prompt at this bandwidth."""
        context, asked = self.context, question.asked
        generator = context.config.variant(name).generator
        files = [
            context.samples_path(generator, name, question.reader.label, s)
            for s in (".parquet", ".cache.parquet")
        ]
        if asked.row is None or not all(file.exists() for file in files):
            return None
        samples, log_q = (read_table(file) for file in files)
        samples, log_q = (
            table[(table["target_id"] == asked.row) & (table["epsilon"] == question.epsilon)].assign(
                target_id=0
            )
            for table in (samples, log_q)
        )
        samples = samples[samples["decoding"] != "noised"]
        return (samples, log_q) if len(samples) else None

    def _drawn(self, question: Question, name: str) -> Drawn:
        """A variant's candidates for a prompt: the study's, or drawn now."""
        context = self.context
        settings = context.config.variant(name)
        kept = np.isin(question.kept, context.cache_rows(settings))
        rows = np.flatnonzero(kept)
        found = self._stored(question, name)
        if found is None:
            with waiting(f"drawing candidates of {name} at {question.reader.label}", echo, SECONDS):
                found = self._draw(question, name, rows)
        return Drawn(settings.generator, name, rows, *found)

    def _draw(self, question: Question, name: str, rows: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Candidates as `sample_prompts` draws them, and log q of cached prompts, of a prompt as target 0."""
        from inversescope.generator.build import cached_prompts, load_generator
        from inversescope.kernel.neighbours import Cache
        from inversescope.sampling.candidates import Pool, Sampler, candidates
        from inversescope.sampling.recompute import Recomputer, activations_of

        context, reader = self.context, question.reader
        config = context.config
        if name not in self._generators:
            self._generators[name] = load_generator(context, config.variant(name).generator, name)[0]
        at = question.kept[rows]
        key = (name, question.asked.index)
        if key not in self._prompts:
            self._prompts[key] = cached_prompts(context, self._tokenizer, at)
        z = self._activations(question.asked, [reader.site])[reader.label]
        whole = len(rows) == len(question.kept)
        cache = question.cache if whole else Cache(np.array(reader.z_cached[at]), config.kernel.distance)
        pool = Pool(rows, self._prompts[key], cache)
        sampler = Sampler(context, name, self._generators[name], self._tokenizer, reader.site, z, pool)
        target = None if context.plan.is_enumerated else self.target
        told = activations_of(context, target)([reader.site])
        recomputer = Recomputer(told, {reader.site: z}, config.kernel.distance)
        samples = candidates(sampler, recomputer, question.epsilon, PLAIN)
        return samples, sampler.cached_log_q(question.epsilon)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerFast:
        """The generators' tokenizer."""
        from inversescope.generator.build import backbone_tokenizer

        return backbone_tokenizer(self.context)
