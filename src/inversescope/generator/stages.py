"""Stages `train_backbone` and `train_generator`: the backbone on the prior, then control layers and site maps."""

from __future__ import annotations

import zlib
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from inversescope import __version__, device
from inversescope.config.methods import BackboneConfig
from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.generator.build import (
    backbone_tokenizer,
    generator_class,
    initial_backbone,
    load_backbone,
    pair_source,
    untrained_generator,
)
from inversescope.generator.loss import ExampleLoss
from inversescope.generator.prior import (
    PriorLoss,
    longest_prompt,
    repeats_a_name,
    table_of_texts,
    unconditional_texts,
)
from inversescope.store import save_checkpoint, write_table
from inversescope.streams import stream
from inversescope.targets.fitness import check_kept, some_of
from inversescope.targets.tokenizers import check_single_tokens, encode, tokenizer_hash
from inversescope.training import Schedule, processor, train
from inversescope.workflow import paths


def train_backbone(context: Context) -> None:
    """Fine-tune the backbone on the prior (paper, 3.2 and C.1), and gate it on its own unconditional samples.

    Writes checkpoints/backbone, the training log, and the unconditional samples (the control without any activation).

    Raises:
        InputError: the in-prior rate or the repeated-name rate misses its gate; names both and the settings to change.
    """
    config, task, settings = context.config, context.task, context.config.backbone
    tokenizer = backbone_tokenizer(context)
    check_single_tokens(tokenizer, task.single_token_words())
    if settings.init != "scratch":
        index = some_of(task, stream(config.seed, "train_backbone", "check"))
        texts = task.texts(index)
        name = f"The tokenizer of backbone {settings.path}"
        check_kept(tokenizer, list(zip(index.tolist(), texts, encode(tokenizer, texts), strict=True)), name)
    backbone = initial_backbone(context, tokenizer)
    needed = longest_prompt(task, tokenizer) + 2
    if backbone.shape.n_positions < needed:
        raise InputError(
            f"the backbone has {backbone.shape.n_positions} positions, but prompts take up to {needed}",
            "raise backbone.shape.n_positions",
        )
    steps = config.scaled(settings.steps)
    state = context.data / "state" / "backbone.safetensors"
    log = train(
        backbone,
        PriorLoss(backbone, task, tokenizer, settings, config.seed, device.device()),
        Schedule(
            steps,
            settings.learning_rate,
            settings.weight_decay,
            settings.betas,
            settings.warmup,
            settings.schedule,
            settings.clip,
            settings.decay_all,
        ),
        name="train_backbone",
        tokens_per_step=settings.batch_size * 17,
        log_path=context.results / "training" / "backbone.csv",
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
    texts = unconditional_texts(backbone, tokenizer, needed, config.seed)
    frame = table_of_texts(task, texts)
    write_table(frame, context.path(paths.PRIOR_SAMPLES))
    rates = {
        "in_prior": float(frame["parsed"].mean()),
        "repeated_name": float(np.mean([repeats_a_name(text, set(task.names)) for text in texts])),
    }
    _check_gate(rates, settings)
    meta = {
        "shape": asdict(backbone.shape),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        **rates,
        "train_seconds": float(log["seconds"].iloc[-1]),
        "steps": steps,
        "processor": processor(),
        "package_version": __version__,
    }
    save_checkpoint(context.backbone_dir, _numpy_state(backbone), meta)
    state.unlink(missing_ok=True)


def _check_gate(rates: dict[str, float], settings: BackboneConfig) -> None:
    """Raise `InputError` if the backbone's own samples show that it does not know the prior."""
    in_prior, repeats = rates["in_prior"], rates["repeated_name"]
    echo(f"train_backbone: in-prior rate {in_prior:.3f}, repeated-name rate {repeats:.4f}")
    if in_prior < settings.gate_in_prior or repeats > settings.gate_repeated_name:
        raise InputError(
            f"the backbone does not know the prior: in-prior rate {in_prior:.3f} (gate {settings.gate_in_prior}), "
            f"repeated-name rate {repeats:.4f} (gate {settings.gate_repeated_name})",
            "raise backbone.steps, or set backbone.targets: grammar or backbone.tilt: 6",
        )


def train_generator(context: Context, generator: str, variant: str) -> None:
    """Train one variant of a generator (paper, 3.2, Appendices B and C; ours: kernel pairs; InversionView: end to end).

    Writes the checkpoint, and the log with the loss beside its Bayes floor.
    """
    config, settings, process = context.config, context.config.variant(variant), device.process()
    kind = generator_class(context, generator, variant)
    backbone, backbone_meta = load_backbone(context)
    tokenizer = backbone_tokenizer(context)
    if tokenizer_hash(tokenizer) != backbone_meta["tokenizer_hash"]:
        raise InputError(f"{context.backbone_dir} was trained with another tokenizer", "rerun train_backbone")
    source = pair_source(context, variant, tokenizer)
    model = untrained_generator(context, kind, variant, backbone, source)
    steps = config.scaled(settings.steps)
    state = context.data / "state" / generator / f"{variant}.safetensors"
    log = train(
        model,
        ExampleLoss(model, source, process.process_index, process.num_processes),
        Schedule(
            steps,
            settings.learning_rate,
            settings.weight_decay,
            settings.betas,
            settings.warmup,
            settings.schedule,
            settings.clip,
            settings.decay_all,
        ),
        name=f"train_generator {variant}",
        tokens_per_step=int(
            len(source.sites_at(0)) * settings.per_site * float(source.prompts.lengths.mean())
        ),
        log_path=context.training_log(generator, variant),
        state_path=state,
        made_from={
            "seed": config.seed,
            "variant": settings.model_dump(mode="json", exclude={"change", "study", "settings"}),
            "kernel": config.kernel.model_dump(mode="json", include={"distance", "kind"}),
            "epsilon": source.epsilon,
            "backbone": backbone_meta,
            "activations": {label: zlib.crc32(z.data) for label, z in source.activations.items()},
            "processes": process.num_processes,
        },
        save_every=config.save_every,
        echo=echo,
    )
    if not process.is_main_process:
        return
    meta: dict[str, Any] = {
        "shape": asdict(model.shape),
        "tokenizer_hash": tokenizer_hash(tokenizer),
        "target": context.identity,
        "variant": settings.model_dump(mode="json"),
        "steps": steps,
        "cache_size": source.prompts.size,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "processor": processor(),
        "package_version": __version__,
        "train_seconds": float(log["seconds"].iloc[-1]),
    }
    save_checkpoint(context.generator_dir(generator, variant), _numpy_state(model), meta)
    state.unlink(missing_ok=True)


def _numpy_state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}
