"""Capture agrees with Hugging Face's own eager forward at every layer of every architecture, and with
itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from inversescope.activations import batches, prefixes
from inversescope.activations.capture import Passes, capture, result_basis
from inversescope.activations.inputs import Inputs
from inversescope.activations.proof import PREFIXES, WAYS, proven
from inversescope.config.targets import ArchitectureConfig
from inversescope.errors import InputError
from inversescope.sites import LAYER_KINDS, Site, expand_sites
from inversescope.targets.architectures import ARCHITECTURES
from inversescope.targets.models import Target, build_model

VOCABULARY = 31
LENGTH = 12
SHAPES: dict[str, tuple[ArchitectureConfig, dict[str, Any]]] = {
    "gpt2": (ArchitectureConfig(architecture="gpt2", n_layers=3, n_heads=4, d_model=32), {}),
    # head_dim is not d_model / n_heads, heads share keys, the window is shorter than the prompts, logits
    # are capped hard.
    "gemma2": (
        ArchitectureConfig(
            architecture="gemma2", n_layers=3, n_heads=4, n_kv_heads=2, d_model=24, head_dim=8, d_mlp=40
        ),
        {"sliding_window": 4, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 5},
    ),
    "gpt_neox": (ArchitectureConfig(architecture="gpt_neox", n_layers=3, n_heads=4, d_model=32), {}),
    "llama": (ArchitectureConfig(architecture="llama", n_layers=3, n_heads=4, n_kv_heads=2, d_model=32), {}),
    "qwen2": (ArchitectureConfig(architecture="qwen2", n_layers=3, n_heads=4, n_kv_heads=2, d_model=32), {}),
}


def all_sites(target: Target) -> list[str]:
    """Patterns of all sites of a model."""
    return ["L*H*", "L*H*.z", *(f"L*.{kind}" for kind in LAYER_KINDS if kind in target.arch.components)]


def make_target(architecture: str) -> Target:
    """A tiny random model whose every parameter matters (norms and biases are not left at one and zero)."""
    spec, overrides = SHAPES[architecture]
    model = build_model(spec, VOCABULARY, seed=3, **overrides)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return Target(model, tokenizer=None, name=f"tiny-{architecture}")


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def target(request: pytest.FixtureRequest) -> Target:
    return make_target(request.param)


def prompts(n: int = 40, seed: int = 0) -> np.ndarray:
    """Prompts that share beginnings of several lengths, some of them twice."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (n, LENGTH))
    tokens[n // 4 :, :4] = tokens[n // 4, :4]
    tokens[n // 2 :, :9] = tokens[n // 2, :9]
    tokens[-1] = tokens[-2]
    return tokens.astype(np.int32)


def reference(target: Target, tokens: np.ndarray) -> tuple[list[Tensor], Tensor]:
    """Hugging Face's hidden states (before each block, and after the final norm) and logits, eager, fp32."""
    implementation = target.model.config._attn_implementation
    target.model.set_attn_implementation("eager")
    with torch.no_grad():
        output = target.model(torch.from_numpy(tokens).long(), output_hidden_states=True, use_cache=False)
    target.model.set_attn_implementation(implementation)
    return list(output.hidden_states), output.logits


def close(left: np.ndarray, right: np.ndarray | Tensor, tolerance: float = 2e-5) -> None:
    right = np.asarray(right)
    assert left.shape == right.shape
    assert np.abs(left - right).max() <= tolerance * max(1.0, np.abs(right).max())


@pytest.mark.parametrize("position", ["", "@4", "@0"])
def test_residual_stream_agrees_with_eager_hugging_face_at_every_layer(target: Target, position: str) -> None:
    tokens = prompts()
    hidden, logits = reference(target, tokens)
    got = capture(target, tokens, expand_sites([f"L*.resid_pre{position}", f"L*.resid_post{position}"], 3, 4))
    at = int(position[1:]) if position else LENGTH - 1
    for layer in range(target.n_layers):
        close(got[f"L{layer}.resid_pre{position}"], hidden[layer][:, at])
        if layer + 1 < target.n_layers:  # after the last block Hugging Face only shows the normed state
            close(got[f"L{layer}.resid_post{position}"], hidden[layer + 1][:, at])
    with torch.no_grad():
        last = torch.from_numpy(got[f"L{target.n_layers - 1}.resid_post{position}"])
        final = target.body.get_submodule(target.arch.final_norm)(last)
        close(final.numpy(), hidden[-1][:, at])
        capped = target.model.get_output_embeddings()(final)
        if cap := getattr(target.model.config, "final_logit_softcapping", None):
            capped = cap * torch.tanh(capped / cap)
        close(capped.numpy(), logits[:, at])


def test_contributions_add_up(target: Target) -> None:
    got = capture(target, prompts(), expand_sites(all_sites(target), 3, 4))
    for layer in range(target.n_layers):
        middle = got[f"L{layer}.resid_pre"] + got[f"L{layer}.attn_out"]
        close(middle, got.get(f"L{layer}.resid_mid", middle))
        close(middle + got[f"L{layer}.mlp_out"], got[f"L{layer}.resid_post"])
        if not target.arch.post_norm:
            projection = target.layers[layer].get_submodule(target.arch.out_proj)
            total = 0 if projection.bias is None else projection.bias.detach().numpy()
            for head in range(target.n_heads):
                total = total + got[f"L{layer}H{head}"] @ result_basis(target, Site(layer, "result", head))[1]
            close(got[f"L{layer}.attn_out"], total)


def test_results_are_orthonormal_coordinates_of_z_w_o(target: Target) -> None:
    tokens = prompts()
    got = capture(target, tokens, expand_sites(["L*H*", "L*H*.z"], 3, 4))
    for site in expand_sites(["L*H*"], 3, 4):
        low, basis = result_basis(target, site)
        assert site.head is not None
        w_o = target.w_o(site.layer, site.head).double().numpy()
        np.testing.assert_allclose(low @ basis, w_o, atol=1e-12)
        np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-12)
        assert (np.diag(low) > 0).all() and np.allclose(low, np.tril(low))
        explicit = got[f"{site.label}.z"].astype(np.float64) @ w_o
        coordinates = got[site.label].astype(np.float64)
        assert coordinates.shape[1] == target.site_dim(site) == target.head_dim
        np.testing.assert_allclose(coordinates @ basis, explicit, atol=1e-5)
        np.testing.assert_allclose(coordinates @ coordinates.T, explicit @ explicit.T, atol=1e-4, rtol=1e-5)


def test_per_head_output_map_is_the_projection_of_hugging_face(target: Target) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, target.n_heads * target.head_dim, generator=generator)
    for layer, block in enumerate(target.layers):
        projection = block.get_submodule(target.arch.out_proj)
        with torch.no_grad():
            expected = projection(z) - (0 if projection.bias is None else projection.bias)
        heads = z.reshape(5, target.n_heads, target.head_dim)
        parts = [heads[:, head] @ target.w_o(layer, head) for head in range(target.n_heads)]
        torch.testing.assert_close(sum(parts), expected, atol=1e-5, rtol=1e-5)


