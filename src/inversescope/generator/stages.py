"""Stages `train_backbone` and `train_generator`: the backbone on the prior, then control layers and site maps."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from inversescope import __version__
from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.generator.backbone import Backbone
from inversescope.generator.base import ConditionalGenerator
from inversescope.generator.build import (
    backbone_tokenizer,
    cached_prompts,
    check_generator,
    decode_texts,
    initial_backbone,
    inverse_scope,
    inversion_view,
    load_backbone,
    pair_source,
    residual_width,
)
from inversescope.generator.condition import encode_prompts
from inversescope.generator.loss import conditional_loss
from inversescope.ops import inverse_cdf
from inversescope.store import save_checkpoint, write_table
from inversescope.streams import stream, stream_uniforms
from inversescope.targets.tokenizers import check_single_tokens, encode, tokenizer_hash
from inversescope.training import Schedule, next_token_loss, this_process, train
from inversescope.workflow import paths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GATE_SAMPLES = 2048


def train_backbone(context: Context) -> None:
    """Fine-tune the backbone on the prior (paper, 3.2 and C.1), and gate it on its own unconditional samples.

    Writes checkpoints/backbone, the training log, and the unconditional samples (the control without any activation).

    Raises:
        InputError: the in-prior rate or the repeated-name rate misses its gate; names both and the settings to change.
    """
    config, task = context.config, context.task
    settings = config.backbone
    tokenizer = backbone_tokenizer(context)
    check_single_tokens(tokenizer, task.single_token_words())
    backbone = initial_backbone(context, tokenizer)
    needed = _longest(context, tokenizer) + 2
    if backbone.shape.n_positions < needed:
        raise InputError(
            f"the backbone has {backbone.shape.n_positions} positions, but prompts take up to {needed}",
            "raise backbone.shape.n_positions",
        )
    end = int(tokenizer.eos_token_id)
    vocabulary = backbone.shape.vocab_size
    names = torch.zeros(vocabulary, dtype=torch.bool)
    for ids in encode(tokenizer, [f" {name}" for name in task.names]):
        names[int(ids[-1])] = True
    exact = task.next_tokens(tokenizer) if settings.targets == "grammar" else None
    device = this_process().device
    names = names.to(device)
    exact_tokens = (
        torch.from_numpy(np.asarray(exact.tokens, np.int64)).to(device) if exact is not None else None
    )
    steps = config.scaled(settings.steps)

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = stream(config.seed, "train_backbone", step)
        texts = task.texts(task.draw(settings.batch_size, None, rng))
        prompts = encode_prompts(encode(tokenizer, texts), end)
        tokens = torch.from_numpy(prompts.tokens.astype(np.int64)).to(device)
        lengths = torch.from_numpy(prompts.lengths).to(device)
        logits = backbone(tokens)
        if exact is not None:
            target = torch.from_numpy(exact.along(prompts.tokens)).to(device)
            logp = F.log_softmax(logits[:, :-1], -1)[..., exact_tokens]
            value = -(target * logp).sum(-1)
            inside = torch.arange(1, tokens.shape[1], device=device)[None] < lengths[:, None]
            if settings.support_weight:
                # The prior gives nothing to tokens that leave its grammar: at the optimum this term is zero.
                allowed = logp.masked_fill((target == 0) & inside[..., None], -torch.inf)
                value = value - settings.support_weight * torch.logsumexp(allowed, -1)
            return (value * inside).sum() / inside.sum(), {}
        if settings.tilt:
            # Half of the batch: lift the prompt's own names, so that the loss is about which of the two comes, not about 1 / n.
            half = len(tokens) // 2
            own = torch.zeros(half, vocabulary, device=device).scatter_(1, tokens[:half], 1.0) * names
            logits = torch.cat([logits[:half] + settings.tilt * own[:, None, :], logits[half:]])
        return next_token_loss(logits, tokens, lengths), {}

    state = context.data / "state" / "backbone.safetensors"
    log_path = context.results / "training" / "backbone.csv"
    log = train(
        backbone,
        loss,
        Schedule(
            steps,
            settings.learning_rate,
            settings.weight_decay,
            (0.9, 0.98),
            settings.warmup,
            settings.schedule,
        ),
        name="train_backbone",
        tokens_per_step=settings.batch_size * 17,
        log_path=log_path,
        state_path=state,
        made_from={
            "seed": config.seed,
            "backbone": settings.model_dump(mode="json"),
            "task": config.model_dump(mode="json")[context.task_name],
            "tokenizer": tokenizer_hash(tokenizer),
        },
        save_every=config.save_every,
        echo=echo,
    )
    backbone.cpu()
    texts = _unconditional(backbone, tokenizer, context)
    index = task.parse(texts)
    repeated = task.features_of_texts(texts)
    in_prior = float((index >= 0).mean())
    repeats = float(np.mean([_repeats_a_name(text, set(task.names)) for text in texts]))
    frame = pd.DataFrame({"draw": np.arange(len(texts)), "text": texts, "parsed": index >= 0})
    for feature, values in repeated.items():
        frame[f"feature_{feature}"] = [task.feature_values[feature][v] if v >= 0 else "" for v in values]
    write_table(frame, context.path(paths.PRIOR_SAMPLES))
    echo(f"train_backbone: in-prior rate {in_prior:.3f}, repeated-name rate {repeats:.4f}")
    if in_prior < settings.gate_in_prior or repeats > settings.gate_repeated_name:
        raise InputError(
            f"the backbone does not know the prior: in-prior rate {in_prior:.3f} (gate {settings.gate_in_prior}), "
            f"repeated-name rate {repeats:.4f} (gate {settings.gate_repeated_name})",
            "raise backbone.steps, or set backbone.targets: grammar or backbone.tilt: 6",
        )
    meta = {
        "shape": backbone.shape.to_dict(),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "in_prior": in_prior,
        "repeated_name": repeats,
        "train_seconds": float(log["seconds"].iloc[-1]),
        "steps": steps,
        "package_version": __version__,
    }
    save_checkpoint(context.backbone_dir, _numpy_state(backbone), meta)
    state.unlink(missing_ok=True)


def _longest(context: Context, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens of the longest prompt."""
    index = context.task.extremes(lambda texts: [len(ids) for ids in encode(tokenizer, texts)])
    return max(len(ids) for ids in encode(tokenizer, context.task.texts(index)))


