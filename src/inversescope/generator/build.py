"""Generators, their backbone and their training examples, from the configuration or from checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inversescope.config.methods import Bandwidth
from inversescope.context import Context, need
from inversescope.device import device
from inversescope.errors import InputError
from inversescope.generator.backbone import Backbone, BackboneShape, from_hf
from inversescope.generator.base import ConditionalGenerator, Materials
from inversescope.generator.condition import Prompts, encode_prompts
from inversescope.generator.inversescope import InverseScope
from inversescope.generator.inversionview import InversionView
from inversescope.generator.pairs import KernelPairs, NoisePairs, PairSource
from inversescope.store import check_provenance, load_checkpoint, read_json
from inversescope.targets.sources import folder_or_repository, load_tokenizer
from inversescope.targets.tokenizers import encode, task_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Name in the configuration -> generator. A new one is a file with its class, and a line here.
GENERATORS: dict[str, type[ConditionalGenerator]] = {
    "inversescope": InverseScope,
    "inversionview": InversionView,
}


def generator_class(context: Context, generator: str, variant: str) -> type[ConditionalGenerator]:
    """The class of a variant's generator. Raises `InputError` if there is no such generator, or the variant is another one's."""
    if generator not in GENERATORS:
        raise InputError(f"unknown generator {generator!r}", f"choose {' or '.join(GENERATORS)}")
    wanted = context.config.variant(variant).generator
    if generator != wanted:
        raise InputError(
            f"variant {variant} is one of generator {wanted}, not {generator}", f"choose {wanted}"
        )
    return GENERATORS[generator]


def load_generator(
    context: Context, generator: str, variant: str
) -> tuple[ConditionalGenerator, dict[str, Any]]:
    """A trained generator and its description, in evaluation mode.

    Raises:
        InputError: unknown generator, a variant of another one, no checkpoint, or one for another target.
    """
    kind = generator_class(context, generator, variant)
    directory = context.generator_dir(generator, variant)
    tensors, meta = load_checkpoint(need(directory / "meta.json", "train_generator").parent)
    check_provenance(meta, directory / "meta.json", target=context.identity)
    model = kind.from_shape(meta["shape"])
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    return model.to(device()).eval().requires_grad_(False), meta


def untrained_generator(
    context: Context, kind: type[ConditionalGenerator], variant: str, backbone: Backbone, pairs: PairSource
) -> ConditionalGenerator:
    """A generator as training begins with it, for the activations that `pairs` serves.

    Raises:
        InputError: a decoder with fewer positions than prompts have tokens.
    """
    settings = context.config.variant(variant)
    torch.manual_seed(context.config.seed + settings.seed)
    model = kind.build(
        Materials(
            config=context.config,
            variant=settings,
            backbone=backbone,
            sites=pairs.dimensions,
            scales={
                label: float(np.sqrt((z.astype(np.float64) ** 2).sum(-1).mean()))
                if settings.scaled_inputs
                else pairs.dimensions[label] ** 0.5
                for label, z in pairs.activations.items()
            },
            prompts=pairs.prompts,
            log_epsilons=pairs.log_epsilons,
            target_width=residual_width(context),
        )
    )
    needed = int(pairs.prompts.lengths.max()) - 1
    if model.backbone.shape.n_positions < needed:
        raise InputError(
            f"the decoder of {variant} has {model.backbone.shape.n_positions} positions, but prompts take up to {needed}",
            f"raise variants.{variant}.decoder.n_positions",
        )
    return model


def backbone_tokenizer(context: Context) -> PreTrainedTokenizerFast:
    """The generator's tokenizer: its own where the backbone is a pre-trained model, else one of the prior's words alone.

    A generator reads and writes prompts as texts, so its tokens need not be the target's. The words of the task suffice exactly:
    every prompt of the prior is made of them, and decode(encode(x)) == x, however many of the target's tokens a word has. They
    are a few hundred, where a target that was fetched has 49,152 to 256,000. A target that was trained here, or imported, has a
    tokenizer of these words already, and perhaps of those of further tasks.

    Raises:
        InputError: that of a pre-trained model cannot be loaded, or has no end token.
    """
    config = context.config.backbone
    if config.init != "scratch":
        tokenizer = load_tokenizer(config.path or "", config.revision)
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of backbone {config.path} has no end token, so that its texts would never end",
                "name its eos_token in tokenizer_config.json, or use another backbone",
            )
        return tokenizer
    if context.plan.target.is_fetched:
        return task_tokenizer(context.task)
    return load_tokenizer(context.made_target())


def initial_backbone(context: Context, tokenizer: PreTrainedTokenizerFast) -> Backbone:
    """The backbone as its fine-tuning begins with it. Raises `InputError` if a pre-trained one cannot be loaded."""
    config = context.config.backbone
    torch.manual_seed(context.config.seed)
    if config.init == "scratch":
        return Backbone(BackboneShape.of(config.shape, len(tokenizer)), std=config.shape.initializer_range)
    from transformers import GPT2LMHeadModel

    model = folder_or_repository(str(config.path), config.revision).model()
    if not isinstance(model, GPT2LMHeadModel):
        raise InputError(
            f"backbone {config.path} is a {model.config.model_type}, not a gpt2",
            "set backbone.path to a GPT-2",
        )
    return from_hf(model)


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


def pair_source(context: Context, name: str, tokenizer: PreTrainedTokenizerFast) -> PairSource:
    """A variant's training examples, from the cached activations of its sites."""
    variant, task, kernel = context.config.variant(name), context.task, context.config.kernel
    rows = context.cache_rows(variant)
    everything = variant.cache_pairs == "all"
    prior = None
    if not task.uniform:
        index = context.prompt_ids("train")[rows]
        prior = np.exp(task.log_prior(index, None if everything else "train"))
    # The first rows of a file stay there, mapped; others are copied.
    cached = slice(len(rows)) if np.array_equal(rows, np.arange(len(rows))) else rows
    activations = {
        site.label: np.ascontiguousarray(context.activations("train", site.label)[cached])
        for site in context.plan.sites_of(name)
    }
    ranges = {label: trained_range(context, name, label) for label in activations}
    low = {label: ends[0] for label, ends in ranges.items()}
    relative = variant.share is not None or (variant.eps_input and kernel.by_share)
    common: dict[str, Any] = {
        "activations": activations,
        "prompts": cached_prompts(context, tokenizer, rows),
        "per_site": variant.per_site,
        "sites_per_step": variant.sites_per_step,
        "prior_size": task.size if everything else task.split_size("train"),
        "seed": context.config.seed + variant.seed,
        "distance": kernel.distance,
        "kind": kernel.kind,
        "prior": prior,
        "log_epsilons": {label: float(np.log(r).mean()) for label, r in ranges.items()} if relative else {},
    }
    if variant.pairs == "kernel":
        return KernelPairs(
            **common,
            epsilon=ranges if variant.eps_input else low,
            embed=variant.mean_embedding,
            soft=variant.soft_targets,
            disjoint=variant.disjoint,
            empty=variant.empty_anchors,
            attend=variant.neighbour_logits or variant.neighbour_words,
            n_condition=variant.n_condition,
        )
    least = 0
    if variant.pairs == "noise" and variant.noise_space == "model":
        least = residual_width(context)
    return NoisePairs(
        **common,
        width={label: max(z.shape[-1], least) for label, z in activations.items()},
        epsilon=low if variant.pairs == "noise" else 0.0,
        norm_band=variant.norm_band,
    )


def trained_range(context: Context, name: str, label: str) -> tuple[float, float]:
    """Bandwidths (low, high) that a variant is trained for at a site: its own, or those that it draws from.

    Where bandwidths are shares of the prior, it draws between the epsilons of `share_range`, and as much further as it is read.
    """
    config, variant = context.config, context.config.variant(name)
    if not variant.eps_input:
        own = context.epsilon(config.bandwidth_of(name), label)
        return own, own
    if not config.kernel.by_share:
        return variant.eps_range
    ends = [context.epsilon(Bandwidth("share", share), label) for share in variant.share_range]
    reached = [*ends, *context.epsilons(label, name)]
    return min(reached), max(reached)


def residual_width(context: Context) -> int:
    """Width of the target's residual stream."""
    return int(read_json(context.made_target() / "target.json")["d_model"])
