"""Generators and their backbone, made from the configuration or read from checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inversescope.config import ArchitectureConfig, VariantConfig
from inversescope.context import Context, need
from inversescope.errors import InputError
from inversescope.generator.backbone import Backbone, BackboneShape, from_hf
from inversescope.generator.base import ConditionalGenerator
from inversescope.generator.condition import Prompts, encode_prompts
from inversescope.generator.inversescope import GeneratorShape, InverseScope
from inversescope.generator.inversionview import InversionView, InversionViewShape
from inversescope.generator.pairs import KernelPairs, NoisePairs, PairSource
from inversescope.store import load_checkpoint, read_json
from inversescope.targets.sources import load_tokenizer
from inversescope.targets.tokenizers import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def backbone_tokenizer(context: Context) -> PreTrainedTokenizerFast:
    """The backbone's tokenizer: its own where it is a pre-trained model, the target's where it is trained from scratch."""
    config = context.config.backbone
    if config.init == "scratch":
        return load_tokenizer(context.made_target())
    return load_tokenizer(config.path or "", config.revision)


def initial_backbone(context: Context, tokenizer: PreTrainedTokenizerFast) -> Backbone:
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


def cached_words(prompts: Prompts) -> list[int]:
    """Tokens that occur in cached prompts, the start and end token left out."""
    return sorted(set(np.unique(prompts.tokens).tolist()) - {int(prompts.tokens[0, 0])})


def decode_texts(tokenizer: PreTrainedTokenizerFast, rows: np.ndarray, end: int) -> list[str]:
    """Texts of token rows (N, T), cut at the end token; each distinct row is decoded once."""
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    lists = []
    for row in unique:
        stop = np.flatnonzero(row == end)
        lists.append(row[: stop[0]].tolist() if stop.size else row.tolist())
    texts = tokenizer.batch_decode(lists, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [texts[i] for i in inverse.ravel()]


def pair_source(
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


def inverse_scope(
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


def inversion_view(
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


def residual_width(context: Context) -> int:
    """Width of the target's residual stream."""
    return int(read_json(context.made_target() / "target.json")["d_model"])


def check_generator(context: Context, generator: str, variant: str) -> None:
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
    check_generator(context, generator, variant_name)
    directory = context.generator_dir(generator, variant_name)
    tensors, meta = load_checkpoint(need(directory / "meta.json", "train_generator").parent)
    model = GENERATORS[generator](meta["shape"])
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    return model.eval().requires_grad_(False), meta
