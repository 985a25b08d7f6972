"""Stages `train_target`, `select_target`, `fetch_target`: where the target model comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inversescope.context import Context, echo, need, stream
from inversescope.errors import InputError
from inversescope.store import read_json, read_table, write_json, write_table
from inversescope.tasks import get_task

if TYPE_CHECKING:
    import torch

    Asked = tuple[torch.Tensor, torch.Tensor, np.ndarray]
    """Answered prompts (B, T), which tokens behind the first are answers (B, T - 1), group of each prompt (B,)."""

GATE_PROMPTS = 1024
# Names of the random streams of the prompts that a target is tested on.
GATE_STREAMS = {"gate": "gate", "held_out": "held out"}


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
    from contextlib import nullcontext

    import torch.nn.functional as F

    from inversescope.targets.hooks import without_attention
    from inversescope.targets.models import Target, build_model, save_trained
    from inversescope.targets.speed import fast_linear_layers, short_attention
    from inversescope.targets.tokenizers import check_single_tokens, encode, task_tokenizer
    from inversescope.targets.train import answer_mask, answered_right, hidden_edges, padded
    from inversescope.training import Schedule, next_token_loss, train

    task, model_config = context.task, context.config.models[context.model_name]
    if candidate not in model_config.candidates:
        known = ", ".join(model_config.candidates)
        raise InputError(f"unknown candidate {candidate!r}", f"choose one of {known}")
    spec, settings = model_config.candidates[candidate], model_config.training
    further = {name: get_task(name, context.config, context.root) for name in settings.corpus}
    counts = {name: round(share * settings.batch_size) for name, share in settings.corpus.items()}
    own = settings.batch_size - sum(counts.values())
    tokenizer = task_tokenizer(task, *further.values())
    check_single_tokens(tokenizer, task.single_token_words())
    task.check_tokenizer(lambda texts: encode(tokenizer, texts))
    model = build_model(spec.shape, len(tokenizer), spec.seed, initializer_range=spec.shape.initializer_range)
    target = Target(model, tokenizer, context.model_name)

    def tensors(questions: list[str], texts: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Answered questions as tokens (B, T), and the lengths of questions and of answered questions (B,) each."""
        tokens, starts, lengths = padded(tokenizer, questions, texts)
        if int(lengths.max()) > spec.shape.n_positions:
            raise InputError(
                f"candidate {candidate} has {spec.shape.n_positions} positions, but prompts take up to {int(lengths.max())}",
                f"raise models.{context.model_name}.shape.n_positions",
            )
        return tokens, starts, lengths

    def asked(part: str) -> Asked | None:
        rng = stream(context.config.seed, "train_target", GATE_STREAMS[part])
        index = task.target_sample(GATE_PROMPTS, part, rng)
        if not len(index):
            return None
        tokens, starts, lengths = tensors(task.questions(index), task.completed(index))
        groups = np.zeros(len(index))
        if task.gate_by is not None and part == "gate":
            groups = task.features_of(index)[task.gate_by]
        return tokens, answer_mask(tokens, starts, lengths), groups

    gate = asked("gate")
    if gate is None:
        raise InputError(f"task {task.name} has no prompts to test a target on", task.split_remedy("test"))

    def accuracy(prompts: Asked) -> float:
        tokens, answered, groups = prompts
        right = answered_right(model, tokens, answered)
        model.train()
        return min(float(right[groups == group].mean()) for group in np.unique(groups))

    hidden = task.lesson(1, None, stream(context.config.seed, "train_target", "shape")).hidden
    hide = settings.delay_layers > 0 and hidden is not None
    level = 0
    recent: list[float] = []

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        nonlocal level
        learnt = len(recent) >= 20 and np.mean(recent[-20:]) < settings.curriculum_loss
        if learnt and level + 1 < len(settings.curriculum):
            level += 1
            recent.clear()
            echo(f"train_target {candidate}: {settings.curriculum[level]} entries from step {step}")
        rng = stream(context.config.seed, "train_target", spec.seed, step)
        lesson = task.lesson(own, settings.curriculum[level] if settings.curriculum else None, rng)
        others = [further[name].lesson(count, None, rng) for name, count in counts.items()]
        tokens, starts, lengths = tensors(
            [text for part in (lesson, *others) for text in part.questions],
            [text for part in (lesson, *others) for text in part.texts],
        )
        early = hide and not reached
        with (
            without_attention(target, hidden_edges(hidden, tokens, settings.delay_layers))
            if early
            else nullcontext()
        ):
            logits = model(tokens).logits
        if lesson.scored is None:
            weighted = settings.answer_weight != 1.0
            return next_token_loss(
                logits, tokens, lengths, starts if weighted else None, settings.answer_weight
            ), {}
        value = F.cross_entropy(
            logits[:, lesson.scored - 1].transpose(1, 2), tokens[:, lesson.scored], reduction="none"
        )
        recent.append(float(value[:, -2:].detach().mean()))
        return value.mean(), {"answer_loss": recent[-1]}

    reached: list[int] = []
    last = 0.0

    def stop(step: int) -> bool:
        nonlocal last
        if step % 25 == 0 and level + 1 >= len(settings.curriculum) and not reached:
            # With the query hidden from early blocks, as in training; the last accuracy, below, is without.
            with (
                without_attention(target, hidden_edges(hidden, gate[0], settings.delay_layers))
                if hide
                else nullcontext()
            ):
                last = accuracy(gate)
            if last >= settings.gate_accuracy:
                reached.append(step)
                echo(
                    f"train_target {candidate}: gate {settings.gate_accuracy} passed at step {step} with {last:.3f}"
                )
        early = settings.schedule == "gate" and bool(reached)
        return early and step >= reached[0] + settings.extra_steps

    def rate(step: int) -> float:
        left = 1.0 - (step - reached[0]) / settings.extra_steps if reached else 1.0
        if settings.schedule == "cosine":
            left = 0.5 * (1.0 + np.cos(np.pi * step / settings.max_steps))
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
    final = accuracy(gate)
    rest = asked("held_out")
    passed = final >= settings.gate_accuracy
    meta = {
        "candidate": candidate,
        "seed": spec.seed,
        "accuracy": final,
        "accuracy_held_out": None if rest is None else accuracy(rest),
        "passed": passed,
        "steps": int(log["step"].iloc[-1]),
        "train_seconds": float(log["seconds"].iloc[-1]),
        "n_layers": spec.shape.n_layers,
        "n_heads": spec.shape.n_heads,
        "d_model": spec.shape.d_model,
        "delay_layers": settings.delay_layers,
    }
    save_trained(context.candidate_dir(candidate), model, tokenizer, context.model_name, meta)
    verdict = "passed" if passed else f"MISSED the gate of {settings.gate_accuracy}"
    echo(f"train_target {candidate}: held-out accuracy {final:.3f}, {verdict}")


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
        for k in (
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
        if k in about
    }
    save_trained(context.target_dir, chosen.model, chosen.tokenizer, context.model_name, kept)
    write_table(table, context.results / "target_selection.csv")
    echo(f"select_target: {winner} of {len(table)} candidates")


def fetch_target(context: Context) -> None:
    """Resolve a hub or local target model and write data/{task}/{model}/target/target.json.

    Raises:
        InputError: it cannot be loaded, or its tokenizer does not encode the task's words as single tokens.
    """
    from inversescope.targets.models import load_target
    from inversescope.targets.tokenizers import check_single_tokens, encode

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
        "bos": config.bos,
    }
    context.target_dir.mkdir(parents=True, exist_ok=True)
    pending = context.target_dir / "pending"
    pending.mkdir(exist_ok=True)
    write_json(about, pending / "target.json")
    target = load_target(pending)
    check_single_tokens(target.tokenizer, context.task.single_token_words())
    context.task.check_tokenizer(lambda texts: encode(target.tokenizer, texts))
    (pending / "target.json").unlink()
    pending.rmdir()
    sizes = {"n_layers": target.n_layers, "n_heads": target.n_heads, "d_model": target.d_model}
    write_json({**about, **sizes}, context.target_dir / "target.json")
    echo(f"fetch_target: {context.model_name} from {config.source} {path}")