def test_many_sites_at_once_equal_one_at_a_time_to_the_bit(target: Target) -> None:
    tokens = prompts()
    sites = expand_sites([*all_sites(target), "L1H2@4", "L0.resid_post@0"], 3, 4)
    together = capture(target, tokens, sites)
    assert set(together) == {site.label for site in sites}
    for site in sites:
        alone = capture(target, tokens, [site])[site.label]
        assert alone.dtype == np.float32 and alone.shape == (len(tokens), target.site_dim(site))
        np.testing.assert_array_equal(alone, together[site.label], err_msg=site.label)


def test_order_of_prompts_and_lengths_do_not_matter(target: Target) -> None:
    tokens = [row[: LENGTH - index % 3] for index, row in enumerate(prompts())]
    sites = expand_sites(["L2H*", "L1.resid_post"], 3, 4)
    once = capture(target, tokens, sites)
    order = np.random.default_rng(1).permutation(len(tokens))
    again = capture(target, [tokens[row] for row in order], sites)
    for label, value in once.items():
        np.testing.assert_array_equal(value[order], again[label])
    for row in (0, 1, 2, 25, 39):
        alone = capture(target, [tokens[row]], sites)
        for label, value in once.items():
            close(value[row : row + 1], alone[label])


def test_batch_size_changes_nothing_beyond_rounding(target: Target) -> None:
    sites = expand_sites(["L*H*", "L2.resid_post"], 3, 4)
    large = capture(target, prompts(), sites)
    for batch_tokens in (1, 30, 100):
        small = capture(target, prompts(), sites, batch_tokens=batch_tokens)
        for label, value in large.items():
            close(small[label], value)


