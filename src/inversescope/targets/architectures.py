"""Families of target models: one table that says where each has its activations.

A new family is an entry here and one in the table of the parity tests (tests/unit/test_capture.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Component:
    """Where an activation is found in a block.

    Args:
        module: path from the block; "" is the block itself.
        side: whether it is the module's input or its output.
    """

    module: str
    side: Literal["input", "output"]


@dataclass(frozen=True)
class Architecture:
    """What capture needs to know about a family of models.

    Args:
        body: path from the causal language model to the stack of blocks without its unembedding.
        layers: path from the body to the list of blocks.
        final_norm: path from the body to the norm after the last block.
        attention: path from a block to its attention module.
        out_proj: path from a block to the projection that holds W_O.
        out_proj_rows: whether W_O[h] is rows of that weight (GPT-2's Conv1D) or columns (Linear).
        post_norm: whether a norm stands between W_O and the residual stream.
        components: kind of site -> component; `z` has all heads side by side. A family may lack kinds.
        eager: whether attention must be transformers' eager one.
        bos: whether its models are trained behind a begin token; None: as a model's own tokenizer does by itself.
        settings: keys of its transformers configuration that differ from the family's own in models that are built here.
    """

    body: str
    layers: str
    final_norm: str
    attention: str
    out_proj: str
    out_proj_rows: bool
    post_norm: bool
    components: Mapping[str, Component]
    eager: bool = False
    bos: bool | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


_GPT2 = Architecture(
    body="transformer",
    layers="h",
    final_norm="ln_f",
    attention="attn",
    out_proj="attn.c_proj",
    out_proj_rows=True,
    post_norm=False,
    components={
        "resid_pre": Component("", "input"),
        "z": Component("attn.c_proj", "input"),
        "attn_out": Component("attn", "output"),
        "resid_mid": Component("ln_2", "input"),
        "mlp_post": Component("mlp.c_proj", "input"),
        "mlp_out": Component("mlp", "output"),
        "resid_post": Component("", "output"),
    },
    settings={
        # The same function as GPT-2's gelu_new, as one fused kernel.
        "activation_function": "gelu_pytorch_tanh",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
)
_LLAMA = Architecture(
    body="model",
    layers="layers",
    final_norm="norm",
    attention="self_attn",
    out_proj="self_attn.o_proj",
    out_proj_rows=False,
    post_norm=False,
    components={
        "resid_pre": Component("", "input"),
        "z": Component("self_attn.o_proj", "input"),
        "attn_out": Component("self_attn", "output"),
        "resid_mid": Component("post_attention_layernorm", "input"),
        "mlp_post": Component("mlp.down_proj", "input"),
        "mlp_out": Component("mlp", "output"),
        "resid_post": Component("", "output"),
    },
)
# Gemma 2 norms what attention and MLP return before adding it; as in TransformerLens, attn_out and mlp_out are what is
# added. Its scores are capped, which only eager attention does. Without its begin token it predicts nonsense.
_GEMMA2 = replace(
    _LLAMA,
    post_norm=True,
    eager=True,
    bos=True,
    components={
        **_LLAMA.components,
        "attn_out": Component("post_attention_layernorm", "output"),
        "resid_mid": Component("pre_feedforward_layernorm", "input"),
        "mlp_out": Component("post_feedforward_layernorm", "output"),
    },
)

# Attention and MLP read the same residual stream side by side (Pythia), so that there is none between them.
_NEOX = Architecture(
    body="gpt_neox",
    layers="layers",
    final_norm="final_layer_norm",
    attention="attention",
    out_proj="attention.dense",
    out_proj_rows=False,
    post_norm=False,
    components={
        "resid_pre": Component("", "input"),
        "z": Component("attention.dense", "input"),
        "attn_out": Component("attention", "output"),
        "mlp_post": Component("mlp.dense_4h_to_h", "input"),
        "mlp_out": Component("mlp", "output"),
        "resid_post": Component("", "output"),
    },
)

#: `model_type` of the transformers configuration -> family.
ARCHITECTURES = {"gpt2": _GPT2, "gemma2": _GEMMA2, "gpt_neox": _NEOX, "llama": _LLAMA, "qwen2": _LLAMA}
