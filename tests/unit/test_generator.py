"""The generator: the backbone is GPT-2, the untrained generator is the backbone, folding is the paper's formula."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from bench.gpt2 import to_hf
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from inversescope.config import Config, load_config
from inversescope.config.methods import VariantConfig
from inversescope.errors import InputError
from inversescope.generator.backbone import Backbone, BackboneShape, from_hf
from inversescope.generator.base import Materials, Rows
from inversescope.generator.build import GENERATORS
from inversescope.generator.condition import Condition, encode_prompts
from inversescope.generator.inversescope import ControlLayer, GeneratorShape, InverseScope
from inversescope.generator.loss import conditional_loss
from inversescope.generator.neighbours import NeighbourWords
from inversescope.generator.pairs import Batch
from inversescope.ops import ByOwner
from inversescope.training import Schedule, train

CONFIG = Path(__file__).parents[2] / "config"
BACKBONE = BackboneShape(vocab_size=29, n_positions=12, n_layers=3, n_heads=2, d_model=16, d_mlp=40)
SITES = {"L0H1": 4, "L2.resid_post": 6}
SHAPE = GeneratorShape(
    backbone=BACKBONE,
    sites=SITES,
    scales={"L0H1": 2.0, "L2.resid_post": 0.5},
    n_heads=5,
    d_head=3,
    d_condition=7,
)
FULL = replace(SHAPE, site_map_blocks=2, eps_input=True, d_embedding=11, neighbour_logits=True)
LETTER = replace(SHAPE, normed_queries=False, scaled_scores=False)


def trained(shape: GeneratorShape) -> InverseScope:
    """A generator with random weights everywhere, also where training starts from zero."""
    model = InverseScope(shape).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
        else:
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


def condition(rows: int = 3) -> Condition:
    """Activations of both sites, with every further input."""
    z = {label: torch.randn(rows, d) for label, d in SITES.items()}
    return Condition(z, torch.randn(2 * rows, 4), torch.randn(2 * rows, 11))


def tokens(rows: int, length: int = 8) -> Tensor:
    return torch.randint(0, BACKBONE.vocab_size, (rows, length))


def counts(rows: int, length: int = 8) -> Tensor:
    return torch.randint(0, 4, (rows, length, BACKBONE.vocab_size)).float()


# The backbone is GPT-2


def huggingface(tied: bool) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=31,
        n_positions=10,
        n_layer=3,
        n_head=4,
        n_embd=32,
        n_inner=56,
        activation_function="gelu_pytorch_tanh",
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if "ln_" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=float("ln_" in name and name.endswith("weight")), std=0.2)
    return model


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_backbone_is_hugging_faces_gpt2(tied: bool) -> None:
    theirs = huggingface(tied)
    ours = from_hf(theirs).eval()
    x = torch.randint(0, 31, (5, 9))
    expected = theirs(x).logits
    assert expected.std() > 1.0
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
    assert ours.shape.tied_embeddings == tied and ours.shape.d_mlp == 56
    assert (ours.lm_head.weight is ours.wte.weight) == tied

    back = to_hf(ours)
    torch.testing.assert_close(back(x).logits, ours(x), atol=1e-5, rtol=1e-5)
    for name, value in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


@torch.no_grad()
def test_backbone_from_scratch_goes_to_hugging_face() -> None:
    ours = Backbone(replace(BACKBONE, tied_embeddings=False), std=0.3).eval()
    x = tokens(4)
    torch.testing.assert_close(to_hf(ours)(x).logits, ours(x), atol=1e-5, rtol=1e-5)


# Untrained and frozen


@torch.no_grad()
def test_untrained_generator_is_the_backbone_bit_for_bit() -> None:
    x = tokens(6)
    for shape in (SHAPE, FULL):
        model = InverseScope(shape).eval()
        folded = model.fold(condition())
        logits = model.backbone(x)
        assert torch.equal(model.backbone(x, model.controller(folded)), logits)
        # Nor do neighbours add anything where there are none.
        nobody = torch.zeros(6, 8, BACKBONE.vocab_size)
        logp = model.log_probabilities(x, folded, Rows(counts=nobody))
        assert torch.equal(logp, torch.log_softmax(logits, -1))


def built(**changes: object) -> InverseScope:
    """An untrained generator of a variant that is `letter` but for its sizes and some changes."""
    letter = load_config([CONFIG / "config.yaml"]).variants["letter"]
    variant = letter.model_copy(update={"n_heads": 5, "d_condition": 7, **changes})
    prompts = encode_prompts([np.arange(2, 6, dtype=np.int32)], 0)
    torch.manual_seed(0)
    backbone = Backbone(BACKBONE)
    scales = {label: d**0.5 for label, d in SITES.items()}
    return InverseScope.build(Materials(Config(), variant, backbone, SITES, scales, prompts, 16))


def test_letter_begins_as_the_paper_says() -> None:
    """V is zero; all else, biases too, is uniform up to the inverse root of what a layer takes (Kaiming, as PyTorch has it)."""
    model = built()
    for layer in model.control:
        assert isinstance(layer, ControlLayer) and isinstance(layer.norm, nn.Identity) and layer.scale == 1.0
        assert not layer.value.weight.any()
        for linear in (layer.query, layer.key):
            bound = linear.in_features**-0.5
            assert 0.95 * bound < linear.weight.abs().max() <= bound
        for linear in (layer.query, layer.key, layer.value):
            assert 0.9 * linear.in_features**-0.5 < linear.bias.abs().max() <= linear.in_features**-0.5
    fitted = built(zero_biases=True)
    assert not any(p.any() for n, p in fitted.control.named_parameters() if n.endswith("bias"))


@torch.no_grad()
def test_letter_takes_activations_as_they_are() -> None:
    model, z = built(), 30.0 * torch.randn(4, 6)
    torch.testing.assert_close(model.scaled("L2.resid_post", z), z)
    site_map = model.site_maps["L2_resid_post"]
    latent = model.encode(Condition({"L2.resid_post": z}))
    torch.testing.assert_close(latent, z @ site_map.weight.T + site_map.bias)


def batch(rows: int = 4, length: int = 8) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        z={label: rng.standard_normal((rows, d)).astype(np.float32) for label, d in SITES.items()},
        path=rng.integers(0, BACKBONE.vocab_size, (2 * rows, length)).astype(np.int32),
        lengths=np.full(2 * rows, length, np.int32),
        weight=np.ones(2 * rows, np.float32),
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_backbone_does_not_move(frozen: bool) -> None:
    model = InverseScope(SHAPE)
    model.backbone.requires_grad_(not frozen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    schedule = Schedule(5, 0.01, weight_decay=0.1, warmup=1)
    log = train(
        model,
        lambda step: (conditional_loss(model, batch()), {}),
        schedule,
        name="t",
        tokens_per_step=1,
        log_every=1,
        echo=lambda line: None,
    )
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    own = {name for name in before if not name.startswith("backbone.")}
    assert own <= moved  # every part of the control layers and site maps learns
    assert any(name.startswith("backbone.") for name in moved) != frozen
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]


# Folding


def unfolded(layer: ControlLayer, h: Tensor, c: Tensor) -> Tensor:
    """Section 3.1 position by position and head by head: h (B, T, D), c (B, C) -> control (B, T, D).

    q = Q h + q0, k = K c + k0, v = V c + v0, w = tanh(<q, k>), output = sum over heads of w v; fitted to small models, norm(h)
    stands for h, and <q, k> / sqrt(d_head) for <q, k>.
    """
    H, K, D = layer.n_heads, layer.d_head, h.shape[-1]
    normed, divisor = h, 1.0
    if isinstance(layer.norm, nn.LayerNorm):
        mean, variance = h.mean(-1, keepdim=True), h.var(-1, unbiased=False, keepdim=True)
        normed = (h - mean) / torch.sqrt(variance + layer.norm.eps) * layer.norm.weight + layer.norm.bias
        divisor = K**0.5
    out = torch.zeros_like(h)
    for b in range(h.shape[0]):
        for head in range(H):
            key_rows, value_rows = slice(head * K, head * K + K), slice(head * D, head * D + D)
            k = layer.key.weight[key_rows] @ c[b] + layer.key.bias[key_rows]
            v = layer.value.weight[value_rows] @ c[b] + layer.value.bias[value_rows]
            for i in range(h.shape[1]):
                q = layer.query.weight[key_rows] @ normed[b, i] + layer.query.bias[key_rows]
                out[b, i] += torch.tanh(q @ k / divisor) * v
    return out


@pytest.mark.parametrize("shape", [FULL, LETTER], ids=["fitted", "letter"])
@torch.no_grad()
def test_folded_control_is_the_papers_formula(shape: GeneratorShape) -> None:
    model = trained(shape)
    c = model.encode(condition())
    h = torch.randn(6, 4, 16)
    for layer in model.control:
        expected = unfolded(layer, h, c)
        assert 0.5 < expected.std() < 50
        torch.testing.assert_close(layer(h, *layer.fold(c)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_control_enters_after_each_attentions_residual() -> None:
    model = trained(SHAPE)
    cond = condition()
    c, x = model.encode(cond), tokens(6)
    backbone = model.backbone
    h = backbone.wte(x) + backbone.wpe(torch.arange(8))
    for layer, block in enumerate(backbone.h):
        h = h + block.attn(block.ln_1(h))
        h = h + unfolded(model.control[layer], h, c)
        h = h + block.c_proj(nn.functional.gelu(block.c_fc(block.ln_2(h)), approximate="tanh"))
    expected = torch.log_softmax(backbone.lm_head(backbone.ln_f(h)), -1)
    torch.testing.assert_close(model.log_probabilities(x, model.fold(cond)), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_selection_of_folded_rows_is_the_fold_of_the_selection() -> None:
    model = trained(SHAPE)
    z = torch.randn(5, 4)
    index = torch.tensor([3, 0, 3, 4])
    some = model.fold(Condition({"L0H1": z})).rows(index)
    again = model.fold(Condition({"L0H1": z[index]}))
    for a, b in zip(
        [*some.keys, *some.offsets, *some.values, some.latent],
        [*again.keys, *again.offsets, *again.values, again.latent],
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


# Conditions


@torch.no_grad()
def test_sites_follow_each_other_and_have_maps_of_their_own() -> None:
    model = trained(SHAPE)
    z = {"L0H1": torch.randn(2, 4), "L2.resid_post": torch.randn(3, 6)}
    together = model.encode(Condition(z))
    apart = [model.encode(Condition({label: value})) for label, value in z.items()]
    torch.testing.assert_close(together, torch.cat(apart))
    expected = model.site_maps["L0H1"](
        z["L0H1"] / 2.0 * 2.0
    )  # over the scale 2, times the root of dimension 4
    torch.testing.assert_close(apart[0], expected)


@torch.no_grad()
def test_norm_is_seen_only_if_asked_for() -> None:
    z = torch.randn(3, 4)
    seeing, blind = trained(SHAPE), trained(replace(SHAPE, see_norm=False))
    assert not torch.allclose(
        seeing.encode(Condition({"L0H1": z})), seeing.encode(Condition({"L0H1": 3 * z}))
    )
    torch.testing.assert_close(blind.encode(Condition({"L0H1": z})), blind.encode(Condition({"L0H1": 3 * z})))


@torch.no_grad()
def test_every_input_of_the_condition_is_read() -> None:
    model = trained(FULL)
    cond = condition()
    assert cond.scalars is not None and cond.embedding is not None
    base = model.encode(cond)
    for changed in (
        replace(cond, scalars=cond.scalars + 1),
        replace(cond, embedding=cond.embedding + 1),
        replace(cond, z={**cond.z, "L0H1": cond.z["L0H1"] + 1}),
    ):
        moved = (model.encode(changed) - base).abs().max(-1).values
        assert (moved[:3] > 1e-3).all()


def test_unknown_site_is_an_input_error() -> None:
    with pytest.raises(
        InputError, match="site L7H7 is unknown to this generator.*it knows L0H1, L2.resid_post"
    ):
        InverseScope(SHAPE).encode(Condition({"L7H7": torch.randn(1, 4)}))


def test_shape_survives_json() -> None:
    import json

    assert InverseScope.from_shape(json.loads(json.dumps(asdict(FULL)))).shape == FULL


# Steps


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("shape", [SHAPE, FULL], ids=["plain", "neighbours"])
@torch.no_grad()
def test_cached_steps_equal_the_full_forward(shape: GeneratorShape, draws: int) -> None:
    model = trained(shape)
    folded = model.fold(condition())
    x, n = tokens(6 * draws), counts(6 * draws)
    # Rows of an activation need not lie together, nor be equally many.
    owner = torch.arange(6).repeat(draws) if draws > 1 else torch.tensor([4, 0, 0, 5, 2, 0])
    expected = model.log_probabilities(x, folded.rows(owner), Rows(counts=n))
    cache = model.backbone.take_cache(len(x) + 2, 9)
    for layer in cache:
        layer.keys.fill_(float("nan"))  # nothing may be read before it is written
        layer.values.fill_(float("nan"))
    control = model.controller(folded, owner)
    for t in range(8):
        readout = model.readout(folded, Rows(owner, n[:, t]))
        logits = model.backbone.logits(model.backbone.step(x[:, t], t, cache, control), readout)
        torch.testing.assert_close(torch.log_softmax(logits, -1), expected[:, t], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_predictions_do_not_depend_on_later_tokens() -> None:
    model = trained(FULL)
    folded, x, n = model.fold(condition()), tokens(6), counts(6)
    other = x.clone()
    other[:, 5:] = (x[:, 5:] + 1) % BACKBONE.vocab_size
    a, b = (model.log_probabilities(which, folded, Rows(counts=n)) for which in (x, other))
    torch.testing.assert_close(a[:, :5], b[:, :5])
    assert not torch.allclose(a[:, 5:], b[:, 5:])


@torch.no_grad()
def test_neighbours_lift_their_tokens() -> None:
    """Logits + gate * log(1 + count / kappa): tokens of equal counts are lifted alike, more counts lift more."""
    model = trained(FULL)
    assert model.neighbour_logits is not None
    model.neighbour_logits.log_kappa.fill_(0.7)
    cond, x = condition(), tokens(6)
    folded = model.fold(cond)
    n = torch.zeros(6, 8, BACKBONE.vocab_size)
    n[..., 3], n[..., 4], n[..., 5] = 1.0, 1.0, 20.0
    plain = model.backbone(x, model.controller(folded))
    lifted = model.backbone(x, model.controller(folded), model.readout(folded, Rows(counts=n))) - plain
    assert (lifted[..., 6:] == 0).all()
    torch.testing.assert_close(lifted[..., 3], lifted[..., 4], atol=1e-5, rtol=1e-4)
    ratio = torch.log1p(torch.tensor(20.0) / torch.tensor(0.7).exp()) / torch.log1p(
        1 / torch.tensor(0.7).exp()
    )
    torch.testing.assert_close(lifted[..., 5] / lifted[..., 3], ratio.expand(6, 8), atol=1e-2, rtol=1e-3)
    assert (lifted[..., 3] > 0).all()


@torch.no_grad()
def test_words_of_neighbours() -> None:
    """Evidence after each token, by steps as along the path; kin by words outvote the others; nobody says nothing."""
    words = (3, 4, 5, 6)
    layer = NeighbourWords(16, 29, words)
    layer.set_prior(torch.tensor([[3, 4, 9], [3, 3, 5], [3, 9, 9], [7, 5, 6]]))
    torch.testing.assert_close(layer.prior, torch.tensor([0.75, 0.25, 0.5, 0.25]))
    nn.init.normal_(layer.weight, 2.0)
    # Two that hold 3 go on with 4, two that do not with 5; the second activation has no neighbour.
    sequences = torch.tensor([[[3, 4, 8], [9, 4, 3], [8, 6, 5], [6, 5, 5]], [[0, 0, 0]] * 4])
    present = torch.tensor([[True] * 4, [False] * 4])
    bags = layer.bags(sequences)
    path = torch.tensor([[0, 3, 9], [0, 3, 9]])
    scores = layer.along(path, bags)
    stepped = torch.zeros(2, 4)
    for t in range(3):
        stepped = stepped + layer.after(path[:, t], bags, torch.arange(2))
        torch.testing.assert_close(stepped, scores[:, t])
    assert (scores[0, 0] == 0).all() and (scores[0, 1, :2] > 0).all() and (scores[0, 1, 2:] == 0).all()
    torch.testing.assert_close(scores[:, 2], scores[:, 1])  # 9 is no word
    evidence = layer.evidence(scores, present[:, None], bags)
    assert (evidence[1] == 0).all()
    assert evidence[0, 1, 1] > evidence[0, 0, 1] and evidence[0, 1, 2] < evidence[0, 0, 2]
    lifted = layer(torch.randn(2, 3, 16), evidence)
    assert lifted.shape == (2, 3, 29)
    others = [token for token in range(29) if token not in words]
    assert (lifted[..., others] == 0).all() and torch.equal(lifted[..., words] > 0, evidence > 0)


@torch.no_grad()
def test_rows_by_owner_come_back() -> None:
    owner = torch.tensor([2, 0, 2, 2, 0])
    rows, x = ByOwner(owner, 4), torch.randn(5, 3)
    laid = rows.spread(x)
    assert laid.shape == (4, 3, 3) and torch.equal(rows.gather(laid), x)
    assert torch.equal(laid[2], x[[0, 2, 3]]) and (laid[1] == 0).all() and (laid[0, 2] == 0).all()


def test_the_configuration_knows_every_generator() -> None:
    assert get_args(VariantConfig.model_fields["generator"].annotation) == tuple(GENERATORS)
