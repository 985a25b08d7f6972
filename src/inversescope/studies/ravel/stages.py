"""Stages of RAVEL: its data set, and sparse autoencoders."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inversescope import __version__
from inversescope.context import Context, echo, need, stream
from inversescope.errors import InputError
from inversescope.progress import Progress
from inversescope.store import (
    check_provenance,
    file_hash,
    load_checkpoint,
    read_activations,
    save_checkpoint,
    write_activations,
    write_table,
)
from inversescope.studies.ravel.general_text import corpus_passages, manual
from inversescope.studies.ravel.sae import (
    JumpReLU,
    from_arrays,
    gemma_scope_path,
    read_gemma_scope,
    representatives,
)
from inversescope.studies.ravel.scores import decisions, score
from inversescope.tasks.corpus import COPY, copy_corpus, inside
from inversescope.workflow import paths

SHARD = 1024  # prompts whose activations at all positions are shuffled together
GENERAL = "general"


def fetch_ravel(context: Context) -> None:
    """Bring RAVEL to data/ravel/source: from a local mirror, the pinned archive or the hub (see `facts`).

    Raises:
        InputError: the study reads the embedded tables, there is nothing to fetch, or something is not sound.
    """
    from inversescope.tasks.facts import copy_tables, fetch_tables
    from inversescope.tasks.ravel import SOURCE

    config = context.config.ravel
    destination, types = context.root / SOURCE, config.types
    if config.source == "embedded":
        raise InputError(
            "the embedded tables of RAVEL need no download", "set ravel.source: upstream to fetch the others"
        )
    if config.source == "hub":
        manifest = copy_tables(destination, config.hub, context.root, types)
    else:
        mirror = None if config.mirror is None else Path(config.mirror)
        manifest = fetch_tables(destination, mirror, config.archive_sha256, types=types)
    for name in manifest.get("ambiguous_entities", []):
        echo(f"fetch_ravel: '{name}' stands for several entities: left out")
    for text, labels in manifest["ambiguous_templates"].items():
        echo(f"fetch_ravel: prompts of template '{text}' ({', '.join(labels)}) may be another's: left out")
    unpinned = [name for name, file in manifest["files"].items() if not file["pinned"]]
    if unpinned and config.source == "upstream":
        echo(f"fetch_ravel: no pinned checksum for {', '.join(unpinned)}: taken as they are")
    for kind, sizes in manifest["types"].items():
        echo(f"fetch_ravel: {kind}, {sizes['entities']} entities, {sizes['templates']} templates")
        for attribute in sizes["attributes_without_values"]:
            echo(f"fetch_ravel: {kind}, no entity has a value of '{attribute}': left out")
        if sizes["unknown_values"]:
            echo(
                f"fetch_ravel: {kind}, {sizes['unknown_values']} values are unknown: such prompts have no answer"
            )


def fetch_general_text(context: Context) -> None:
    """Copy the general text that `sae.general` names from the hub to data/{task}/{model}/general.

    Raises:
        InputError: it is not of the hub, or the data set cannot be had.
    """
    general = context.config.sae.general
    if general is None or general.source == "local":
        raise InputError("the general text is at hand: it needs no download", "set sae.general.source: hub")
    path = _general_path(context)
    manifest = copy_corpus(general, ["text"], path.parent, echo)
    n_passages = len(corpus_passages(general, path))
    echo(f"fetch_general_text: {manifest['n_rows']} rows of {general.named}, {n_passages} passages")


def _general_path(context: Context) -> Path:
    """Where the corpus of general text lies."""
    general = context.config.sae.general
    assert general is not None
    if general.source == "hub":
        return context.path(paths.GENERAL, file=COPY)
    return inside(context.root, general.path, "sae.general.path")


def fetch_autoencoder(context: Context, site: str) -> None:
    """Bring the released autoencoder of a layer (models.*.gemma_scope) to data/{task}/{model}/sae/general/{site}/.

    Raises:
        InputError: none is released for the layer, or it cannot be fetched or does not fit the site.
    """
    scope = context.plan.target.gemma_scope
    if scope is None:
        raise InputError(
            "no release of autoencoders is named", f"see models.{context.model_name}.gemma_scope"
        )
    layer = context.site(site).layer
    model = read_gemma_scope(gemma_scope_path(scope, layer), None)
    about = {
        "corpus": GENERAL,
        "site": site,
        "released": scope.path,
        "revision": scope.revision,
        "l0": scope.l0[layer],
    }
    about |= {"target": context.identity, "package_version": __version__}
    save_checkpoint(
        context.path(paths.AUTOENCODER, corpus=GENERAL, site=site, file=""), model.arrays(), about
    )
    echo(f"fetch_autoencoder {site}: {model.width} features of {scope.path}")


# -------------------------------------------------------------------------------------------------------------- autoencoders


def corpus_texts(context: Context, corpus: str) -> list[str]:
    """Texts of a corpus: the cached prompts, or as many general texts.

    Of a target that was trained here these are answered prompts, in equal numbers, of all tasks that it learned, with entities of
    the prior alone: those of validation and test prompts are as new to autoencoders as to the other methods. What others trained
    their models on is not at hand: passages of Python's manual stand for it, or those of a corpus that `sae.general` names.
    """
    from inversescope.tasks import get_task

    if corpus == context.task_name:
        return context.prompts("train", columns=["text"])["text"].tolist()
    n = context.plan.settings.n_train
    order = stream(context.config.seed, "collect_positions", corpus)
    general = context.config.sae.general
    if general is not None:
        found = corpus_passages(general, _general_path(context))
        return [found[i] for i in order.permutation(len(found))[: general.n_passages or n]]
    if context.plan.target.source != "trained":
        found = manual()
        return [found[i] for i in order.permutation(len(found))[:n]]
    names = [context.task_name, *context.plan.target.training.corpus]
    texts: list[str] = []
    for name in names:
        task = context.task if name == context.task_name else get_task(name, context.config, context.root)
        rng = stream(context.config.seed, "collect_positions", corpus, name)
        share = -(-n // len(names))
        own = name == context.task_name
        index = task.draw(share, None, rng) if own else task.target_sample(share, "train", rng)
        answered = zip(task.completed(index), task.answers(index), strict=True)
        texts += [text for text, answer in answered if answer]
    return [texts[i] for i in order.permutation(len(texts))]


def collect_positions(context: Context, sites: Sequence[str]) -> None:
    """Extract activations at all positions but the first, of every corpus that autoencoders are trained on (paper, D.2.1).

    The first position is the begin token's, where the target is run behind one.

    Prompts are in random order, and the positions of a shard's prompts are shuffled, so that blocks of rows are fair samples
    wherever one starts to read. Writes data/{task}/{model}/positions/{corpus}/{site}.safetensors.
    """
    from inversescope.activations.capture import capture
    from inversescope.targets.models import load_target

    target = load_target(context.made_target())
    places = [context.site(label) for label in sites]
    meta = {
        "model": target.name,
        "target": target.identity,
        "revision": target.revision,
        "weight_processing": "raw_hf",
        "tokenizer_hash": target.tokenizer_hash,
        "prompt_hash": file_hash(context.prompts_path("train")),
    }
    for corpus in context.plan.corpora:
        texts = corpus_texts(context, corpus)
        about = {**meta, "corpus_hash": hashlib.sha256("\n".join(texts).encode()).hexdigest()}
        folder = context.data / "positions" / corpus / f"shards_{sites[0]}"
        parts: list[Path] = []
        rows, read, progress = 0, 0, Progress(f"collect_positions {corpus}", len(texts), echo)
        for low in range(0, len(texts), SHARD):
            ids = target.encode(texts[low : low + SHARD])
            lengths = np.array([len(i) for i in ids])
            pieces: dict[str, list[np.ndarray]] = {label: [] for label in sites}
            # The longest first, so that faster ways of running the target are tried out on that length alone.
            for length in np.unique(lengths[lengths > 1])[::-1]:
                same = [ids[i] for i in np.flatnonzero(lengths == length)]
                asked = {
                    (place.label, p): replace(place, position=str(p))
                    for place in places
                    for p in range(1, length)
                }
                captured = capture(target, same, list(asked.values()))
                for (label, _), place in asked.items():
                    pieces[label].append(captured[place.label])
                progress(read := read + len(same))
            count = sum(len(piece) for piece in pieces[sites[0]])
            order = stream(context.config.seed, "collect_positions", corpus, low).permutation(count)
            for label in sites:
                part = folder / f"{low:09d}" / f"{label}.safetensors"
                write_activations(part, np.concatenate(pieces[label])[order], about)
            parts.append(folder / f"{low:09d}")
            rows += count
        for label in sites:
            blocks = [read_activations(part / f"{label}.safetensors")[0] for part in parts]
            write_activations(
                context.path(paths.POSITIONS, corpus=corpus, site=label), blocks, {**about, "site": label}
            )
        shutil.rmtree(folder)
        echo(f"collect_positions {corpus}: {len(texts)} texts, {rows} activations at {len(sites)} sites")


class Stream:
    """Batches of a file of activations, block by block, each epoch in another order; a function of seed and step.

    Args:
        z: (N, d) memory map.
        block: rows that are read, and shuffled, together.
    """

    def __init__(self, z: np.ndarray, batch: int, seed: int, block: int = 1 << 17) -> None:
        self.z, self.batch, self.seed = z, min(batch, len(z)), seed
        self.starts = np.arange(0, len(z), max(block, self.batch))
        self.sizes = np.minimum(self.starts + max(block, self.batch), len(z)) - self.starts
        # Batches of a block; what is left over is in other batches of the next epoch.
        self.counts = np.maximum(self.sizes // self.batch, 1)
        self._held: tuple[int, int] | None = None
        self._rows = np.zeros((0, z.shape[1]), np.float32)

    def __call__(self, step: int) -> np.ndarray:
        """Rows (batch, d) of a step (fewer where a last block is smaller)."""
        epoch, number = divmod(step, int(self.counts.sum()))
        order = np.random.default_rng([self.seed, 21, epoch]).permutation(len(self.starts))
        ends = np.cumsum(self.counts[order])
        which = int(np.searchsorted(ends, number, side="right"))
        block = int(order[which])
        if self._held != (epoch, block):
            low, size = int(self.starts[block]), int(self.sizes[block])
            rows = np.random.default_rng([self.seed, 22, epoch, block]).permutation(size)
            self._rows, self._held = np.asarray(self.z[low : low + size])[rows], (epoch, block)
        first = (number - int(ends[which] - self.counts[block])) * self.batch
        return self._rows[first : first + self.batch]


def train_sae(context: Context, sites: Sequence[str]) -> None:
    """Train an autoencoder for every corpus and site at each configured sparsity, and keep the best on validation prompts.

    Of general text a released one is kept where there is one (`fetch_autoencoder`): its quality is measured in the same way.

    Best is the macro-F1 of "the representative feature is active" (paper, D.2.3) on validation entities. Writes
    data/{task}/{model}/sae/{corpus}/{site}/ and, in published/ there, the one of the task's prompts whose sparsity is called so;
    and results/{task}/{model}/sae/{site}.csv: every run with its L0, mean squared error relative to the activations' variance, and
    validation macro-F1.
    """
    for label in sites:
        rows: list[dict[str, Any]] = []
        for corpus in context.plan.corpora:
            is_trained = corpus in context.plan.trained_corpora
            rows += _train_at(context, corpus, label) if is_trained else _judge_at(context, corpus, label)
        write_table(pd.DataFrame(rows), context.results / "sae" / f"{label}.csv")


def _train_at(context: Context, corpus: str, label: str) -> list[dict[str, Any]]:
    """Train autoencoders of a corpus at a site, keep the best, and tell of all."""
    from inversescope.studies.ravel.sae_training import train_sae as fit

    config, seed = context.config.sae, context.config.seed
    positions = need(context.path(paths.POSITIONS, corpus=corpus, site=label), "collect_positions")
    x, meta = read_activations(positions)
    check_provenance(meta, positions, target=context.identity)
    sample = np.asarray(x[: 1 << 14], np.float64)
    scale = float(np.sqrt((sample**2).sum(1).mean()))
    rows: list[dict[str, Any]] = []
    best: tuple[float, float, JumpReLU] | None = None
    for sparsity in config.sparsity:
        state = context.data / "state" / "sae" / corpus / f"{label}_{sparsity}.safetensors"
        name, batches = f"train_sae {corpus} {label} λ={sparsity:g}", Stream(x, config.batch_size, seed)
        # A state is large beside a step.
        long: dict[str, Any] = {"state_path": state, "save_every": 10 * context.config.save_every}
        what = (batches, x.shape[1], scale, config, sparsity, seed, name, echo)
        model, _ = fit(*what, made_from=meta, **long)
        state.unlink(missing_ok=True)
        settings = {"width": config.width, "steps": config.steps, "batch_size": config.batch_size}
        row = {"corpus": corpus, "site": label, "sparsity": sparsity, **settings}
        rows.append(row | _quality(context, model, label, sample))
        told = "L0 {l0:.1f}, unexplained {unexplained:.3f}, validation macro-F1 {val_macro_f1:.3f}"
        echo(f"{name}: {told.format(**rows[-1])}")
        if corpus == context.task_name and sparsity == config.published:
            _save(context, corpus, label, sparsity, model, meta, paths.PUBLISHED)
        if best is None or rows[-1]["val_macro_f1"] > best[0]:
            best = rows[-1]["val_macro_f1"], sparsity, model
    assert best is not None
    _, chosen, model = best
    _save(context, corpus, label, chosen, model, meta, paths.AUTOENCODER)
    return [row | {"chosen": row["sparsity"] == chosen} for row in rows]


def _save(
    context: Context,
    corpus: str,
    label: str,
    sparsity: float,
    model: JumpReLU,
    made_from: dict[str, Any],
    where: str,
) -> None:
    """Keep an autoencoder, and what it was made from."""
    about = {"corpus": corpus, "site": label, "sparsity": sparsity, "package_version": __version__}
    about |= {name: made_from[name] for name in ("target", "prompt_hash", "corpus_hash")}
    save_checkpoint(context.path(where, corpus=corpus, site=label, file=""), model.arrays(), about)


def _judge_at(context: Context, corpus: str, label: str) -> list[dict[str, Any]]:
    """Tell of a released autoencoder: its features active, L0, stand beside the number that the release names it by."""
    positions = need(context.path(paths.POSITIONS, corpus=corpus, site=label), "collect_positions")
    x, meta = read_activations(positions)
    check_provenance(meta, positions, target=context.identity)
    folder = context.path(paths.AUTOENCODER, corpus=corpus, site=label, file="")
    arrays, about = load_checkpoint(need(folder / "meta.json", "fetch_autoencoder").parent)
    model = from_arrays(arrays, x.shape[1], str(folder))
    row = {"corpus": corpus, "site": label, "width": model.width, "released_l0": about["l0"]}
    row |= _quality(context, model, label, np.asarray(x[: 1 << 14], np.float64))
    echo(
        f"train_sae {corpus} {label}: L0 {row['l0']:.1f}, {about['l0']} as released, unexplained {row['unexplained']:.3f}"
    )
    return [row | {"chosen": True}]


def _quality(context: Context, model: JumpReLU, label: str, sample: np.ndarray) -> dict[str, float]:
    """How sparse and faithful an autoencoder is on a sample of activations (N, d), and how well its features tell attributes."""
    (z, labels), (z_val, labels_val) = (
        (np.asarray(context.activations(split, label, raw=True)), labels_of(context, split))
        for split in ("train", "val")
    )
    feature, f1 = representatives(model, z, labels, len(context.task.feature_values["attribute"]))
    said = (model.only(feature).features(z_val) > 0).astype(float)
    table = decisions("sae", np.full(len(said), "val"), labels_val, said)
    features = model.features(sample)
    error = float(((model.reconstruct(features) - sample) ** 2).sum(1).mean())
    return {
        "l0": float((features > 0).sum(1).mean()),
        "alive": float((features > 0).any(0).mean()),
        "unexplained": error / float(((sample - sample.mean(0)) ** 2).sum(1).mean()),
        "train_f1": float(f1.mean()),
        "val_macro_f1": float(score(table, resamples=2)["macro_f1"].iloc[0]),
    }


def labels_of(context: Context, split: str) -> np.ndarray:
    """Attribute codes of a split's prompts."""
    index = context.prompt_ids(split)
    return context.task.features_of(index)["attribute"]
