"""Matrix products and attention of short sequences at the speed of the processor, for generators, and put into target models.

All that is private to PyTorch or transformers, and all that takes the place of a model's own forward pass, is in this file.

PyTorch hands float32 products on a CPU to MKL, which on AMD processors runs at less than half of the machine's peak; oneDNN reaches
it on both makers', and applies GPT-2's activation on the way. Fused attention is made for long sequences; prompts of some twenty
tokens are faster in plain batched products. Everything equals PyTorch's own up to float32 rounding, is differentiable, and falls
back to PyTorch's own elsewhere (GPU, other dtypes, long sequences).

Libraries multiply few rows in another order than many, so a row's last bits depend on how many rows stand beside it: the same
batches give the same bits, other batches agree within float32 rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.pytorch_utils import Conv1D

#: Name of our attention function among those of transformers.
_ATTENTION = "inversescope_short"
#: Up to how many positions attention multiplies plainly (measured on one core: faster than fused attention by 1.3 to 3 times at 16
#: positions, equal at 32, slower from 64).
SHORT = 24

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool = False) -> Tensor:
    """x weight^T + bias by oneDNN, through its tanh-approximated GELU if asked."""
    how: tuple[str, list[Any], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *how)
    return out


class _Linear(torch.autograd.Function):
    """oneDNN's linear layer with gradients. What GELU was applied to is computed again rather than kept: it costs less."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.gelu = gelu
        return _product(x, weight, bias, gelu)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, bias = ctx.saved_tensors
        gradient = gradients[0]
        if ctx.gelu:
            gradient = torch.ops.aten.gelu_backward(gradient, _product(x, weight, bias), approximate="tanh")
        flat = gradient.reshape(-1, gradient.shape[-1])
        to_x = _product(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        to_weight = to_bias = None
        if ctx.needs_input_grad[1]:
            rows = x.reshape(-1, x.shape[-1])
            (n, d_in), d_out = rows.shape, flat.shape[1]
            # The first of the two is copied on the way: the narrower, if that is worth a gradient to be turned.
            if n * d_in + d_in * d_out < n * d_out:
                to_weight = _product(rows.t(), flat.t(), None).t()
            else:
                to_weight = _product(flat.t(), rows.t(), None)
        if bias is not None and ctx.needs_input_grad[2]:
            to_bias = flat.sum(0)
        return to_x, to_weight, to_bias, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x weight^T + bias, and then GPT-2's GELU (the tanh approximation) if asked.

    Args:
        x: (..., n_in).
        weight: (n_out, n_in), in any memory order.
        bias: (n_out,) or None.
        gelu: apply the activation.

    Returns:
        (..., n_out).
    """
    if _ONEDNN and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
        if torch.is_grad_enabled():
            out: Tensor = _Linear.apply(x, weight, bias, gelu)
            return out
        return _product(x, weight, bias, gelu)
    y = F.linear(x, weight, bias)
    return F.gelu(y, approximate="tanh") if gelu else y


def even_rows(rows: int) -> int:
    """A number of rows, not smaller, that `linear` has probably met before: 32, 64 or a multiple of 128.

    oneDNN generates code for each shape, which takes milliseconds, and keeps it: those who choose shapes as they go along
    should choose among few.
    """
    return next((n for n in (32, 64) if rows <= n), -(-rows // 128) * 128)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Causal attention, without padding, of the last S of T positions.

    Args:
        query: (B, H, S, d); position i is the (T - S + i)-th.
        key: (B, G, T, d), each shared by H / G query heads.
        value: (B, G, T, d).
        scale: of the scores, 1 / sqrt(d) if absent.

    Returns:
        (B, H, S, d).
    """
    batch, heads, own, width = query.shape
    groups, length = key.shape[1], key.shape[2]
    share = heads // groups
    scale = width**-0.5 if scale is None else scale
    # Row i of the last S positions sees all keys up to its own.
    late = torch.ones(own, length, dtype=torch.bool, device=query.device).triu(length - own + 1)
    if length > SHORT or query.device.type != "cpu":
        whole = own == length
        mask = None if whole else ~late
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=whole, scale=scale, enable_gqa=share > 1
        )
    q = query.reshape(batch * groups, share * own, width)
    k = key.reshape(batch * groups, length, width).transpose(1, 2)
    v = value.reshape(batch * groups, length, width)
    if own == 1:
        scores = torch.bmm(q, k) * scale
    else:
        bias = torch.zeros(own, length, dtype=q.dtype, device=q.device).masked_fill_(late, -torch.inf)
        bias = bias.repeat(share, 1).expand(batch * groups, -1, -1)
        scores = torch.baddbmm(bias, q, k, alpha=scale)
    out = torch.bmm(torch.softmax(scores, dim=-1), v)
    return out.view(batch, heads, own, width)


# ----------------------------------------------------------------------------------------------- in the place of a model's own


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
