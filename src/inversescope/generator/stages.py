"""Stages `train_backbone` and `train_generator`: the backbone on the prior, then control layers and site maps."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from inversescope import __version__
from inversescope.config import ArchitectureConfig, VariantConfig
from inversescope.context import Context, echo, need, stream
from inversescope.errors import InputError
from inversescope.generator.backbone import Backbone, BackboneShape, from_hf
from inversescope.generator.base import ConditionalGenerator
from inversescope.generator.inversescope import GeneratorShape, InverseScope
from inversescope.generator.inversionview import InversionView, InversionViewShape
from inversescope.generator.pairs import KernelPairs, NoisePairs, PairSource, Prompts, encode_prompts
from inversescope.sampling.decode import inverse_cdf, stream_uniforms
from inversescope.store import load_checkpoint, read_json, save_checkpoint, write_table
from inversescope.targets.tokenizers import check_single_tokens, encode, load_tokenizer, tokenizer_hash
from inversescope.training import Schedule, conditional_loss, next_token_loss, this_process, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GATE_SAMPLES = 2048


def backbone_tokenizer(context: Context) -> PreTrainedTokenizerFast:
    """The backbone's tokenizer: its own where it is a pre-trained model, the target's where it is trained from scratch."""
    config = context.config.backbone
    if config.init == "scratch":
        return load_tokenizer(need(context.target_dir / "target.json", "select_target").parent)
    return load_tokenizer(config.path or "", config.revision)


def _initial_backbone(context: Context, tokenizer: PreTrainedTokenizerFast) -> Backbone:
    config = context.config.backbone
    torch.manual_seed(context.config.seed)
    if config.init == "scratch":
        return Backbone(_decoder_shape(config.shape, len(tokenizer)), std=config.shape.initializer_range)
    from transformers import GPT2LMHeadModel

    try:
        model = GPT2LMHeadModel.from_pretrained(
            config.path, revision=config.revision, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"backbone {config.path} at revision {config.revision} cannot be loaded: {str(error).splitlines()[0]}",
            "set backbone.init: local and backbone.path to a directory that holds it, or HF_HOME to a cache that does",
        ) from error
    return from_hf(model)


def _decoder_shape(shape: ArchitectureConfig, vocabulary: int) -> BackboneShape:
    """Sizes of a GPT-2 decoder made here."""
    return BackboneShape(
        vocab_size=vocabulary,
        n_positions=shape.n_positions,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        d_model=shape.d_model,
        d_mlp=shape.d_mlp or 4 * shape.d_model,
        tied_embeddings=shape.tied_embeddings,
    )


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
    backbone = _initial_backbone(context, tokenizer)
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
    write_table(frame, context.results / "samples" / "backbone.parquet")
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


def decode_texts(tokenizer: PreTrainedTokenizerFast, rows: np.ndarray, end: int) -> list[str]:
    """Texts of token rows (N, T), cut at the end token; each distinct row is decoded once."""
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    lists = []
    for row in unique:
        stop = np.flatnonzero(row == end)
        lists.append(row[: stop[0]].tolist() if stop.size else row.tolist())
    texts = tokenizer.batch_decode(lists, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [texts[i] for i in inverse.ravel()]


def load_backbone(context: Context) -> tuple[Backbone, dict[str, Any]]:
    """The fine-tuned backbone and its description."""
    tensors, meta = load_checkpoint(need(context.backbone_dir / "meta.json", "train_backbone").parent)
    backbone = Backbone(BackboneShape(**meta["shape"]))
    backbone.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    return backbone, meta


def cached_prompts(context: Context, tokenizer: PreTrainedTokenizerFast, rows: np.ndarray) -> Prompts:
    """These rows of the train split as the generator and the mean embedding see them."""
    frame = context.prompts("train", columns=["prompt_id", "text"]).iloc[rows]
    index = frame["prompt_id"].to_numpy()
    features = np.stack(list(context.task.features_of(index).values()), 1)
    return encode_prompts(encode(tokenizer, frame["text"].tolist()), int(tokenizer.eos_token_id), features)


def _pair_source(
    context: Context,
    variant: VariantConfig,
    activations: dict[str, np.ndarray],
    prompts: Prompts,
    width: dict[str, int],
    rows: np.ndarray,
) -> PairSource:
    kernel, seed = context.config.kernel, context.config.seed + variant.seed
    task = context.task
    prior = None
    if not task.uniform:
        index = context.prompts("train", columns=["prompt_id"])["prompt_id"].to_numpy()[rows]
        prior = np.exp(task.log_prior(index, None if variant.cache_pairs == "all" else "train"))
    prior_size = task.size if variant.cache_pairs == "all" else task.split_size("train")
    epsilon = variant.epsilon or kernel.epsilon
    if variant.pairs != "kernel":
        return NoisePairs(
            activations,
            prompts,
            width,
            epsilon=epsilon if variant.pairs == "noise" else 0.0,
            per_site=variant.per_site,
            prior_size=prior_size,
            seed=seed,
            distance=kernel.distance,
            kind=kernel.kind,
            norm_band=variant.norm_band,
            prior=prior,
        )
    return KernelPairs(
        activations,
        prompts,
        epsilon=variant.eps_range if variant.eps_input else epsilon,
        per_site=variant.per_site,
        prior_size=prior_size,
        seed=seed,
        distance=kernel.distance,
        kind=kernel.kind,
        embed=variant.mean_embedding,
        soft=variant.soft_targets,
        disjoint=variant.disjoint,
        empty=variant.empty_anchors,
        attend=variant.neighbour_logits or variant.neighbour_words,
        n_condition=variant.n_condition,
        prior=prior,
    )


def _inverse_scope(
    context: Context,
    variant: VariantConfig,
    backbone: Backbone,
    sites: dict[str, int],
    scales: dict[str, float],
    prompts: Prompts,
) -> InverseScope:
    """A generator whose control layers are untrained, on the fine-tuned backbone."""
    shape = GeneratorShape(
        backbone=backbone.shape,
        sites=sites,
        scales=scales,
        n_heads=variant.n_heads,
        d_head=variant.d_head,
        d_condition=variant.d_condition or residual_width(context),
        site_map_blocks=variant.site_map_blocks,
        see_norm=variant.see_norm,
        eps_input=variant.eps_input or variant.mean_embedding,
        d_embedding=len(prompts.prior) if variant.mean_embedding else 0,
        neighbour_logits=variant.neighbour_logits,
        n_condition=variant.n_condition,
        words=tuple(cached_words(prompts)) if variant.neighbour_words else (),
    )
    model = InverseScope(shape)
    model.backbone.load_state_dict(backbone.state_dict())
    if model.neighbour_words is not None:
        model.neighbour_words.set_prior(torch.from_numpy(prompts.tokens.astype(np.int64)))
    model.backbone.requires_grad_(not variant.freeze_backbone)
    return model


def _inversion_view(
    context: Context,
    variant: VariantConfig,
    backbone: Backbone,
    sites: dict[str, int],
    scales: dict[str, float],
) -> InversionView:
    """An untrained InversionView: of the backbone it takes the vocabulary and, unless told otherwise, the sizes."""
    target_width = residual_width(context)
    decoder = variant.decoder
    decoder_shape = (
        _decoder_shape(decoder, backbone.shape.vocab_size) if decoder is not None else backbone.shape
    )
    settings = decoder if decoder is not None else context.config.backbone.shape
    shape = InversionViewShape(
        backbone=decoder_shape,
        # One input for all sites: as wide as the residual stream, or as the widest site (MLP activations are wider).
        sites={label: max(target_width, *sites.values()) for label in sites},
        scales=scales,
        d_site=variant.d_condition or target_width,
        n_blocks=variant.site_map_blocks,
        see_norm=variant.see_norm,
        std=settings.initializer_range if context.config.backbone.init == "scratch" or decoder else 0.02,
    )
    model = InversionView(shape)
    if variant.decoder_init == "backbone":
        model.backbone.load_state_dict(backbone.state_dict())
    return model


def train_generator(context: Context, generator: str, variant: str) -> None:
    """Train one variant of a generator (paper, 3.2, Appendices B and C; ours: kernel pairs; InversionView: end to end).

    Writes the checkpoint with every snapshot that the variant asks for, and the log with the loss beside its Bayes floor.
    """
    settings = context.config.variant(variant)
    _check_generator(context, generator, variant)
    backbone, backbone_meta = load_backbone(context)
    tokenizer = backbone_tokenizer(context)
    if tokenizer_hash(tokenizer) != backbone_meta["tokenizer_hash"]:
        raise InputError(f"{context.backbone_dir} was trained with another tokenizer", "rerun train_backbone")
    sites = context.variant_sites(variant)
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
        model = _inversion_view(context, settings, backbone, width, scales)
    else:
        model = _inverse_scope(context, settings, backbone, width, scales, prompts)
    needed = int(prompts.lengths.max()) - 1
    if model.backbone.shape.n_positions < needed:
        raise InputError(
            f"the decoder of {variant} has {model.backbone.shape.n_positions} positions, but prompts take up to {needed}",
            f"raise variants.{variant}.decoder.n_positions",
        )
    source = _pair_source(context, settings, activations, prompts, width, rows)
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


def cached_words(prompts: Prompts) -> list[int]:
    """Tokens that occur in cached prompts, the start and end token left out."""
    return sorted(set(np.unique(prompts.tokens).tolist()) - {int(prompts.tokens[0, 0])})


def residual_width(context: Context) -> int:
    """Width of the target's residual stream."""
    return int(read_json(need(context.target_dir / "target.json", "select_target / fetch_target"))["d_model"])


