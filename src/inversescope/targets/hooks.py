"""Hooks on the plain Hugging Face model: read or replace a component's tensor, begin at a block, take attention edges out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from inversescope.targets.architectures import Component
from inversescope.targets.models import Target


class Done(Exception):
    """Raised by a hook behind the last activation that is needed: the rest of the pass would be thrown away."""


def run_body(target: Target, ids: Tensor, cache: Cache | None = None) -> None:
    """Run the blocks on tokens (B, S) that follow what the cache holds, up to the end or to a hook that raises `Done`."""
    try:
        target.body(input_ids=ids, past_key_values=cache, use_cache=False)
    except Done:
        pass


@contextmanager
def hooked(
    target: Target, layer: int, component: Component, see: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """Call `see` with a component's tensor for the length of a block; what it returns takes the tensor's place."""
    module = target.layers[layer].get_submodule(component.module)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = see(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        new = see(output[0] if isinstance(output, tuple) else output)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    if component.side == "input":
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def entered(target: Target, layer: int, states: Tensor) -> Iterator[None]:
    """Begin passes at a block for the length of a `with` block: states (B, S, d) enter it, and no block before it is run."""
    left_out = [(module, module.__dict__.get("forward")) for module in target.layers[:layer]]
    for module, _ in left_out:
        module.forward = lambda hidden_states, *_, **__: hidden_states
    try:
        with hooked(target, layer, target.arch.components["resid_pre"], lambda _: states):
            yield
    finally:
        for module, own in left_out:
            del module.forward
            if own is not None:  # of a model that is spread over devices
                module.forward = own


@contextmanager
def without_attention(target: Target, removed: Mapping[int, Tensor]) -> Iterator[None]:
    """Take attention edges out of blocks for the length of a `with` block, by the attention modules' masks.

    Args:
        target: the model, in evaluation or training.
        removed: block -> (B or 1, 1, S, T) bool, true where one of the last S positions may not attend to one of all T.
    """
    handles = []
    for layer, edges in removed.items():
        run, length = edges.shape[-2:]

        def before(
            _: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            edges: Tensor = edges,
            run: int = run,
            length: int = length,
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            mask, states = kwargs.get("attention_mask"), args[0] if args else kwargs["hidden_states"]
            lowest = torch.finfo(states.dtype).min
            if mask is None:  # plain causal attention
                above = torch.ones(run, length, dtype=torch.bool, device=states.device)
                above = above.triu(1 + length - run)
                mask = torch.zeros(1, 1, run, length, dtype=states.dtype, device=states.device)
                mask = mask.masked_fill(above, lowest)
            elif mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape, dtype=states.dtype, device=states.device).masked_fill(
                    ~mask, lowest
                )
            return args, {**kwargs, "attention_mask": mask.masked_fill(edges.to(states.device), lowest)}

        module = target.layers[layer].get_submodule(target.arch.attention)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
