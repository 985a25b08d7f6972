"""Matrix products and attention of short sequences at the speed of the processor, for generators and target models.

All that is private to PyTorch is in this file; `targets.substitutes` puts it into target models. Nothing of transformers is
imported: its models take three seconds, and most jobs run none.

PyTorch hands float32 products on a CPU to MKL, which on AMD processors runs at less than half of the machine's peak; oneDNN reaches
it on both makers', and applies GPT-2's activation on the way. Fused attention is made for long sequences; prompts of some twenty
tokens are faster in plain batched products. Everything equals PyTorch's own up to float32 rounding, is differentiable, and falls
back to PyTorch's own elsewhere (GPU, other dtypes, long sequences).

Libraries multiply few rows in another order than many, so a row's last bits depend on how many rows stand beside it: the same
batches give the same bits, other batches agree within float32 rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
            # The first of the two is copied on the way, and a gradient in another order than the weight is turned later.
            turned = d_in * d_out
            by_input = n * d_in + (turned if weight.is_contiguous() else 0)
            by_output = n * d_out + (0 if weight.is_contiguous() else turned)
            if by_input < by_output:
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
