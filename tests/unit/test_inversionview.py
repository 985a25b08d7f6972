"""InversionView's generator: its formula, its steps, what it draws, log q of what it draws."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import default_values
from scipy import stats
from torch import Tensor, nn

from inversescope.config import load_config, parse_config
from inversescope.config.methods import DecodingConfig, VariantConfig
from inversescope.config.tasks import IOIConfig
from inversescope.errors import InputError
from inversescope.generator.backbone import BackboneShape
from inversescope.generator.base import Rows
from inversescope.generator.condition import Condition, encode_prompts
from inversescope.generator.inversionview import InversionView, InversionViewShape
from inversescope.generator.loss import conditional_loss
from inversescope.generator.pairs import Batch, NoisePairs
from inversescope.kernel.distances import distance_of
from inversescope.kernel.noise import gaussian_noise
from inversescope.sampling.candidates import schedule
from inversescope.sampling.decode import decode
from inversescope.sampling.log_q import log_prob_rows, log_q, log_q_marginal
from inversescope.streams import stream_uniforms
from inversescope.targets.tokenizers import encode, word_tokenizer
from inversescope.tasks.ioi import IOITask
from inversescope.training import Schedule, train

DECODER = BackboneShape(vocab_size=11, n_positions=9, n_layers=3, n_heads=2, d_model=16, d_mlp=40)
SITES = {"L0H1": 6, "L2.resid_post": 6}
SHAPE = InversionViewShape(DECODER, SITES, {"L0H1": 2.0, "L2.resid_post": 0.5}, d_site=5, n_blocks=2)
END = 0


def trained(shape: InversionViewShape = SHAPE, std: float = 0.4) -> InversionView:
    """A generator with random weights everywhere."""
    model = InversionView(shape).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)
        else:
            nn.init.normal_(parameter, mean=0.3, std=0.3)
    return model


def condition(rows: int = 3) -> Condition:
    """Activations of both sites; the head's fill four of six dimensions."""
    return Condition({"L0H1": torch.randn(rows, 4), "L2.resid_post": torch.randn(rows, 6)})


def tokens(rows: int, length: int = 7) -> Tensor:
    return torch.randint(0, DECODER.vocab_size, (rows, length))


# The formula


def norm(x: Tensor, module: nn.Module) -> Tensor:
    assert isinstance(module, nn.LayerNorm)
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + module.eps) * module.weight + module.bias


def affine(x: Tensor, module: nn.Linear) -> Tensor:
    return x @ module.weight.T + (0.0 if module.bias is None else module.bias)