def _repeats_a_name(text: str, names: set[str]) -> bool:
    """Whether the second name of a text is the first one again."""
    words = [w for w in text.replace(",", " ").replace(".", " ").split() if w in names]
    return len(words) >= 2 and words[0] == words[1]


def _numpy_state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}


@torch.inference_mode()
def _unconditional(backbone: Backbone, tokenizer: PreTrainedTokenizerFast, context: Context) -> list[str]:
    """Texts that the backbone writes without any activation."""
    end = int(tokenizer.eos_token_id)
    length = _longest(context, tokenizer) + 2
    uniforms = stream_uniforms(
        context.config.seed, "train_backbone", np.array([0]), np.arange(GATE_SAMPLES), length
    )[0]
    cache = backbone.take_cache(GATE_SAMPLES, length)
    token = torch.full((GATE_SAMPLES,), end)
    rows = np.full((GATE_SAMPLES, length), end, np.int64)
    alive = np.ones(GATE_SAMPLES, bool)
    for position in range(length):
        p = torch.softmax(backbone.logits(backbone.step(token, position, cache)).double(), -1)
        drawn = inverse_cdf(p, np.arange(GATE_SAMPLES), uniforms[:, position])
        rows[alive, position] = drawn[alive]
        token = torch.from_numpy(rows[:, position].copy())
        alive &= rows[:, position] != end
    return decode_texts(tokenizer, rows, end)


def train_generator(context: Context, generator: str, variant: str) -> None:
    """Train one variant of a generator (paper, 3.2, Appendices B and C; ours: kernel pairs; InversionView: end to end).

    Writes the checkpoint with every snapshot that the variant asks for, and the log with the loss beside its Bayes floor.
    """
    settings = context.config.variant(variant)
    check_generator(context, generator, variant)
    backbone, backbone_meta = load_backbone(context)
    tokenizer = backbone_tokenizer(context)
    if tokenizer_hash(tokenizer) != backbone_meta["tokenizer_hash"]:
        raise InputError(f"{context.backbone_dir} was trained with another tokenizer", "rerun train_backbone")
    sites = context.plan.sites_of(variant)
    rows = context.cache_rows(settings)
    activations = {s.label: np.ascontiguousarray(context.activations("train", s.label)[rows]) for s in sites}
    prompts = cached_prompts(context, tokenizer, rows)
    target_width = residual_width(context)
    width = {
        label: max(z.shape[-1], target_width)
        if settings.pairs == "noise" and settings.noise_space == "model"
        else z.shape[-1]
        for label, z in activations.items()
    }
    scales = {
        label: float(np.sqrt((z.astype(np.float64) ** 2).sum(-1).mean())) for label, z in activations.items()
    }
    torch.manual_seed(context.config.seed + settings.seed)
    model: ConditionalGenerator
    if generator == "inversionview":
        model = inversion_view(context, settings, backbone, width, scales)
    else:
        model = inverse_scope(context, settings, backbone, width, scales, prompts)
    needed = int(prompts.lengths.max()) - 1
    if model.backbone.shape.n_positions < needed:
        raise InputError(
            f"the decoder of {variant} has {model.backbone.shape.n_positions} positions, but prompts take up to {needed}",
            f"raise variants.{variant}.decoder.n_positions",
        )
    source = pair_source(context, settings, activations, prompts, width, rows)
    steps = context.config.scaled(settings.steps)

    process = this_process()

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        batch = source.batch(step)
        part = batch.part(process.process_index, process.num_processes)
        value = conditional_loss(model, part)
        if part is not batch:
            value = value * float(part.weight.sum() / batch.weight.sum())
        return value, {"bayes_floor": batch.floor}

    state = context.data / "state" / generator / f"{variant}.safetensors"
    log = train(
        model,
        loss,
        Schedule(
            steps,
            settings.learning_rate,
            settings.weight_decay,
            settings.betas,
            settings.warmup,
            settings.schedule,
            settings.clip,
        ),
        name=f"train_generator {variant}",
        tokens_per_step=int(len(sites) * settings.per_site * float(prompts.lengths.mean())),
        log_path=context.training_log(generator, variant),
        state_path=state,
        made_from={
            "seed": context.config.seed,
            "variant": settings.model_dump(mode="json", exclude={"change", "study", "settings"}),
            "kernel": context.config.kernel.model_dump(mode="json", include={"epsilon", "distance", "kind"}),
            "backbone": backbone_meta,
            "activations": {label: zlib.crc32(z.data) for label, z in activations.items()},
            "processes": process.num_processes,
        },
        save_every=context.config.save_every,
        echo=echo,
    )
    if not process.is_main_process:
        return
    meta = {
        "shape": model.shape.to_dict(),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "variant": settings.model_dump(mode="json"),
        "steps": steps,
        "cache_size": len(rows),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "package_version": __version__,
        "train_seconds": float(log["seconds"].iloc[-1]),
    }
    save_checkpoint(context.generator_dir(generator, variant), _numpy_state(model), meta)
    state.unlink(missing_ok=True)
