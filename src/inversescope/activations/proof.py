"""Faster ways of running a model are used only where they give what transformers' plain attention gives for the model at hand.

Each is tried once, at loading, on prompts as long as those that are to be run: a window, or positions that are scaled for long
texts, show only there. One way is tried at one cut alone: beginnings are shared only where what follows cannot change them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from inversescope.activations.prefixes import Buffers, PrefixCache
from inversescope.targets.architectures import Component
from inversescope.targets.hooks import hooked, run_body
from inversescope.targets.models import Target
from inversescope.targets.speed import SHORT

PREFIXES = "prefixes"
LINEAR = "linear"


def _substitutes() -> ModuleType:
    """What takes the place of a model's own: seconds of imports, for those who run a model alone."""
    from inversescope.targets import substitutes

    return substitutes


#: Way -> what prepares a model for it. That prompts share their beginnings needs no preparation.
WAYS: dict[str, Callable[[Target], AbstractContextManager[None]] | None] = {
    LINEAR: lambda target: _substitutes().fast_linear_layers(target.model),
    "attention": lambda target: _substitutes().short_attention(target.model),
    PREFIXES: None,
}
#: Kinds of rotary positions that turn a prompt's first tokens otherwise if it is long: what is shared depends on what follows.
BY_LENGTH = ("dynamic", "longrope")
#: Relative difference of a position's residual stream that is rounding, by dtype.
ROUNDING = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def prepared(target: Target, ways: Sequence[str]) -> ExitStack:
    """Prepare a model for some ways, for the length of a `with` block."""
    stack = ExitStack()
    for way in ways:
        if prepare := WAYS[way]:
            stack.enter_context(prepare(target))
    return stack


def proven(target: Target, length: int) -> tuple[str, ...]:
    """The ways that give, together, what plain attention gives for prompts of up to `length` tokens.

    The model's own attention is among what is tried: where it differs, the model is set to the plain one for good.
    """
    config = target.model.config
    length = min(length, int(config.max_position_embeddings))
    turned = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
    possible = tuple(way for way in WAYS if way != PREFIXES or turned not in BY_LENGTH)
    known, ways = target.proven or (1, possible)
    # Short prompts attend by another function than long ones.
    for tried in (min(length, SHORT), length):
        if tried > known:
            ways = _proven(target, tried, ways)
            target.proven = known, ways = tried, ways
    return ways


def _proven(target: Target, length: int, ways: Sequence[str]) -> tuple[str, ...]:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(int(target.model.config.vocab_size), (2, length), generator=generator)
    ids[1, : length // 2] = ids[0, : length // 2]
    ids = ids.to(target.model.device)
    model = target.model
    own = model.config._attn_implementation
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        plain = _states(target, ids, ())
        model.set_attn_implementation(own)
        same = partial(_same, target, ids, plain)
        if own != "eager" and not same(()):
            model.set_attn_implementation("eager")
        kept: tuple[str, ...] = ()
        for way in ways:
            if same((*kept, way)):
                kept = (*kept, way)
    return kept


def _same(target: Target, ids: Tensor, plain: list[Tensor], ways: Sequence[str]) -> bool:
    """Whether all layers give the same at all positions, up to rounding."""
    most = ROUNDING[target.model.dtype]
    for found, true in zip(_states(target, ids, ways), plain, strict=True):
        difference = (found - true).norm(dim=-1)
        if not (difference <= most * true.norm(dim=-1)).all():
            return False
    return True


def _states(target: Target, ids: Tensor, ways: Sequence[str]) -> list[Tensor]:
    """What each layer writes (B, T, d) for two prompts that share the first half of their tokens."""
    seen: list[list[Tensor]] = [[] for _ in target.layers]
    with prepared(target, ways) as stack:
        for layer, states in enumerate(seen):
            see = partial(_keep, states, len(ids))
            stack.enter_context(hooked(target, layer, Component("", "output"), see))
        length = ids.shape[1]
        if PREFIXES in ways:
            half, buffers, one = length // 2, Buffers(), torch.zeros(1, dtype=torch.int64)
            first = PrefixCache(target.n_layers, buffers, None, 0, length, one, True)
            run_body(target, ids[:1, :half], first)
            both = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
            run_body(
                target, ids[:, half:], PrefixCache(target.n_layers, buffers, first, half, length, both, False)
            )
        else:
            run_body(target, ids)
    return [torch.cat(states, 1) for states in seen]


def _keep(states: list[Tensor], rows: int, tensor: Tensor) -> None:
    states.append(tensor.float().cpu().expand(rows, -1, -1).clone())
