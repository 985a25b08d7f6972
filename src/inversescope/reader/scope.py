"""Reading without a study: a model, some prompts, and a folder in which the workflow's stages make what is asked for."""

from __future__ import annotations

import json
import math
import re
import string
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import inversescope
from inversescope.activations.stages import extract_activations
from inversescope.config import merge, parse_config
from inversescope.config.entries import read_entries, validated
from inversescope.config.tasks import TextConfig
from inversescope.context import Context, echo
from inversescope.errors import InputError, first_line
from inversescope.kernel.stages import choose_bandwidths
from inversescope.progress import waiting
from inversescope.prompts.stages import make_prompts
from inversescope.reader.site import Asked
from inversescope.reader.study import SECONDS, Study
from inversescope.sites import Site
from inversescope.store import atomic_path, file_hash, read_json, write_json
from inversescope.targets.stages import fetch_target
from inversescope.tasks.corpus import read_corpus
from inversescope.tasks.text import TextTask
from inversescope.workflow import paths

#: Prompts of a prior, at least.
LEAST = 20
#: Prompts that the median ball holds, at least, unless a share is asked for; and the share that it holds, at least.
NEIGHBOURS, SHARE = 20, 0.01
#: Prompts that are held out: they choose the bandwidth, and hypotheses are tested on them. A tenth of all or, of few prompts, so
#: many, but half of all at most.
HELD_OUT, HELD = 0.1, 100
#: What is taken from the project's configuration: how generators are made.
SHARED = ("backbone", "variants", "sampling")
MOST_TARGETS, MOST_VALIDATION = 50, 100
#: Features of prompts that come without any.
PLAIN_FEATURES = {"first_word": r"(\w+)", "last_word": r"(\w+)\W*$"}
#: Combinations that `templates` writes out.
MOST_COMBINATIONS = 1_000_000

Label = Callable[[str], str]


@dataclass(frozen=True)
class Templates:
    """Prompts by template.

    Attributes:
        template: slots in braces.
        rows: what stands in them, a row a prompt; further columns are further features.
        answer: the column that should follow each prompt; None: unknown.
    """

    template: str
    rows: pd.DataFrame
    answer: str | None = None

    def __len__(self) -> int:
        return len(self.rows)


def templates(
    template: str,
    /,
    *,
    rows: Iterable[Mapping[str, str]] | None = None,
    answer: str | None = None,
    n: int | None = None,
    seed: int = 0,
    **slots: Sequence[str],
) -> Templates:
    """All prompts that a template gives with the values of its slots: `templates("The {animal} sat", animal=["cat", "dog"])`.

    Slots are features, and their last tokens are positions (`L5.resid_post@animal`).

    Args:
        template: slots in braces.
        rows: instead of values of single slots, what stands in all of them, a mapping a prompt. Further keys are features too.
        answer: the slot, or the further key of `rows`, that should follow the prompt; `Reading.patch` needs it.
        n: so many of the prompts, drawn at random; all if absent.
        seed: of this draw.
        **slots: values of each slot; all combinations are taken.

    Raises:
        InputError: a slot has no values, or values have no slot; there are too many combinations, or fewer than n.
    """
    named = slots_of(template)
    if rows is None:
        for name in [*slots, *named]:
            if (name in named) != (name in slots):
                what = "has no values" if name in named else "is not in the template"
                remedy = f"give values of {', '.join(named) or 'a slot in braces'}"
                raise InputError(f"slot {name!r} {what}", remedy)
        columns = {name: list(dict.fromkeys(map(str, some))) for name, some in slots.items()}
        total = math.prod(map(len, columns.values()))
    else:
        frame = pd.DataFrame([dict(row) for row in rows], dtype=object)
        if absent := [name for name in named if name not in frame] or [s for s in slots]:
            raise InputError(
                f"slot {absent[0]!r} is not in the rows", "give rows, or values of slots, not both"
            )
        total = len(frame)
    if not total or total > MOST_COMBINATIONS and n is None:
        raise InputError(f"the template has {total:,} prompts", f"give 1 to {MOST_COMBINATIONS:,}, or n")
    if n is not None and n > total:
        raise InputError(f"n is {n}, but the template has {total} prompts", f"set it to {total} or less")
    chosen = np.arange(total)
    if n is not None:
        chosen = np.sort(np.random.default_rng(seed).choice(total, n, replace=False))
    if rows is not None:
        return Templates(template, frame.iloc[chosen].reset_index(drop=True), answer)
    codes = np.unravel_index(chosen, [len(some) for some in columns.values()])
    taken = {
        name: np.array(some, object)[code] for (name, some), code in zip(columns.items(), codes, strict=True)
    }
    return Templates(template, pd.DataFrame(taken), answer)


