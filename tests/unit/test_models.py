"""Targets are built, saved and loaded exactly; tokenizers are lossless; bad input ends in one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from inversescope import store
from inversescope.config.targets import ArchitectureConfig
from inversescope.errors import InputError
from inversescope.sites import Site
from inversescope.targets.architectures import ARCHITECTURES
from inversescope.targets.models import Target, build_model, load_target, save_trained
from inversescope.targets.substitutes import fast_linear_layers
from inversescope.targets.tokenizers import check_single_tokens, encode, tokenizer_hash, word_tokenizer

WORDS = [
    "Then",
    "The",
    ",",
    ".",
    " Mary",
    " John",
    " and",
    " went",
    " to",
    " gave",
    " a",
    " ring",
    " the",
    " B",
]
TEXTS = ["Then, Mary and John went to the ring. B gave a ring to", "The ring John gave", "Then", ""]
IDS = torch.arange(2, 12).reshape(1, -1)


def tiny(architecture: str = "gpt2", **changes: Any) -> ArchitectureConfig:
    kv_heads = 1 if hasattr(CONFIG_MAPPING[architecture](), "num_key_value_heads") else None
    shape = {"n_layers": 2, "n_heads": 2, "d_model": 16, "n_kv_heads": kv_heads} | changes
    return ArchitectureConfig(architecture=architecture, **shape)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_model_loads_exactly(tmp_path: Path, architecture: str) -> None:
    tokenizer = word_tokenizer(WORDS)
    model = build_model(tiny(architecture), len(tokenizer), seed=1)
    (tmp_path / "candidates").mkdir()
    save_trained(tmp_path, model, tokenizer, "tiny", {"gate_accuracy": 0.99})
    assert json.loads((tmp_path / "target.json").read_text())["gate_accuracy"] == 0.99
    assert not [
        path for path in tmp_path.iterdir() if path.name.startswith(".") or path.suffix in (".bin", ".pt")
    ]
    assert (tmp_path / "candidates").is_dir()
    target = load_target(tmp_path)
    assert (target.name, target.source, target.architecture) == ("tiny", "trained", architecture)
    assert (target.n_layers, target.n_heads, target.d_model, target.head_dim, target.d_mlp) == (
        2,
        2,
        16,
        8,
        64,
    )
    assert target.model.dtype == torch.float32 and not target.model.training
    assert not any(parameter.requires_grad for parameter in target.model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(target.model(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    assert target.tokenizer_hash == tokenizer_hash(tokenizer) != tokenizer_hash(word_tokenizer(WORDS[:-1]))
    for text, ids in zip(TEXTS, encode(target.tokenizer, TEXTS), strict=True):
        assert target.tokenizer.decode(ids.tolist()) == text


def test_site_widths_follow_the_configuration() -> None:
    model = build_model(tiny("gemma2", n_heads=4, d_model=12, head_dim=8, d_mlp=20), 16, seed=0)
    target = Target(model, word_tokenizer(WORDS), "t")
    widths = {"result": 8, "z": 8, "mlp_post": 20, "attn_out": 12, "resid_mid": 12}
    for kind, width in widths.items():
        assert target.site_dim(Site(0, kind, 1 if kind in ("result", "z") else None)) == width
    assert target.w_o(1, 3).shape == (8, 12)


def test_weights_depend_on_the_seed_only() -> None:
    first = build_model(tiny(), 16, seed=5)
    state = torch.get_rng_state()
    second = build_model(tiny(), 16, seed=5)
    assert torch.equal(state, torch.get_rng_state())
    other = build_model(tiny(), 16, seed=6)
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and any(not torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize(("architecture", "tied"), [(a, t) for a in ARCHITECTURES for t in (True, False)])
def test_embeddings_are_tied_on_request(architecture: str, tied: bool) -> None:
    model = build_model(tiny(architecture, tied_embeddings=tied), 16, seed=0)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


@pytest.mark.parametrize(
    ("spec", "culprit"),
    [
        (tiny(n_heads=3), "d_model 16 is no multiple of n_heads 3"),
        (tiny("llama", n_heads=4, n_kv_heads=3), "n_heads 4 is no multiple of n_kv_heads 3"),
        (tiny(n_kv_heads=1), "gpt2 has no n_kv_heads"),
        (tiny(head_dim=4), "gpt2 has no head_dim"),
        (tiny("qwen2", head_dim=4), "qwen2 has no head_dim"),
        (tiny("qwen2", sliding_window=4), "qwen2 has no sliding_window"),
    ],
)
def test_impossible_shapes_are_refused(spec: ArchitectureConfig, culprit: str) -> None:
    with pytest.raises(InputError, match=culprit):
        build_model(spec, 16, seed=0)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"])
def test_fast_linear_layers_change_nothing_but_rounding(activation: str) -> None:
    model = build_model(tiny(), 16, seed=0, activation_function=activation)
    ran: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    with torch.inference_mode():
        plain = model(IDS).logits
        modules, ran = ran, []
        with fast_linear_layers(model):
            fast = model(IDS).logits
        assert ran == modules
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model(IDS).logits, plain, rtol=0, atol=0)
    assert not any("forward" in vars(module) for module in model.modules())
    with fast_linear_layers(model):
        model(IDS).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_fast_linear_layers_are_undone_after_an_error() -> None:
    model = build_model(tiny("llama"), 16, seed=0)
    with pytest.raises(RuntimeError), torch.no_grad(), fast_linear_layers(model):
        raise RuntimeError
    assert not any("forward" in vars(module) for module in model.modules())


def test_word_tokenizer_is_lossless_with_fixed_ids() -> None:
    tokenizer = word_tokenizer([*WORDS, " Mary"])
    assert len(tokenizer) == len(WORDS) + 2 and tokenizer.eos_token_id == tokenizer.pad_token_id == 0
    ids = encode(tokenizer, TEXTS)
    assert all(one.dtype == np.int32 for one in ids) and ids[0][:3].tolist() == [2, 4, 6] and len(ids[3]) == 0
    for text, one in zip(TEXTS, ids, strict=True):
        assert tokenizer.decode(one.tolist()) == text == tokenizer.decode(tokenizer.encode(text))
        assert tokenizer.encode(text) == one.tolist()
    assert encode(tokenizer, []) == []


def test_fast_encoding_agrees_with_the_tokenizer_on_any_text() -> None:
    tokenizer = word_tokenizer(WORDS)
    odd = [
        "Then  Mary",
        " Mary",
        "The ring<|endoftext|>",
        "Then, Éva",
        "the Mary",
        "a\nb",
        "Mary's",
        "..",
        "Then, \u0661",
    ]
    rng = np.random.default_rng(0)
    mixed = ["".join(rng.choice([*WORDS, " ", "x", "_", "-", "\t"], size=6)) for _ in range(300)]
    for texts in ([*TEXTS, *odd, *mixed], *([text] for text in [*odd, *mixed])):
        expected = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        assert [one.tolist() for one in encode(tokenizer, texts, strict=False)] == expected


def test_padding_of_an_earlier_call_does_not_leak() -> None:
    tokenizer = word_tokenizer(WORDS)
    before = tokenizer_hash(tokenizer)
    tokenizer(TEXTS[:2], padding=True, truncation=True, max_length=5)
    assert tokenizer_hash(tokenizer) == before
    assert [len(one) for one in encode(tokenizer, ["The ring", "Then  Mary"], strict=False)] == [2, 3]


def test_unknown_words_are_refused_with_their_text() -> None:
    tokenizer = word_tokenizer(WORDS)
    with pytest.raises(InputError, match="does not know a word of 'Then, Bob'"):
        encode(tokenizer, ["Then", "", "Then, Bob", "Bob"])
    assert encode(tokenizer, ["Then, Bob"], strict=False)[0].tolist() == [2, 4, 1]
    with pytest.raises(InputError, match="' Mary Ann' is not one word"):
        word_tokenizer([" Mary Ann"])


def test_names_must_be_single_tokens() -> None:
    check_single_tokens(word_tokenizer(WORDS), [" Mary", "John"])
    with pytest.raises(InputError, match="cannot encode ' Eve' as one token"):
        check_single_tokens(word_tokenizer(WORDS), [" Mary", "Eve", "Bob"])
    letters = {letter: index for index, letter in enumerate("Ġ Marybn")}
    backend = Tokenizer(models.BPE(letters | {"Ma": 20}, [("M", "a")], unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(InputError, match=r"cannot encode ' Mary' as one token \(it makes 4\)"):
        check_single_tokens(PreTrainedTokenizerFast(tokenizer_object=backend), ["Mary"])


def write_about(directory: Path, **about: Any) -> Path:
    store.write_json(
        {"name": "t", "revision": "", "dtype": "float32", "device_map": None} | about,
        directory / "target.json",
    )
    return directory


def test_local_models_are_read_where_they_lie(tmp_path: Path) -> None:
    save_trained(tmp_path / "there", build_model(tiny(), 16, 0), word_tokenizer(WORDS), "there")
    about = write_about(tmp_path / "here", source="local", path=str(tmp_path / "there"), dtype="bfloat16")
    target = load_target(about)
    assert target.source == "local" and target.model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="holds no model"):
        load_target(write_about(tmp_path / "here", source="local", path=str(tmp_path / "nowhere")))


def test_broken_weights_and_pickles_are_refused(tmp_path: Path) -> None:
    model = build_model(tiny(), 16, 0)
    save_trained(tmp_path, model, word_tokenizer(WORDS), "t")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(InputError, match="is not the file that .* vouches for.*rerun the stage"):
        load_target(tmp_path)
    weights.unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="is not there, but .* vouches for"):
        load_target(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_target(tmp_path / "nothing")


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    from transformers import OPTConfig

    shape = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "ffn_dim": 16}
    model = AutoModelForCausalLM.from_config(OPTConfig(vocab_size=16, word_embed_proj_dim=16, **shape))
    save_trained(tmp_path, model, word_tokenizer(WORDS), "t")
    with pytest.raises(InputError, match=f"'opt', which has no entry .*{', '.join(ARCHITECTURES)}"):
        load_target(tmp_path)


def test_unreachable_hub_ends_in_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the hub library asks when it decides whether to use the network.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    about = write_about(tmp_path, source="hub", path="nobody/no-such-model", revision="0" * 40)
    with pytest.raises(InputError) as error:
        load_target(about)
    message = str(error.value)
    assert "nobody/no-such-model at revision 000" in message and "\n" not in message
    assert "source: local" in message and "HF_HOME" in message