def test_equal_prompts_have_equal_activations_and_progress_reaches_the_end() -> None:
    target = make_target("gpt2")
    seen: list[tuple[int, int]] = []
    got = capture(
        target,
        prompts(),
        expand_sites(["L0H0"], 3, 4),
        100,
        progress=lambda done, total: seen.append((done, total)),
    )
    np.testing.assert_array_equal(got["L0H0"][-1], got["L0H0"][-2])
    assert seen[-1] == (40, 40) and seen == sorted(seen)


def test_pass_stops_after_the_last_site_that_is_read() -> None:
    target = make_target("llama")
    proven(target, LENGTH)
    ran: list[int] = []
    handles = [
        layer.get_submodule("mlp").register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(target.layers)
    ]
    capture(target, prompts(), [Site(1, "result", 0), Site(0, "resid_post")])
    assert set(ran) == {0}
    capture(target, prompts(), [Site(1, "mlp_out")])
    assert set(ran) == {0, 1}
    for handle in handles:
        handle.remove()
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in target.layers)


def test_shared_beginnings_run_once() -> None:
    target = make_target("gpt2")
    positions = 0

    def count(_: Any, args: tuple[Tensor, ...]) -> None:
        nonlocal positions
        positions += args[0].shape[0] * args[0].shape[1]

    handle = target.layers[0].register_forward_pre_hook(count)
    tokens = np.zeros((2000, LENGTH), int)
    tokens[:, 5] = np.arange(2000) // 100
    tokens[:, 10] = np.arange(2000) // 4 % 25
    tokens[:, 11] = np.arange(2000) % 4
    got = capture(target, tokens, [Site(2, "result", 1)])
    handle.remove()
    assert positions < 2000 * LENGTH / 6
    close(got["L2H1"][::37], capture(target, tokens[::37], [Site(2, "result", 1)])["L2H1"])