def slots_of(template: str) -> list[str]:
    """Names in a template's braces, each once."""
    return list(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name))


class Scope(Study):
    """A study of one's own, made as it is asked for: prompts are the prior, and all of them are run at each site that is read.

    Nothing is trained until `train` is called: rates are those of cached neighbours.

    Args:
        model: a folder, a .gguf file, a name or an entry of `models` in the configuration (`smollm2`), or a repository of the hub.
        prompts: `templates(...)`, texts, or a file of prompts (Parquet, JSON lines, or text, one prompt a line).
        features: name -> a regular expression whose group is the label, or a function from a prompt to its label. Slots of
            templates are features too, as are further keys of their rows; texts without any have their first and last word.
        folder: where files are kept, and found again; a temporary one if absent.
        share: bandwidth, as a share of the prompts; if absent 1%, and as much as 20 prompts are.
        revision: commit of the hub's repository; the present one, which is then told, if absent.
        bos: whether the model's begin token is put before each prompt; if absent, as its family or its tokenizer does.
        text: further keys of the configuration's `text`: `prompt`, `answer`, `features`, ... (docs/text.md).
        settings: anything else of the configuration, such as `{"kernel": {"distance": "euclidean"}}`.

    Raises:
        InputError: there are too few prompts, the model cannot be read, or the folder is another scope's.
    """

    def __init__(
        self,
        model: str | Path | Mapping[str, Any],
        prompts: Templates | Iterable[str] | Path,
        *,
        features: Mapping[str, str | Label] | None = None,
        folder: str | Path | None = None,
        share: float | None = None,
        revision: str | None = None,
        bos: bool | None = None,
        text: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if folder is None:
            self._kept = tempfile.TemporaryDirectory(prefix="inversescope-")
            folder = self._kept.name
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._told = {name: label for name, label in (features or {}).items() if callable(label)}
        entry = model_entry(model, revision, bos)
        self._values = scope_values(
            write_corpus(root, prompts, dict(features or {}), dict(text or {})),
            root,
            *entry,
            share,
            settings or {},
        )
        claim(root, self._values)
        self._sites, self._variants = list[str](), list[str]()
        super().__init__(self._experiment(["L0.resid_post"]))
        self._fetch()
        for split in paths.ALL_SPLITS:
            if not self.context.prompts_path(split).exists():
                make_prompts(self.context, split)

    @property
    def sites(self) -> list[str]:
        """Labels of the sites that were read."""
        return list(self._sites)

    def __repr__(self) -> str:
        model, size = self.context.model_name, self.context.task.size
        trained = f", trained: {', '.join(self._variants)}" if self._variants else ""
        return f"Scope: {size} prompts on {model}, features {', '.join(self.features)}; sites read: {self.sites}{trained}"

    def train(self, steps: int = 400, backbone_steps: int = 400) -> None:
        """Train the backbone on the prompts, and a generator (`default`) at the sites that were read so far.

        Readings at these sites then combine cached neighbours and candidates.

        Raises:
            InputError: no site was read.
        """
        if not self._sites:
            raise InputError("no site was read", "read the sites first that the generator shall know")
        from inversescope.generator.build import backbone_tokenizer
        from inversescope.generator.prior import longest_prompt
        from inversescope.generator.stages import train_backbone, train_generator

        longest = longest_prompt(self.context.task, backbone_tokenizer(self.context))
        own = {
            "backbone": {"steps": backbone_steps, "shape": {"n_positions": longest + 2}},
            "variants": {"default": {"steps": steps}},
        }
        self._values = merge(self._values, {"experiments": {"scope": {"settings": own}}})
        self._variants = ["default"]
        self._take(self._experiment(self._sites))
        choose_bandwidths(self.context)
        train_backbone(self.context)
        train_generator(self.context, "inversescope", "default")

    # ------------------------------------------------------------------------------------------------------------ files
    def _experiment(self, sites: Sequence[str]) -> Context:
        """The experiment on some sites."""
        about = {"sites": list(sites), "variants": self._variants}
        whole = parse_config(merge(self._values, {"experiments": {"scope": about}}))
        model = whole.experiments["scope"].model
        return Context(self._root, whole.of("text", model), "text", model, whole)

    def _take(self, context: Context) -> None:
        """Go on with another plan of the same prompts."""
        context.__dict__["task"] = self.context.task
        self.context = context
        self._generators.clear()
        self._prompts.clear()
        self._proposed.clear()
        for name in ("cached", "_prior_samples", "_tokenizer"):
            self.__dict__.pop(name, None)

    def _fetch(self) -> None:
        """Describe the target model, and keep it if it had to be loaded for that."""
        context = self.context
        if context.plan.target.gguf and not context.path(paths.WEIGHTS, file="target.json").exists():
            from inversescope.targets.quantised import import_gguf

            import_gguf(context)
        if not (context.target_dir / "target.json").exists():
            with waiting("loading the target model", echo, SECONDS):
                self.__dict__["target"] = fetch_target(context)

    def _can_read(self, site: Site) -> bool:
        """Any site of the model."""
        return True

    def _prepare(self, sites: Sequence[Site]) -> None:
        """Run all prompts at sites that were not read before, and choose the bandwidth there."""
        new = [site.label for site in sites if site.label not in self._sites]
        if not new:
            return
        context = self._experiment(new)
        context.__dict__["task"] = self.context.task
        absent = [label for label in new if not context.activations_path("reference", label).exists()]
        if absent:
            extract_activations(self._experiment(absent), "reference", self.target)
        self._sites += new
        self._take(self._experiment(self._sites))
        choose_bandwidths(self.context)

    def _labels(self, asked: Asked) -> dict[str, int]:
        """Feature -> the prompt's label, -1 = unknown; of other prompts, what functions say."""
        labels = super()._labels(asked)
        for name, label in self._told.items() if asked.index < 0 else ():
            values = self.context.task.feature_values[name]
            said = str(label(asked.text))
            labels[name] = values.index(said) if said in values else -1
        return labels


def write_corpus(
    root: Path,
    prompts: Templates | Iterable[str] | Path | str,
    features: dict[str, str | Label],
    text: dict[str, Any],
) -> dict[str, Any]:
    """Write the prompts as the task `text` reads them; returns its settings.

    Raises:
        InputError: the file cannot be read, has not the columns of the template, or there are too few prompts.
    """
    template = str(text.get("prompt", prompts.template if isinstance(prompts, Templates) else "{text}"))
    told: dict[str, Any] = {}
    if isinstance(prompts, Templates):
        text = {"answer": prompts.answer, **text}
        used = *slots_of(template), text.get("weight")
        further = {name: column.map(str) for name, column in prompts.rows.items() if name not in used}
        frame, told = prompts.rows.assign(**further), {name: {"column": name} for name in further}
    elif isinstance(prompts, str | Path):
        about = validated(
            TextConfig,
            {"text": {"path": str(prompts), "prompt": template, "format": text.pop("format", None)}},
            ("text",),
        )
        frame = read_corpus(about, Path(prompts))
    else:
        frame = pd.DataFrame({"text": list(prompts)}, dtype=object)
    rows = frame.to_dict("records")
    try:
        texts = [template.format(**row) for row in rows]
    except KeyError as error:
        raise InputError(
            f"the prompts have no column {error}", f"their columns are: {', '.join(map(str, frame.columns))}"
        ) from error
    if len(set(texts)) < LEAST:
        raise InputError(
            f"there are {len(set(texts))} distinct prompts, too few to read from",
            f"give {LEAST} or more, better thousands",
        )
    told |= text.get("features", {})
    for name, feature in features.items():
        if not callable(feature):
            told[name] = {"pattern": feature}
            continue
        told[name] = {"column": f"label of {name}"}
        for row, prompt in zip(rows, texts, strict=True):
            row[f"label of {name}"] = str(feature(prompt))
    if not told and template == "{text}":
        told = {name: {"pattern": pattern} for name, pattern in PLAIN_FEATURES.items()}
    with atomic_path(root / "corpus.jsonl") as part:
        part.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows), encoding="utf-8")
    held = min(max(HELD_OUT, HELD / len(set(texts))), 0.5)
    return {"held_out": held, **text, "path": "corpus.jsonl", "prompt": template, "features": told}


