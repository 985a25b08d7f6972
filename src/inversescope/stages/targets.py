"""Stages `train_target`, `score_target`, `select_target`, `fetch_target`: where the target model comes from."""

from __future__ import annotations

import numpy as np
import pandas as pd

from inversescope.errors import InputError
from inversescope.stages.common import Context, echo, need, stream
from inversescope.store import read_json, read_table, write_json, write_table

SCAN_POOL = 16_384  # prior draws that a candidate is scored against
SCAN_TARGETS = 64  # prompts whose activations are scored


def train_target(context: Context, candidate: str) -> None:
    """Train one candidate target from scratch as a language model of the task's train split, up to the gate.

    The loss is on all tokens (on the answer alone it does not learn the task); accuracy is that of the answer token on prompts
    whose name pairs were held out. A candidate that misses the gate is written too, marked `passed: false`; `select_target`
    leaves it out.
    """
    import torch

    from inversescope.models import (
        build_model,
        check_single_tokens,
        encode,
        fast_linear_layers,
        save_trained,
        short_attention,
        word_tokenizer,
    )
    from inversescope.training import Schedule, next_token_loss, train

    task, model_config = context.task, context.config.models[context.model_name]
    if candidate not in model_config.candidates:
        known = ", ".join(model_config.candidates)
        raise InputError(f"unknown candidate {candidate!r}", f"choose one of {known}")
    spec, settings = model_config.candidates[candidate], model_config.training
    tokenizer = word_tokenizer(task.words())
    check_single_tokens(tokenizer, task.single_token_words())
    model = build_model(spec.shape, len(tokenizer), spec.seed, initializer_range=spec.shape.initializer_range)
    end = int(tokenizer.eos_token_id)

    def tensors(index: np.ndarray, answer: bool) -> tuple[torch.Tensor, torch.Tensor]:
        texts = task.texts(index)
        if answer:
            texts = [f"{text} {word}" for text, word in zip(texts, task.answers(index), strict=True)]
        ids = encode(tokenizer, texts)
        lengths = torch.tensor([len(i) for i in ids])
        if int(lengths.max()) > spec.shape.n_positions:
            raise InputError(
                f"candidate {candidate} has {spec.shape.n_positions} positions, but prompts take up to {int(lengths.max())}",
                f"raise models.{context.model_name}.candidates.{candidate}.shape.n_positions",
            )
        table = np.full((len(ids), int(lengths.max())), end)
        for row, i in enumerate(ids):
            table[row, : len(i)] = i
        return torch.from_numpy(table), lengths

    held_out = task.sample(1024, "test", stream(context.config.seed, "train_target", "gate"), replace=True)
    test_tokens, test_lengths = tensors(held_out, answer=True)

    @torch.inference_mode()
    def accuracy() -> float:
        model.eval()
        logits = model(test_tokens).logits
        row = torch.arange(len(test_tokens))
        right = logits[row, test_lengths - 2].argmax(-1) == test_tokens[row, test_lengths - 1]
        model.train()
        return float(right.float().mean())

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = stream(context.config.seed, "train_target", spec.seed, step)
        tokens, lengths = tensors(task.sample(settings.batch_size, "train", rng, replace=True), answer=True)
        return next_token_loss(model(tokens).logits, tokens, lengths), {}

    reached: list[int] = []
    last = 0.0

    def stop(step: int) -> bool:
        nonlocal last
        if step % 25 == 0:
            last = accuracy()
            if last >= settings.gate_accuracy and not reached:
                reached.append(step)
                echo(
                    f"train_target {candidate}: gate {settings.gate_accuracy} passed at step {step} with {last:.3f}"
                )
        return bool(reached) and step >= reached[0] + settings.extra_steps

    def rate(step: int) -> float:
        left = 1.0 - (step - reached[0]) / settings.extra_steps if reached else 1.0
        return settings.learning_rate * min(1.0, (step + 1) / settings.warmup) * left

    schedule = Schedule(
        settings.max_steps,
        settings.learning_rate,
        settings.weight_decay,
        (0.9, 0.98),
        settings.warmup,
        "constant",
    )
    with fast_linear_layers(model), short_attention(model):
        log = train(
            model,
            loss,
            schedule,
            name=f"train_target {candidate}",
            tokens_per_step=settings.batch_size * 17,
            echo=echo,
            stop=stop,
            rate=rate,
            on_cpu=True,
        )
    final = accuracy()
    passed = final >= settings.gate_accuracy
    meta = {
        "candidate": candidate,
        "seed": spec.seed,
        "accuracy": final,
        "passed": passed,
        "steps": int(log["step"].iloc[-1]),
        "train_seconds": float(log["seconds"].iloc[-1]),
        "n_layers": spec.shape.n_layers,
        "n_heads": spec.shape.n_heads,
        "d_model": spec.shape.d_model,
    }
    save_trained(context.candidate_dir(candidate), model, tokenizer, context.model_name, meta)
    verdict = "passed" if passed else f"MISSED the gate of {settings.gate_accuracy}"
    echo(f"train_target {candidate}: held-out accuracy {final:.3f}, {verdict}")


