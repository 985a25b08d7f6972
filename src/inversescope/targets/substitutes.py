"""The fast products and attention of `targets.speed` in the place of a target model's own.

All that is private to transformers, and all that takes the place of a model's own forward pass, is in this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

from inversescope.targets.speed import causal_attention, linear

#: Name of our attention function among those of transformers.
_ATTENTION = "inversescope_short"


@contextmanager
def fast_linear_layers(model: nn.Module) -> Iterator[None]:
    """Let `linear` multiply in a model's linear layers for the length of a block, GPT-2's activation included.

    Results and gradients are equal up to float32 rounding. Modules keep their places and hooks. Where `linear` has
    nothing faster to offer (GPU, half precision) nothing changes.
    """
    # An MLP of GPT-2: its first layer can return what its activation would make of it.
    activated = {
        id(module.c_fc): module.act
        for module in model.modules()
        if isinstance(module, GPT2MLP) and isinstance(module.act, NewGELUActivation | GELUTanh)
    }
    patched: list[nn.Module] = []

    def patch(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        module.forward = forward
        patched.append(module)

    try:
        for module in model.modules():
            if not isinstance(module, nn.Linear | Conv1D):
                continue
            if type(module).forward not in (nn.Linear.forward, Conv1D.forward):  # it does something else
                continue
            weight, bias, act = module.weight, module.bias, activated.get(id(module))
            if weight.device.type != "cpu" or weight.dtype != torch.float32:
                continue
            transposed = isinstance(module, Conv1D)
            patch(module, partial(_fast_linear, weight, bias, transposed, act is not None))
            if act is not None:
                patch(act, _same)
        yield
    finally:
        for module in patched:
            # The class's own method comes back into view.
            module.__dict__.pop("forward", None)


def _fast_linear(weight: Tensor, bias: Tensor | None, transposed: bool, gelu: bool, x: Tensor) -> Tensor:
    return linear(x, weight.t() if transposed else weight, bias, gelu)


def _same(x: Tensor) -> Tensor:
    return x


@contextmanager
def short_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model on a CPU attend by `causal_attention` for the length of a block: prompts without padding."""
    if model.config._attn_implementation != "sdpa" or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(_ATTENTION, _attention)
    model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`causal_attention`, called as transformers' attention functions are.

    Args:
        module: the attention module.
        query: (B, H, S, d).
        key: (B, G, T, d).
        value: (B, G, T, d).
        attention_mask: None, as transformers makes no mask for attention functions that it does not know; a mask of a hook's
        (ablated     attention) is obeyed, at the usual speed.
        scaling: of the scores.
        **kwargs: settings of other attention functions, off or irrelevant here.

    Returns:
        (B, S, H, d), and no weights.
    """
    if attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling)
    return causal_attention(query, key, value, scaling).transpose(1, 2).contiguous(), None