def by_hand(model: InversionView, label: str, z: Tensor, x: Tensor) -> Tensor:
    """Log-probabilities (T, V) for one activation (d,) and one sequence (T,), position by position and head by head."""
    shape = model.shape
    c = torch.zeros(shape.width)
    c[: len(z)] = z / shape.scales[label] * len(z) ** 0.5
    c = torch.cat([c, model.site_embedding.weight[list(shape.sites).index(label)]])
    for block in model.blocks:
        c = c + affine(nn.functional.gelu(affine(norm(c, block.norm), block.up)), block.down)
    decoder, D, N = model.backbone, shape.backbone.d_model, shape.backbone.n_heads
    h = decoder.wte.weight[x] + decoder.wpe.weight[: len(x)]
    for layer, block in enumerate(decoder.h):
        extra = norm(affine(c, model.injections[layer]), model.norms[layer])
        q, k, v = affine(torch.cat([extra[None], norm(h, block.ln_1)]), block.attn.c_attn).split(D, -1)
        mixed = torch.zeros(len(x), D)
        for head in range(N):
            part = slice(head * D // N, (head + 1) * D // N)
            for t in range(len(x)):
                seen = slice(0, t + 2)  # the activation's position, and tokens 0 ... t
                pattern = torch.softmax(k[seen, part] @ q[t + 1, part] / (D // N) ** 0.5, -1)
                mixed[t, part] = pattern @ v[seen, part]
        h = h + affine(mixed, block.attn.c_proj)
        inner = nn.functional.gelu(affine(norm(h, block.ln_2), block.c_fc), approximate="tanh")
        h = h + affine(inner, block.c_proj)
    return torch.log_softmax(norm(h, decoder.ln_f) @ decoder.lm_head.weight.T, -1)


@torch.no_grad()
def test_every_block_attends_to_the_activation_as_one_more_position() -> None:
    model, cond, x = trained(), condition(), tokens(6)
    found = model.log_probabilities(x, model.fold(cond))
    rows = [(label, z) for label, group in cond.z.items() for z in group]
    for i, (label, z) in enumerate(rows):
        torch.testing.assert_close(found[i], by_hand(model, label, z, x[i]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_sites_are_told_apart_and_narrow_ones_filled_up() -> None:
    model = trained()
    z = torch.randn(4, 6)
    wide = nn.functional.pad(z[:, :4], (0, 2))
    one, two = (model.encode(Condition({label: z})) for label in SITES)
    assert ((one - two).abs().max(-1).values > 1e-2).all()
    narrow = model.encode(
        Condition({"L0H1": z[:, :4] * 1.5**0.5})
    )  # components are scaled by the root of the width
    torch.testing.assert_close(narrow, model.encode(Condition({"L0H1": wide})), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_activation_matters_and_its_norm_if_it_is_seen() -> None:
    x = tokens(3)
    for see_norm in (True, False):
        model = trained(replace(SHAPE, see_norm=see_norm))
        z = torch.randn(3, 6)

        def logp(z: Tensor, model: InversionView = model) -> Tensor:
            return model.log_probabilities(x, model.fold(Condition({"L0H1": z})))

        base = logp(z)
        assert ((logp(torch.randn(3, 6)) - base).abs().amax((1, 2)) > 0.05).all()
        assert torch.allclose(logp(3 * z), base, atol=1e-5) != see_norm


@torch.no_grad()
def test_untrained_one_is_well_formed() -> None:
    """It writes every token, at about equal probability, whatever the activation: it knows nothing, but is a distribution."""
    model = InversionView(SHAPE).eval()
    p = model.log_probabilities(tokens(6), model.fold(condition())).exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(6, 7))
    assert p.min() > 0.5 / DECODER.vocab_size and p.max() < 2.0 / DECODER.vocab_size


def test_unknown_site_is_an_input_error() -> None:
    with pytest.raises(
        InputError, match="site L7H7 is unknown to this generator.*it knows L0H1, L2.resid_post"
    ):
        InversionView(SHAPE).fold(Condition({"L7H7": torch.randn(1, 4)}))


def test_shape_survives_json() -> None:
    import json

    assert InversionView.from_shape(json.loads(json.dumps(asdict(SHAPE)))).shape == SHAPE


def test_all_of_it_learns() -> None:
    model = InversionView(SHAPE)
    before = {name: value.clone() for name, value in model.named_parameters()}
    rng = np.random.default_rng(0)
    z = {label: rng.standard_normal((4, 6)).astype(np.float32) for label in SITES}
    path = rng.integers(0, 11, (8, 6)).astype(np.int32)
    batch = Batch(z=z, path=path, lengths=np.full(8, 6, np.int32), weight=np.ones(8, np.float32))
    log = train(
        model,
        lambda step: (conditional_loss(model, batch), {}),
        Schedule(30, 0.01, warmup=1),
        name="t",
        tokens_per_step=1,
        log_every=1,
        echo=lambda line: None,
    )
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    # Which activation goes with which prompt can be learned by heart only through the activation.
    assert log["loss"].iloc[-1] < 0.5 * log["loss"].iloc[0]


# Steps and draws


@pytest.mark.parametrize("owner", [[0, 1, 2, 3, 4, 5], [4, 0, 0, 5, 2, 0, 4]])
@torch.no_grad()
def test_cached_steps_equal_the_full_forward(owner: list[int]) -> None:
    model = trained()
    folded, whose = model.fold(condition()), torch.tensor(owner)
    x = tokens(len(owner))
    expected = model.log_probabilities(x, folded, Rows(whose))
    torch.testing.assert_close(expected, model.log_probabilities(x, folded.rows(whose)))
    cache = model.backbone.take_cache(len(x) + 2, 9)
    for layer in cache:
        layer.keys.fill_(float("nan"))  # nothing may be read before it is written
        layer.values.fill_(float("nan"))
    for t in range(7):
        logits = model.backbone.logits(model.step(x[:, t], t, cache, folded, whose))
        torch.testing.assert_close(torch.log_softmax(logits, -1), expected[:, t], atol=1e-5, rtol=1e-5)


def chances(model: InversionView, cond: Condition, target: int, temperature: float, length: int) -> dict:
    """Probability of every outcome of `length` steps, one full forward a prefix."""
    vocabulary = model.shape.backbone.vocab_size
    here = model.fold(cond).rows(torch.tensor([target]))
    result: dict[tuple[int, ...], float] = {}

    @torch.no_grad()
    def follow(prefix: tuple[int, ...], p: float) -> None:
        if len(prefix) == length or (prefix and prefix[-1] == END):
            result[prefix] = p
            return
        logp = model.log_probabilities(torch.tensor([[END, *prefix]]), here)[0, -1].double()
        for token, q in enumerate(torch.softmax(logp / temperature, -1).tolist()):
            follow((*prefix, token), p * q)

    assert vocabulary**length < 10_000
    follow((), 1.0)
    return result


@pytest.mark.parametrize("temperature", [1.0, 0.7, "each"])
def test_draws_follow_the_rule_and_log_q_is_exact(temperature: float | str) -> None:
    small = replace(SHAPE, backbone=replace(DECODER, vocab_size=5))
    model, cond = trained(small), condition(2)
    draws, length = 4000, 3
    each_one = np.array([1.0, 0.5, 0.7, 1.6]) if temperature == "each" else np.full(4, float(temperature))
    given = each_one if temperature == "each" else float(temperature)
    uniforms = stream_uniforms(0, "t", np.arange(4), np.arange(draws), length)
    drawn = decode(model, cond, uniforms, end=END, temperature=given)
    folded = model.fold(cond)
    for target in range(4):
        expected = chances(model, cond, target, float(each_one[target]), length)
        assert sum(expected.values()) == pytest.approx(1.0)
        found: dict[tuple[int, ...], int] = {}
        for row, logq in zip(drawn.tokens[target].tolist(), drawn.log_q[target], strict=True):
            key = tuple(row[: row.index(END) + 1] if END in row else row)
            found[key] = found.get(key, 0) + 1
            assert logq == pytest.approx(math.log(expected[key]), abs=1e-4)
        common = [key for key, p in expected.items() if p * draws >= 5]
        counts = [found.get(key, 0) for key in common]
        rest = [draws - sum(counts), draws * (1.0 - sum(expected[key] for key in common))]
        wanted = [draws * expected[key] for key in common]
        if rest[1] > 1e-6:
            counts, wanted = [*counts, rest[0]], [*wanted, rest[1]]
        assert stats.chisquare(counts, np.array(wanted) * sum(counts) / sum(wanted)).pvalue > 1e-4
    again = log_q(
        model,
        folded,
        np.repeat(np.arange(4), draws),
        drawn.tokens.reshape(-1, length),
        end=END,
        temperature=each_one,
    )
    np.testing.assert_allclose(again, drawn.log_q.ravel(), atol=1e-4)


def test_log_q_of_masked_draws_and_of_cached_prompts() -> None:
    task = IOITask(IOIConfig(n_names=4, n_templates=2, n_places=2, n_items=2, held_out_pairs=0.2))
    tokenizer = word_tokenizer(task.words())
    end, grammar = int(tokenizer.eos_token_id), task.grammar(tokenizer)
    prompts = encode_prompts(encode(tokenizer, task.texts(np.arange(task.size))), end)
    length = prompts.tokens.shape[1] - 1
    decoder = BackboneShape(len(tokenizer), length + 1, 2, 2, 16, 32)
    model = trained(replace(SHAPE, backbone=decoder), std=0.3)
    cond = condition(2)
    uniforms = stream_uniforms(0, "t", np.arange(4), np.arange(50), length)
    drawn = decode(model, cond, uniforms, end=end, grammar=grammar, temperature=0.8)
    assert drawn.finished.all()
    again = log_q(
        model,
        model.fold(cond),
        np.repeat(np.arange(4), 50),
        drawn.tokens.reshape(200, -1),
        end=end,
        temperature=np.full(4, 0.8),
        grammar=grammar,
    )
    np.testing.assert_allclose(again, drawn.log_q.ravel(), atol=1e-4)
    # Under a mask all of the probability is on the prior.
    everything = prompts.tokens[:, 1:].astype(np.int64)
    total = log_q(model, model.fold(cond), np.full(task.size, 2), everything, end=end, grammar=grammar)
    assert np.exp(total).sum() == pytest.approx(1.0, abs=1e-4)
    owner, rows = np.repeat(np.arange(4), 9), np.tile(np.arange(0, 36, 4), 4)
    expected = log_q(model, model.fold(cond), owner, everything[rows], end=end)
    np.testing.assert_allclose(log_prob_rows(model, cond, owner, prompts, rows, 16), expected, atol=1e-4)


def test_marginal_q_is_the_mean_over_activations() -> None:
    model, cond = trained(), condition(4)
    folded, x = model.fold(cond), tokens(5, 6).numpy()
    companions = np.array([[0, 3, 1], [1, 0, 2], [7, 5, 6], [4, 4, 4], [2, 6, 1]])
    temperature = np.linspace(0.6, 1.4, 8)
    found = log_q_marginal(model, folded, x, companions, end=END, temperature=temperature)
    each_one = np.array(
        [
            [log_q(model, folded, np.array([c]), x[[i]], end=END, temperature=temperature)[0] for c in row]
            for i, row in enumerate(companions)
        ]
    )
    np.testing.assert_allclose(found, np.log(np.exp(each_one).mean(1)), atol=1e-6)
    assert (found >= each_one[:, 0] - math.log(3) - 1e-9).all()


# Noise, schedules, pairs


@pytest.mark.parametrize("distance", ["cosine", "normalised_euclidean", "euclidean"])
def test_sampling_noise_has_the_scale_it_says(distance: str) -> None:
    rng = np.random.default_rng(0)
    z = np.repeat(np.array([[3.0, 0, 0, 4.0, 0, 0]]), 40_000, 0)
    scale = np.where(np.arange(len(z)) % 2, 0.2, 0.0)
    noise = gaussian_noise(scale * distance_of(distance).size(z), 6, rng)
    assert (noise[::2] == 0).all()
    size = 1.0 if distance == "euclidean" else 5.0
    assert np.sqrt((noise[1::2] ** 2).sum(1).mean()) == pytest.approx(0.2 * size, rel=0.02)
    np.testing.assert_allclose(np.cov(noise[1::2].T), np.eye(6) * (0.2 * size) ** 2 / 6, atol=2e-3 * size**2)


def test_a_schedule_takes_all_combinations_in_turn() -> None:
    rule = DecodingConfig(temperature=[1.0, 0.5], noise=[0.0, 2.0, 4.0])
    temperature, noise = schedule(rule, np.arange(12))
    assert list(zip(temperature, noise, strict=True))[:6] == [
        (t, n) for n, t in product([0.0, 2.0, 4.0], [1.0, 0.5])
    ]
    np.testing.assert_array_equal(temperature[6:], temperature[:6])
    np.testing.assert_array_equal(noise[6:], noise[:6])


def test_clean_pairs_are_activations_with_their_own_prompts() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((30, 4)).astype(np.float32)
    prompts = encode_prompts([rng.integers(1, 9, 3) for _ in range(30)], END)
    source = NoisePairs(
        {"s": z}, prompts, width={"s": 6}, epsilon=0.0, per_site=16, prior_size=100, seed=0, floor_every=1
    )
    batch = source.batch(3)
    assert batch.z["s"].shape == (16, 6) and (batch.z["s"][:, 4:] == 0).all()
    own = [np.flatnonzero((z == row[:4]).all(1))[0] for row in batch.z["s"]]
    np.testing.assert_array_equal(batch.path, prompts.tokens[own])
    assert len(set(own)) > 5 and math.isnan(batch.floor)
    np.testing.assert_array_equal(source.batch(3).z["s"], batch.z["s"])


@pytest.mark.parametrize(
    ("delta", "culprit"),
    [
        ({"variants": {"inversionview_s0": {"freeze_backbone": True}}}, "freeze_backbone: false"),
        ({"variants": {"inversionview_s0": {"mean_embedding": True, "pairs": "kernel"}}}, "its site alone"),
        ({"variants": {"inversionview_s0": {"base": "paper"}}}, "a run of study frontier on inversionview"),
        ({"variants": {"paper": {"decoder_init": "backbone"}}}, "settings of generator: inversionview"),
        ({"variants": {"paper_heads_s0": {"settings": ["lukewarm"]}}}, "lukewarm"),
        ({"variants": {"default_heads_s0": {"settings": ["noise1"]}}}, "attends to neighbours"),
        ({"sampling": {"settings": {"plain": {"temperature": [0.5]}}}}, "plain"),
        ({"sampling": {"settings": {"a": {"temperature": [0.0]}}}}, "temperatures must be positive"),
        ({"sampling": {"settings": {"a": {"noise": [-1.0]}}}}, "noise must be finite"),
        ({"sampling": {"settings": {"a": {"noise": [1.0], "mixed": True}}}}, "without noise"),
    ],
)
def test_bad_settings_are_named(delta: dict, culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        parse_config(default_values(delta))


def test_least_refusal_at_an_error() -> None:
    from inversescope.studies.variants.frontier import least_refusal, matched

    error, refusal = np.array([0.02, 0.04, 0.10]), np.array([0.5, 0.45, 0.1])
    assert least_refusal(error, refusal, 0.10) == 0.1
    assert least_refusal(error, refusal, 0.06) == pytest.approx(0.3)  # half of the first, half of the last
    assert least_refusal(error, refusal, 0.02) == 0.5
    assert math.isnan(least_refusal(error, refusal, 0.01))
    rows = [
        {"variant": v, "decoding": d, "seed": s, "fcr_error": e, "refusal_rate": r}
        for s in (0, 1)
        for v, d, e, r in [
            ("default", "plain", 0.06, 0.1 + 0.05 * s),
            ("inversionview", "a", 0.02, 0.5),
            ("inversionview", "b", 0.10, 0.1),
            ("paper", "plain", 0.2, 0.05),
        ]
    ]
    whole = matched(pd.DataFrame(rows))
    assert not whole["lent"].any()
    table = whole.set_index("other")
    assert table["other_refusal"]["inversionview"] == pytest.approx(0.3)
    assert table["ratio"]["inversionview"] == pytest.approx(math.sqrt(3.0 * 2.0))
    assert (
        table["ci_low"]["inversionview"] < table["ratio"]["inversionview"] < table["ci_high"]["inversionview"]
    )
    assert table["n_reached"]["paper"] == 0 and math.isnan(table["ratio"]["paper"])
    assert table["least_error"]["paper"] == pytest.approx(0.2)
    # Our cache mixing, lent to another generator, is a row of its own.
    lent = [row | {"decoding": "mixed", "fcr_error": 0.05, "refusal_rate": 0.2} for row in rows[1:8:4]]
    table = matched(pd.DataFrame(rows + lent)).set_index(["other", "lent"])
    assert table["other_refusal"]["inversionview", False] == pytest.approx(0.3)
    # Between mixed (.05, .2) and b (.1, .1), a fifth of the way.
    assert table["other_refusal"]["inversionview", True] == pytest.approx(0.18)
    assert ("paper", True) not in table.index


def test_parameters_are_about_equal_in_both_configurations() -> None:
    """InversionView has within a tenth as many parameters as `paper`, and the wide one as `default`, counted from the shapes."""

    def decoder(v: int, t: int, layers: int, d: int, tied: bool) -> int:
        return v * d * (1 if tied else 2) + t * d + layers * (12 * d * d + 13 * d) + 2 * d

    def injected(view: VariantConfig, d: int, layers: int, sites: int) -> int:
        e = view.d_condition or d
        w = d + e
        blocks = view.site_map_blocks * (8 * w * w + 7 * w)
        return blocks + layers * (w * d + 3 * d) + sites * e

    root = Path(__file__).resolve().parents[2] / "config"
    embedded = load_config([root / "config.yaml"])
    paper = load_config([root / "config.yaml", root / "paper.yaml"])
    for config, width, sites, backbone in (
        (embedded, 64, 16, decoder(70, 32, 4, 64, False)),
        (paper, 768, 144, decoder(50257, 1024, 12, 768, True)),
    ):
        d = width
        ours, view = config.variants["paper_heads_s0"], config.variants["inversionview_s0"]
        keys, C = ours.n_heads * ours.d_head, ours.d_condition or width
        layers = 4 if width == 64 else 12
        control = layers * (keys * (d + 1) + keys * (C + 1) + ours.n_heads * d * (C + 1) + 2 * d)
        total = backbone + control + sites * C * (width + 1)
        assert (backbone + injected(view, d, layers, sites)) / total == pytest.approx(1.0, abs=0.1)
        if config is embedded:
            # As measured (frontier.csv): what `default` reads of neighbours depends on the prompts' length.
            wide = backbone + injected(config.variants["inversionview_wide_s0"], d, layers, sites)
            assert wide / 1_922_840 == pytest.approx(1.0, abs=0.1)