def _check_generator(context: Context, generator: str, variant: str) -> None:
    """Raise `InputError` if there is no such generator, or the variant is another one's."""
    if generator not in GENERATORS:
        raise InputError(f"unknown generator {generator!r}", f"choose {' or '.join(GENERATORS)}")
    wanted = context.config.variant(variant).generator
    if generator != wanted:
        raise InputError(
            f"variant {variant} is one of generator {wanted}, not {generator}", f"choose {wanted}"
        )


GENERATORS: dict[str, Callable[[dict[str, Any]], ConditionalGenerator]] = {
    "inversescope": lambda shape: InverseScope(GeneratorShape.from_dict(shape)),
    "inversionview": lambda shape: InversionView(InversionViewShape.from_dict(shape)),
}


def load_generator(
    context: Context, generator: str, variant_name: str
) -> tuple[ConditionalGenerator, dict[str, Any]]:
    """A trained generator and its description, in evaluation mode.

    Raises:
        InputError: unknown generator, a variant of another one, or no checkpoint.
    """
    _check_generator(context, generator, variant_name)
    directory = context.generator_dir(generator, variant_name)
    tensors, meta = load_checkpoint(need(directory / "meta.json", "train_generator").parent)
    model = GENERATORS[generator](meta["shape"])
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    return model.eval().requires_grad_(False), meta