def score_target(context: Context, candidate: str) -> None:
    """Score a candidate's heads against prior draws: FCR of the headline features, without any generator.

    Writes score.csv beside the candidate: site, share of the prior within epsilon, FCR a feature.
    """
    from inversescope.capture import capture
    from inversescope.models import encode, load_target
    from inversescope.neighbours import Cache
    from inversescope.sites import expand_sites

    kernel = context.config.kernel
    directory = context.candidate_dir(candidate)
    target = load_target(need(directory / "target.json", "train_target").parent)
    task = context.task
    index = task.sample(
        min(SCAN_POOL, task.split_size("train")), "train", stream(context.config.seed, "score_target")
    )
    sites = expand_sites(["L*H*"], target.n_layers, target.n_heads)
    activations = capture(target, encode(target.tokenizer, task.texts(index)), sites)
    labels = {name: task.features_of(index)[name] for name in context.config.fcr.features}
    rows = []
    for site in sites:
        cache = Cache(activations[site.label], kernel.distance)
        near = cache.search(cache.keys[:SCAN_TARGETS], kernel.epsilon)
        owner = np.repeat(np.arange(len(near.counts)), near.counts)
        row: dict[str, object] = {
            "candidate": candidate,
            "site": site.label,
            "share": near.counts.mean() / cache.size,
        }
        for name, label in labels.items():
            same = label[near.rows] == label[owner]
            row[f"fcr_{name}"] = float((np.bincount(owner, weights=same) / near.counts).mean())
        rows.append(row)
    write_table(pd.DataFrame(rows), directory / "score.csv")
    echo(f"score_target {candidate}: {len(sites)} heads scored")


def select_target(context: Context) -> None:
    """Pick the candidate whose heads differ most clearly, and write its weights to data/{task}/{model}/target.

    The criterion, in this order: the smaller of the two best heads' FCRs (object, subject), then their sum. Candidates that
    missed the accuracy gate are out.

    Raises:
        InputError: no candidate passed the gate.
    """
    from inversescope.models import load_target, save_trained

    candidates = context.config.models[context.model_name].candidates
    features = context.config.fcr.features
    rows = []
    for name in candidates:
        directory = context.candidate_dir(name)
        about = read_json(need(directory / "target.json", "train_target"))
        score = read_table(need(directory / "score.csv", "score_target"))
        row = {
            "candidate": name,
            "accuracy": about["accuracy"],
            "passed": about["passed"],
            "steps": about["steps"],
        }
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
    about = read_json(context.candidate_dir(winner) / "target.json")
    kept = {
        k: about[k]
        for k in ("candidate", "seed", "accuracy", "passed", "steps", "n_layers", "n_heads", "d_model")
    }
    save_trained(context.target_dir, chosen.model, chosen.tokenizer, context.model_name, kept)
    write_table(table, context.results / "target_selection.csv")
    echo(f"select_target: {winner} of {len(table)} candidates")


def fetch_target(context: Context) -> None:
    """Resolve a hub or local target model and write data/{task}/{model}/target/target.json.

    Raises:
        InputError: it cannot be loaded, or its tokenizer does not encode the task's words as single tokens.
    """
    from inversescope.models import check_single_tokens, load_target

    config = context.config.models[context.model_name]
    path = config.path
    if config.source == "local":
        from pathlib import Path

        path = str(Path(str(path)).resolve())
    about = {
        "name": context.model_name,
        "source": config.source,
        "path": path,
        "revision": config.revision,
        "dtype": config.dtype,
        "device_map": config.device_map,
    }
    context.target_dir.mkdir(parents=True, exist_ok=True)
    pending = context.target_dir / "pending"
    pending.mkdir(exist_ok=True)
    write_json(about, pending / "target.json")
    target = load_target(pending)
    check_single_tokens(target.tokenizer, context.task.single_token_words())
    (pending / "target.json").unlink()
    pending.rmdir()
    sizes = {"n_layers": target.n_layers, "n_heads": target.n_heads, "d_model": target.d_model}
    write_json({**about, **sizes}, context.target_dir / "target.json")
    echo(f"fetch_target: {context.model_name} from {config.source} {path}")