def model_entry(
    model: str | Path | Mapping[str, Any], revision: str | None, bos: bool | None
) -> tuple[str, dict[str, Any]]:
    """A model's name and its entry in `models`, with its layers and heads. Raises `InputError` if it is not there."""
    if isinstance(model, Mapping):
        entry = dict(model)
    elif Path(model).exists():
        entry = {"source": "local", "path": str(Path(model).resolve()), "bos": bos}
    elif model in (known := read_entries(shipped())["models"]):
        return str(model), dict(known[model])
    else:
        entry = {
            "source": "hub",
            "path": str(model),
            "revision": revision or _present(str(model)),
            "bos": bos,
        }
    if "n_layers" not in entry or "n_heads" not in entry:
        entry |= _size(entry)
    return re.sub(r"[^\w.-]", "-", Path(entry["path"]).name).lstrip(".") or "model", entry


def _present(path: str) -> str:
    """The present commit of a hub repository."""
    from huggingface_hub import HfApi

    try:
        revision = str(HfApi().model_info(path).sha)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise InputError(
            f"{path} is no folder, and the hub does not know it ({first_line(error)})",
            "give a folder or a .gguf file that is there, or a repository of the hub with its revision",
        ) from error
    echo(f"{path}: revision {revision}")
    return revision


