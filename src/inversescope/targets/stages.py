"""Stages `train_target`, `select_target`, `fetch_target`, `fetch_models`: where the target, and other models, come from."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from inversescope.context import Context, echo, need
from inversescope.errors import InputError
from inversescope.progress import waiting
from inversescope.store import read_json, read_table, write_json, write_table
from inversescope.streams import stream
from inversescope.workflow import paths

if TYPE_CHECKING:
    from inversescope.targets.models import Target

#: What target.json says of the winner, as far as its candidate's does.
KEPT = (
    "candidate",
    "seed",
    "accuracy",
    "accuracy_held_out",
    "passed",
    "steps",
    "n_layers",
    "n_heads",
    "d_model",
    "delay_layers",
)


def train_target(context: Context, candidate: str) -> None:
    """Train one candidate target from scratch as a language model of its task's answered prompts, up to the gate.

    The loss is on the tokens that the task's lessons score (IOI: all, on the answer alone it does not learn the task), the
    answer's with `answer_weight`. Accuracy is that of the whole answer, each token after the true ones, on the task's gate
    prompts (IOI: name pairs that were held out; RAVEL: trained templates), where the task says so the smallest over a feature's
    labels; beside it stands the accuracy on prompts that the task holds out altogether. A curriculum, where there is one, comes
    first. Until the gate is passed, `delay_layers` keeps the query from the position that predicts; the extra steps are
    without, and so is the accuracy that is reported. A candidate that misses the gate is written too, marked `passed: false`;
    `select_target` leaves it out.
    """
    from inversescope.targets.models import save_trained
    from inversescope.targets.train import TargetTraining
    from inversescope.tasks import get_task
    from inversescope.training import processor

    model = context.config.models[context.model_name]
    if candidate not in model.candidates:
        raise InputError(f"unknown candidate {candidate!r}", f"choose one of {', '.join(model.candidates)}")
    spec, settings = model.candidates[candidate], model.training
    training = TargetTraining(
        context.model_name,
        candidate,
        spec,
        settings,
        context.task,
        {name: get_task(name, context.config, context.root) for name in settings.corpus},
        partial(stream, context.config.seed, "train_target"),
        echo,
    )
    log = training.run()
    accuracy = training.gate_accuracy()
    passed = accuracy >= settings.gate_accuracy
    meta = {
        "candidate": candidate,
        "seed": spec.seed,
        "accuracy": accuracy,
        "accuracy_held_out": training.held_out_accuracy(),
        "passed": passed,
        "steps": int(log["step"].iloc[-1]),
        "train_seconds": float(log["seconds"].iloc[-1]),
        "processor": processor(),
        "n_layers": spec.shape.n_layers,
        "n_heads": spec.shape.n_heads,
        "d_model": spec.shape.d_model,
        "delay_layers": settings.delay_layers,
    }
    target = training.target
    model = target.model.to("cpu")
    save_trained(context.candidate_dir(candidate), model, target.tokenizer, target.name, meta)
    verdict = "passed" if passed else f"MISSED the gate of {settings.gate_accuracy}"
    echo(f"train_target {candidate}: held-out accuracy {accuracy:.3f}, {verdict}")


def select_target(context: Context) -> None:
    """Pick the candidate whose sites show the features most clearly, and write its weights to data/{task}/{model}/target.

    The criterion, in this order: the smallest of the best sites' FCRs by headline feature, then their sum. Candidates that
    missed the accuracy gate are out.

    Raises:
        InputError: no candidate passed the gate.
    """
    from inversescope.targets.models import load_target, save_trained

    candidates = context.config.models[context.model_name].candidates
    features = context.config.fcr.features
    rows, described = [], {}
    for name in candidates:
        directory = context.candidate_dir(name)
        about = described[name] = read_json(need(directory / "target.json", "train_target"))
        score = read_table(need(directory / "score.csv", "score_target"))
        row = {"candidate": name, **{key: about[key] for key in ("accuracy", "passed", "steps")}}
        for feature in features:
            best = score[f"fcr_{feature}"].idxmax()
            row[f"best_{feature}"] = float(score[f"fcr_{feature}"].max())
            row[f"best_{feature}_site"] = str(score["site"][best])
        rows.append(row)
    table = pd.DataFrame(rows)
    best_columns = [f"best_{feature}" for feature in features]
    table["criterion"] = table[best_columns].min(axis=1)
    table["total"] = table[best_columns].sum(axis=1)
    ranked = table[table["passed"].astype(bool)].sort_values(["criterion", "total"], ascending=False)
    if ranked.empty:
        raise InputError(
            f"no candidate of {context.model_name} reached the gate (accuracies {table['accuracy'].round(3).tolist()})",
            f"raise models.{context.model_name}.training.max_steps, or add candidates",
        )
    winner = str(ranked.iloc[0]["candidate"])
    table["selected"] = table["candidate"] == winner
    chosen = load_target(context.candidate_dir(winner))
    kept = {key: described[winner][key] for key in KEPT if key in described[winner]}
    save_trained(context.target_dir, chosen.model, chosen.tokenizer, context.model_name, kept)
    write_table(table, context.results / "target_selection.csv")
    echo(f"select_target: {winner} of {len(table)} candidates")


def fetch_target(context: Context) -> Target:
    """Resolve a target model from elsewhere, write data/{task}/{model}/target/target.json, and return it.

    Of a folder, the files that the model is read from are hashed: one that is changed later is refused.

    Raises:
        InputError: it cannot be loaded, is not what its files say, has other layers or heads than the configuration says, or lacks
            what a later stage needs (`fitness.CHECKS`).
    """
    from inversescope.targets.files import check_files, hashes_of
    from inversescope.targets.fitness import check_target
    from inversescope.targets.models import check_size, open_target, wants_begin_token

    config, directory = context.config.models[context.model_name], context.target_dir
    path = str(Path(str(config.path)).resolve()) if config.source == "local" else config.path
    about: dict[str, Any] = {"name": context.model_name, "source": config.source, "path": path}
    about["revision"] = config.revision
    if config.gguf:
        imported = need(context.path(paths.WEIGHTS, file="target.json"), "import_gguf")
        directory.mkdir(parents=True, exist_ok=True)  # what the path is relative to
        about = read_json(imported) | {"path": os.path.relpath(imported.parent, directory)}
    elif config.source == "local":
        check_files(str(path))
        about["sha256"] = hashes_of(str(path))
    bos = wants_begin_token(directory, about) if config.bos is None else config.bos
    about |= {"dtype": config.dtype, "device_map": config.device_map, "bos": bos}
    target = open_target(directory, about)
    check_size(context.model_name, config, target.n_layers, target.n_heads)
    asked, rng = context.plan.settings, stream(context.config.seed, "fetch_target")
    with waiting(f"fetch_target: checking prompts of {context.task.name}", echo):
        check_target(target, context.task, asked.sites, asked.patched, rng)
    sizes = {"n_layers": target.n_layers, "n_heads": target.n_heads, "d_model": target.d_model}
    write_json({**about, **sizes}, directory / "target.json")
    echo(f"fetch_target: {context.model_name} from {config.source} {path}")
    return target


def fetch_models(context: Context) -> None:
    """Bring into the hub's cache what jobs read from there beside the target: the backbone, and chat models.

    It runs where Snakemake runs, since the nodes of a cluster often have no network. Writes data/{task}/{model}/fetched.json: what
    was brought.

    Raises:
        InputError: something cannot be had; names it and what to set instead.
    """
    from inversescope.targets.sources import download

    for path, revision, files in context.plan.from_hub:
        with waiting(f"fetch_models: {path}", echo):
            download(path, revision, files)
        echo(f"fetch_models: {path} at {revision}")
    keys = ("path", "revision", "files")
    brought = [dict(zip(keys, one, strict=True)) for one in context.plan.from_hub]
    write_json(brought, context.path(paths.FETCHED))
