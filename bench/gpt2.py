"""Our backbone as Hugging Face's GPT-2: the peer of speeds, and of the parity test."""

from __future__ import annotations

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from inversescope.generator.backbone import Backbone, hf_names


def to_hf(backbone: Backbone) -> nn.Module:
    """The same backbone as a Hugging Face `GPT2LMHeadModel`: for parity tests and for comparing speeds."""
    shape = backbone.shape
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.n_positions,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        n_embd=shape.d_model,
        n_inner=shape.d_mlp,
        tie_word_embeddings=shape.tied_embeddings,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model, state = GPT2LMHeadModel(config).eval(), backbone.state_dict()
    new = {t: state[o].T if transposed else state[o] for o, t, transposed in hf_names(shape)}
    model.load_state_dict({name: value.contiguous() for name, value in new.items()}, strict=False)
    return model