def test_keys_and_values_of_shared_beginnings_fit_into_a_fixed_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More prompts are more batches, not more memory."""
    target, most = make_target("llama"), 200_000
    tokens = np.zeros((2000, LENGTH), int)
    for place, below in ((4, 200), (8, 20), (10, 4), (11, 1)):
        tokens[:, place] = np.arange(2000) // below % 20
    sites = expand_sites(["L*H1", "L2.resid_post"], 3, 4)
    free = capture(target, tokens, sites)
    monkeypatch.setattr(batches, "KEPT", {"cpu": most})
    passes = Passes(target, Inputs(tokens), sites)
    assert len(passes.batches) > 5
    number, held = passes.order.numbers, []
    found: dict[str, list[np.ndarray]] = {site.label: [] for site in sites}
    with passes.ready():
        for batch in passes.batches:
            for label, value in passes.run(batch).items():
                found[label].append(value)
            blocks = passes.buffers._blocks
            held.append(sum(block.nbytes for name, block in blocks.items() if name[1] is not None))
    assert most / 4 < max(held) <= most
    for label, value in free.items():
        close(np.concatenate(found[label])[number], value)


@pytest.mark.parametrize(
    ("sites", "tokens", "culprit"),
    [
        ([Site(3, "resid_post")], [[1, 2]], "layer 3, but tiny-gpt2's layers are 0 to 2"),
        ([Site(0, "result", 4)], [[1, 2]], "head 4, but tiny-gpt2's heads are 0 to 3"),
        ([Site(0, "result", 0, "S2")], [[1, 2]], "position 'S2'"),
        ([Site(0, "result", 0, "2")], [[1, 2, 3], [1, 2]], "1 of 2 prompts .*prompt 1, of 2 tokens"),
        ([Site(0, "result", 0)], [[1], []], "Prompt 1 is empty"),
        ([Site(0, "result", 0)], [[1], [VOCABULARY]], "Prompt 1 has a token outside"),
        ([Site(0, "result", 0)], [[1] * 33], "takes 1 to 32"),
        ([], [[1]], "No sites"),
    ],
)
def test_bad_input_is_refused(sites: list[Site], tokens: list[list[int]], culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        capture(make_target("gpt2"), [np.array(one, int) for one in tokens], sites)


def test_half_precision_weights_give_float32_activations() -> None:
    target = make_target("llama")
    exact = capture(target, prompts(), [Site(2, "result", 1)])["L2H1"]
    target.model.to(torch.bfloat16)
    rough = capture(target, prompts(), [Site(2, "result", 1)])["L2H1"]
    assert rough.dtype == np.float32
    close(rough, exact, tolerance=0.1)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("length", [24, 90])
def test_long_prompts_agree_with_eager_hugging_face(architecture: str, length: int) -> None:
    spec, overrides = SHAPES[architecture]
    model = build_model(spec.model_copy(update={"n_positions": 100}), VOCABULARY, seed=3, **overrides)
    target = Target(model, tokenizer=None, name="long")
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (12, length))
    tokens[:, : length - 5] = tokens[0, : length - 5]  # shared, so that few positions attend to many
    tokens[0, 3] += 1
    hidden, _ = reference(target, tokens)
    got = capture(target, tokens, expand_sites(["L*.resid_pre"], 3, 4))
    for layer in range(target.n_layers):
        close(got[f"L{layer}.resid_pre"], hidden[layer][:, -1])
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("length", [9, 40])
def test_faster_ways_are_left_where_the_model_is_not_made_for_them(length: int) -> None:
    """Qwen2 with a window: the short attention knows none, and what attends to all before it is wrong."""
    spec, _ = SHAPES["qwen2"]
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    model = build_model(spec.model_copy(update={"n_positions": 64}), VOCABULARY, seed=3, **window)
    target = Target(model, tokenizer=None, name="window")
    assert model.config.layer_types == ["sliding_attention"] * 3
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (12, length))
    tokens[:, : length - 3] = tokens[0, : length - 3]
    hidden, _ = reference(target, tokens)
    got = capture(target, tokens, expand_sites(["L*.resid_pre"], 3, 4))
    for layer in range(target.n_layers):
        close(got[f"L{layer}.resid_pre"], hidden[layer][:, -1])
    assert "attention" not in proven(target, length) and "linear" in proven(target, length)
    # Short of the window nothing is known to differ.
    assert proven(Target(model, tokenizer=None, name="short"), 4) == tuple(WAYS)


def turned(kind: str, **rope: Any) -> Target:
    """A Llama whose positions are scaled for long texts."""
    spec, _ = SHAPES["llama"]
    rope |= {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 27}
    model = build_model(
        spec.model_copy(update={"n_positions": 64}),
        VOCABULARY,
        3,
        initializer_range=0.3,
        rope_parameters=rope,
    )
    return Target(model, tokenizer=None, name=kind)


def test_beginnings_are_not_shared_where_positions_turn_by_the_length_of_the_whole() -> None:
    """Of 60 tokens 26 are shared: alone they are short, and a cut in the middle (30) would not show that."""
    target = turned("longrope", short_factor=[1.0] * 4, long_factor=[3.0, 2.0, 5.0, 4.0])
    rng = np.random.default_rng(0)
    for length in (20, 60):
        tokens = rng.integers(0, VOCABULARY, (64, length)).astype(np.int32)
        tokens[:, : length // 2 - 4] = tokens[0, : length // 2 - 4]
        tokens[32:, : length - 2] = tokens[32, : length - 2]
        hidden, _ = reference(target, tokens)
        got = capture(target, tokens, expand_sites(["L*.resid_pre"], 3, 4))
        for layer in range(target.n_layers):
            close(got[f"L{layer}.resid_pre"], hidden[layer][:, -1])
        assert PREFIXES not in proven(target, length)
    assert PREFIXES in proven(turned("yarn"), 60)


def test_attention_that_differs_is_replaced_by_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own attention, and one way to share beginnings, are wrong: neither is used, and the result is right."""
    target = make_target("llama")
    hidden, _ = reference(target, prompts())
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", _uncausal)
    monkeypatch.setattr(prefixes._PrefixLayer, "get_seq_length", lambda _: 0)
    got = capture(target, prompts(), expand_sites(["L*.resid_pre"], 3, 4))
    for layer in range(target.n_layers):
        close(got[f"L{layer}.resid_pre"], hidden[layer][:, -1])
    assert target.model.config._attn_implementation == "eager"
    assert PREFIXES not in proven(target, LENGTH)


def _uncausal(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    """Attention to all tokens, later ones too."""
    keys, values = (some.repeat_interleave(query.shape[1] // some.shape[1], 1) for some in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(query, keys, values)
    return out.transpose(1, 2), None


def test_a_site_that_a_family_lacks_is_refused() -> None:
    with pytest.raises(
        InputError, match="L1.resid_mid.*gpt_neox have no resid_mid.*resid_pre, attn_out, mlp_post"
    ):
        capture(make_target("gpt_neox"), prompts(), [Site(1, "resid_mid")])