def _size(entry: Mapping[str, Any]) -> dict[str, int]:
    """Layers and heads of a model that is not loaded yet."""
    path = str(entry["path"])
    if path.endswith(".gguf"):
        from inversescope.targets.quantised import describe, open_gguf

        about = describe(open_gguf(Path(path)), Path(path), Path(path).name)
        return {key: about[key] for key in ("n_layers", "n_heads")}
    from transformers import AutoConfig

    try:
        where = {"local_files_only": True} if entry["source"] == "local" else {"revision": entry["revision"]}
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **where)
        return {"n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads}
    except Exception as error:  # as above
        raise InputError(
            f"{path} holds no model ({first_line(error)})", "give a folder with config.json"
        ) from error


def shipped() -> Path:
    """The configuration that `default` and the other variants stand in: of the package or, in a checkout, the project's."""
    package = Path(inversescope.__file__).parent
    file = package / "config.yaml"
    return file if file.exists() else package.parents[1] / "config/config.yaml"


def scope_values(
    text: dict[str, Any],
    root: Path,
    name: str,
    entry: Mapping[str, Any],
    share: float | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The configuration of a scope as values, but for its sites.

    Raises:
        InputError: a setting of the prompts is wrong.
    """
    task = TextTask(validated(TextConfig, {"text": text}, ("text",)), root)
    held = task.split_size("test")
    n_test = min(MOST_TARGETS, held // 2)
    share = min(max(SHARE, NEIGHBOURS / task.size), 0.5) if share is None else share
    own = {
        "kernel": {"share": share, "shares": [share], "epsilons": []},
        "fcr": {"features": list(task.features), "mcmc_evaluations": 0},
        "backbone": {"gate_in_prior": 0.0, "gate_repeated_name": 1.0},
        "sampling": {"decodings": []},
        "variants": {
            "default": {
                "share_range": [max(share / 3, 3.5 / task.size), min(3 * share, 0.9)],
                "sites_per_step": 16,
            }
        },
    }
    scope = {
        "task": "text",
        "model": name,
        "sites": [],
        "n_train": task.size - n_test,
        "n_test": n_test,
        "n_val": min(MOST_VALIDATION, held - n_test),
        "settings": merge(own, settings),
    }
    values = {
        "mirror": None,
        "models": {name: dict(entry)},
        "text": text,
        "experiments": {"scope": scope},
    }
    shared = read_entries(shipped())
    merged: dict[str, Any] = merge({key: shared[key] for key in SHARED}, values)
    return merged


def claim(root: Path, values: Mapping[str, Any]) -> None:
    """Write down whose folder it is. Raises `InputError` if it is another scope's: its files are not those that are asked for."""
    parts = {key: values[key] for key in ("models", "text", "experiments")}
    parts["experiments"] = parts["experiments"]["scope"]
    about = json.loads(json.dumps({**parts, "corpus": file_hash(root / "corpus.jsonl")}, default=str))
    file = root / "scope.json"
    if file.exists() and read_json(file) != about:
        raise InputError(
            f"{root} holds another scope: other prompts, model or settings",
            "name another folder, or delete it",
        )
    write_json(about, file)
