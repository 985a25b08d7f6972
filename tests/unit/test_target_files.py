"""A target model is exactly what its files say, or it is refused with one message that names the culprit and a remedy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from inversescope import store
from inversescope.config.targets import ArchitectureConfig
from inversescope.config.tasks import TextConfig
from inversescope.errors import InputError
from inversescope.targets import sources
from inversescope.targets.files import hashes_of
from inversescope.targets.fitness import check_target
from inversescope.targets.models import Target, build_model, open_target
from inversescope.targets.sources import quiet
from inversescope.targets.tokenizers import encode, word_tokenizer
from inversescope.tasks.text import TextTask

TEXTS = ["The capital of France", "People in Peru"]
END = "<|endoftext|>"


def gpt2(**changes: Any) -> GPT2Config:
    sizes = {"vocab_size": 40, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    return GPT2Config(**(sizes | changes), bos_token_id=0, eos_token_id=0)


def llama(**changes: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **(sizes | changes))).eval()


def words() -> Tokenizer:
    """A tokenizer with a token a character, and an end token."""
    letters = sorted({character for text in TEXTS for character in text} | {"é"})
    backend = Tokenizer(models.WordLevel({END: 0, **{c: n for n, c in enumerate(letters, 1)}}, unk_token=END))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def saved(folder: Path, model: Any = None, tokenizer: Tokenizer | None = None) -> Path:
    """A model's folder, as its author saves it."""
    torch.manual_seed(0)
    with quiet():
        (model or GPT2LMHeadModel(gpt2())).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer or words(), eos_token=END, unk_token=END)
    fast.save_pretrained(folder)
    return folder


def described(folder: Path, **changes: Any) -> None:
    """Change the configuration alone."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def renamed(folder: Path, name: Callable[[str], str | None]) -> None:
    """Give each weight another name, or leave it out."""
    weights = load_file(folder / "model.safetensors")
    named = {new: value for old, value in weights.items() if (new := name(old))}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})


def opened(folder: Path, **about: Any) -> Target:
    return open_target(folder, {"name": "tiny", "source": "local", "path": str(folder), **about})


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def pointer(name: str) -> Callable[[Path], None]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
    return lambda folder: (folder / name).write_text(text) and None


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lost_shard(folder: Path) -> None:
    weights = dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001.safetensors")
    index = {"weight_map": {**weights, "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")


def other_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    weights = dict.fromkeys(load_file(folder / "x.safetensors"), "x.safetensors")
    del weights["transformer.wpe.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def integers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wte.weight"] = (100 * weights["transformer.wte.weight"]).to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def rotated(**factors: list[float]) -> Callable[[Path], None]:
    """A Llama with factors for long texts; its heads are 8 numbers wide."""

    def save(folder: Path) -> None:
        with quiet():
            llama().save_pretrained(folder)
        rope = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, **factors}
        rope |= {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 8}
        described(folder, rope_parameters=rope | {"rope_theta": 1e4})

    return save


def classifier(folder: Path) -> None:
    with quiet():
        GPT2ForSequenceClassification(gpt2(pad_token_id=0)).save_pretrained(folder)


#: What was done to a folder, what the message says of it, and what it advises.
BROKEN: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "compiled": (
        lambda f: renamed(f, lambda key: f"_orig_mod.{key}"),
        r"lacks the weight lm_head.weight and 28 more and has no use for the weight _orig_mod.transformer.h.0",
        "Take the prefix '_orig_mod.' off",
    ),
    "layer missing": (
        lambda f: renamed(f, lambda key: None if ".h.1." in key else key),
        "lacks the weight transformer.h.1.attn.c_attn.bias and 11 more",
        "save_pretrained",
    ),
    "layer too many": (
        lambda f: described(f, n_layer=1),
        "has no use for the weight transformer.h.1",
        "saved with the weights",
    ),
    "other shape": (
        lambda f: described(f, n_embd=16),
        r"has shape \(24,\), but by config.json \(48,\)",
        "saved with the weights",
    ),
    "classifier": (classifier, "has no use for the weight score.weight", "whole language model"),
    "adapter": (adapter, "holds an adapter", "merge_and_unload"),
    "pickle": (pickled, "holds its weights as pytorch_model.bin", "save_pretrained"),
    "cut": (cut, "model.safetensors is cut short", "Download or copy it again"),
    "pointer": (pointer("model.safetensors"), "model.safetensors is a pointer of Git LFS", "git lfs pull"),
    "tokenizer's pointer": (pointer("tokenizer.json"), "tokenizer.json is a pointer", "git lfs pull"),
    "shard": (lost_shard, "names model-00002.safetensors, which is not in its folder", "Download or copy"),
    "index": (
        other_index,
        "index.json and x.safetensors do not agree on where the weight transformer.wpe.weight is",
        "Download or copy",
    ),
    "twice": (
        lambda f: (
            shutil.copy(f / "model.safetensors", f / "x.safetensors")
            and (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
        ),
        "holds its weights twice",
        "Move away",
    ),
    "int8": (integers, "holds the weight .* as I8, which is no number", "as they were before"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights", "Download or copy"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "holds no model", "Check 'path'"),
    "cut configuration": (
        lambda f: (f / "config.json").write_text('{"model_'),
        "config.json cannot be read",
        "Download or copy",
    ),
    "GGUF": (
        lambda f: (f / "config.json").rename(f / "model.gguf"),
        "holds the GGUF file model.gguf",
        "Set 'path' to that file",
    ),
    "own code": (
        lambda f: described(f, auto_map={"AutoModelForCausalLM": "mine.Mine"}),
        "asks for code of its own",
        "auto_map",
    ),
    "quantised": (
        lambda f: described(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised \(gptq\)",
        "GGUF",
    ),
    "activation": (
        lambda f: described(f, activation_function="gelu_fancy"),
        "activation function 'gelu_fancy'",
        "Name one",
    ),
    "long factors": (
        rotated(long_factor=[2.0] * 3),
        "config.json has a long_factor of length 3, but the model's heads need 4",
        "saved with the weights",
    ),
    "one short factor for all": (rotated(short_factor=[1.0]), "has a short_factor of length 1", "saved with"),
    "family": (
        lambda f: described(f, model_type="opt"),
        "model tiny is of the family 'opt'",
        "Use one of gpt2, gemma2",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        "has no tokenizer.json",
        "save both by save_pretrained",
    ),
    "odd configuration": (
        lambda f: described(f, n_head=3),
        "cannot be loaded",
        "Mend the model",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_whole_model_is_refused(case: str, tmp_path: Path) -> None:
    spoil, culprit, remedy = BROKEN[case]
    folder = saved(tmp_path / "model")
    opened(folder)
    spoil(folder)
    with pytest.raises(InputError, match=culprit) as error:
        opened(folder)
    assert remedy in error.value.remedy and "elete" not in error.value.remedy
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_what_is_whole_is_read_as_it_is(tmp_path: Path) -> None:
    """Without the unembedding that is tied; half precision; in parts; with an unembedding that the configuration calls tied."""
    model = GPT2LMHeadModel(gpt2())
    renamed(saved(tmp_path / "base", model), lambda key: key.removeprefix("transformer."))
    with quiet():
        saved(tmp_path / "half", model).joinpath("model.safetensors").unlink()
        model.to(torch.bfloat16).save_pretrained(tmp_path / "half", max_shard_size="2kB")
    assert len(hashes_of(tmp_path / "half")) > 4
    apart = llama(hidden_size=8)
    described(saved(tmp_path / "tied", apart), tie_word_embeddings=True)
    for name, true in (("base", model), ("half", model), ("tied", apart)):
        state = opened(tmp_path / name).model.state_dict()
        for key, value in true.state_dict().items():
            torch.testing.assert_close(state[key], value.float(), rtol=0, atol=1e-2 if name == "base" else 0)


MASK = torch.ones(16, 16).tril()[None, None]


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize(
    "mask", [{"attn.bias": MASK}, {"attn.bias": MASK, "attn.masked_bias": torch.tensor(-1e4)}]
)
def test_masks_that_older_versions_saved_are_left_out(
    prefix: str, mask: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    file = saved(tmp_path) / "model.safetensors"
    weights = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
    old = {f"h.{layer}.{name}": value.clone() for layer in range(2) for name, value in mask.items()}
    named = {f"{prefix}{name}": value for name, value in {**weights, **old}.items()}
    save_file(named, file, metadata={"format": "pt"})
    state = opened(tmp_path).model.state_dict()
    for name, value in weights.items():
        assert torch.equal(state[f"transformer.{name}"], value)
    save_file(named | {f"{prefix}h.0.attn.scale": torch.ones(2)}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"has no use for the weight {prefix}h.0.attn.scale. Let"):
        opened(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_that_changes_after_it_was_hashed_is_refused(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, here = saved(tmp_path / "model"), tmp_path / "here"
    about = {"name": "tiny", "source": "local", "path": str(folder), "sha256": hashes_of(folder)}
    store.write_json(about, here / "target.json")
    identity = open_target(here, about).identity
    other = saved(tmp_path / "other", GPT2LMHeadModel(gpt2(n_head=1)))
    old = (folder / file).stat()
    shutil.copy(other / file, folder / file) if file != "tokenizer.json" else (folder / file).write_text("{}")
    os.utime(folder / file, ns=(old.st_atime_ns, old.st_mtime_ns))  # as if nothing had happened
    monkeypatch.setattr(sources, "LARGE", 0)  # large files are hashed only if they were touched
    with pytest.raises(InputError, match=f"{file} is not the file that .*target.json vouches for") as error:
        open_target(here, about)
    assert "Put back what it was, or run fetch_target again" in error.value.remedy
    assert store.identity({**about, "sha256": hashes_of(folder)}) != identity


def test_identity_is_that_of_files_and_of_how_they_are_run(tmp_path: Path) -> None:
    about = {"sha256": {"a": "1"}, "path": "x", "dtype": "float32", "bos": False}
    assert store.identity(about) == store.identity(about | {"path": "moved", "name": "other"})
    changes: list[dict[str, Any]] = [{"sha256": {"a": "2"}}, {"dtype": "bfloat16"}, {"bos": True}]
    assert len({store.identity(about | change) for change in [{}, *changes]}) == 4
    hub = {"source": "hub", "path": "x", "revision": "1"}
    assert store.identity(hub) != store.identity(hub | {"revision": "2"})


def test_large_files_are_not_hashed_again_while_nobody_touches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, here = saved(tmp_path / "model"), tmp_path / "here"
    about = {"name": "tiny", "source": "local", "path": str(folder), "sha256": hashes_of(folder)}
    store.write_json(about, here / "target.json")
    os.utime(here / "target.json", (2e9, 2e9))
    monkeypatch.setattr(sources, "LARGE", 0)
    monkeypatch.setattr(sources, "file_hash", lambda _: pytest.fail("it is hashed"))
    assert sources.locate(here, about).path == str(folder)


# ------------------------------------------------------------------------------------------------------------- tokenizers


def test_the_tokenizer_is_that_of_the_folder_without_settings_of_old_calls(tmp_path: Path) -> None:
    """Whatever class its configuration names, and whatever it was cut or padded to."""
    backend = words()
    backend.enable_truncation(3)
    backend.enable_padding(length=30)
    folder = saved(tmp_path, tokenizer=backend)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "LlamaTokenizer"}))
    tokenizer = opened(folder).tokenizer
    assert [len(ids) for ids in encode(tokenizer, TEXTS)] == [len(text) for text in TEXTS]
    assert [len(tokenizer.encode(text)) for text in TEXTS] == [len(text) for text in TEXTS]
    assert tokenizer.backend_tokenizer.normalizer is None


def test_dropout_of_a_saved_tokenizer_is_switched_off(tmp_path: Path) -> None:
    """It belongs to the tokenizer's training: the same text would be other tokens each time."""
    letters = sorted(set("".join(TEXTS)))
    names = [END, *letters, "Th", "The", "in"]
    backend = Tokenizer(
        models.BPE({name: n for n, name in enumerate(names)}, [("T", "h"), ("Th", "e"), ("i", "n")])
    )
    backend.model.dropout = 0.5
    backend.decoder = decoders.Fuse()
    tokenizer = opened(saved(tmp_path, tokenizer=backend)).tokenizer
    found = {tuple(ids) for _ in range(20) for ids in encode(tokenizer, TEXTS[:1])}
    assert len(found) == 1 and names.index("The") in found.pop()


def test_a_begin_token_that_is_wanted_must_be_there(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with pytest.raises(InputError, match="has no begin token"):
        opened(folder, bos=True)


ROWS = [
    {"form": form, "country": c, "code": f"{form[0]}{n}"}
    for form in ("The", "In")
    for n, c in enumerate(("Peru", "Mali"))
]


def prior(root: Path, rows: list[dict[str, str]] | None = None, prompt: str = "{form} {country}") -> TextTask:
    """A corpus as a prior."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows or ROWS]
    (root / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    about = {"path": "corpus.jsonl", "prompt": prompt, "answer": "code", "held_out": 0.25}
    return TextTask(TextConfig.model_validate(about), root)


def letters(normalizer: normalizers.Normalizer | None = None, extra: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer with a token a character, whose unknown token is its end token, as GPT-2's."""
    known = sorted(set("".join("".join(row.values()) for row in ROWS) + " " + extra))
    backend = Tokenizer(models.WordLevel({END: 0, **{c: n for n, c in enumerate(known, 1)}}, unk_token=END))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    backend.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, unk_token=END)


def ended() -> PreTrainedTokenizerFast:
    """A tokenizer whose end token is `</s>`, and that has a separator."""
    backend = letters(extra="Chad</s>").backend_tokenizer
    backend.add_special_tokens(["</s>", "<sep>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def target(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Target:
    return Target(GPT2LMHeadModel(gpt2(**changes)).eval(), tokenizer, "tiny")


def overflowing(tokenizer: PreTrainedTokenizerFast) -> Target:
    """One weight is larger than half precision takes."""
    found = target(tokenizer)
    with torch.no_grad():
        found.model.get_input_embeddings().weight[0, 0] = 1e6
    found.model.half()
    return found


def checked(task: TextTask, tokenizer: PreTrainedTokenizerFast, *sites: str, **changes: Any) -> None:
    places = list(sites or ("L0H0",))
    check_target(target(tokenizer, **changes), task, places, places, np.random.default_rng(0))


def test_a_tokenizer_that_keeps_all_texts_passes(tmp_path: Path) -> None:
    checked(prior(tmp_path), letters(), "L0H0", "L1.resid_post@country", "L0.resid_pre@3")


UNFIT: dict[str, tuple[Callable[[Path], None], str]] = {
    "lower case": (
        lambda root: checked(prior(root), letters(normalizers.Lowercase(), "tip")),
        "The tokenizer of tiny turns 'The .*' into 'the ",
    ),
    "composed": (
        lambda root: checked(
            prior(root, [row | {"form": row["form"] + "e\u0301"} for row in ROWS]),
            letters(normalizers.NFC(), "é"),
        ),
        "turns 'Thee\u0301 .*' into 'The\u00e9 ",
    ),
    "unknown as end": (
        lambda root: checked(prior(root, [row | {"form": row["form"] + "Z"} for row in ROWS]), letters()),
        "turns 'TheZ .*' into 'The<.endoftext.> ",
    ),
    "unknown in an answer": (
        lambda root: checked(prior(root, [row | {"code": row["code"] + "Z"} for row in ROWS]), letters()),
        "turns 'The .* T.Z' into 'The .*<.endoftext.>'",
    ),
    "folded in an answer": (
        lambda root: checked(
            prior(root, [row | {"code": f"²{row['code']}"} for row in ROWS]), letters(normalizers.NFKC(), "2")
        ),
        "turns 'The .* ²T.' into 'The .* 2T.'",
    ),
    "end token as text": (
        lambda root: checked(prior(root, [*ROWS, ROWS[0] | {"country": "Chad</s>"}]), ended()),
        "takes </s> for a token of its own, and not for text: prompt 4, 'The Chad</s>'",
    ),
    "mark in an answer": (
        lambda root: checked(
            prior(root, [*ROWS, {"form": "In", "country": "Chad", "code": "<sep>"}]), ended()
        ),
        "takes <sep> for a token of its own, and not for text: prompt 4, 'In Chad <sep>'",
    ),
    "embedding": (
        lambda root: checked(prior(root), letters(), vocab_size=12),
        "has a token 1., '.', in '.*', but the model's embedding has 12",
    ),
    "positions": (
        lambda root: checked(prior(root), letters(), n_positions=7),
        "'The .*' has 8 tokens, but tiny takes 1 to 7",
    ),
    "positions with answer": (
        lambda root: checked(prior(root), letters(), n_positions=9),
        "'The .*' has 11 tokens, but tiny takes 1 to 9",
    ),
    "index": (
        lambda root: checked(prior(root), letters(), "L0H0@7"),
        r"Site L0H0@7: 2 of 4 prompts have no position '7', the first 'In ",
    ),
    "name": (
        lambda root: checked(prior(root), letters(), "L0H0@town"),
        "has no position '@town'",
    ),
    "infinity": (
        lambda root: check_target(
            overflowing(letters()), prior(root), ["L0H0"], [], np.random.default_rng(0)
        ),
        "The weight transformer.wte.weight of tiny holds NaN or infinity as torch.float16",
    ),
    "divided by nothing": (
        lambda root: checked(prior(root), letters(), layer_norm_epsilon=-1e3),
        "Activations of tiny are NaN or infinite as torch.float32",
    ),
    "turned by nothing": (
        lambda root: check_target(
            Target(llama(rope_parameters={"rope_type": "default", "rope_theta": 0.0}), letters(), "tiny"),
            prior(root),
            ["L0H0"],
            [],
            np.random.default_rng(0),
        ),
        "Activations of tiny are NaN or infinite as torch.float32",
    ),
    "no width": (
        lambda root: checked(prior(root), letters(), n_inner=0),
        r"tiny cannot be run \(RuntimeError: .*\). Look at what its config.json says",
    ),
    "kind": (
        lambda root: check_target(
            Target(build_model(ArchitectureConfig(architecture="gpt_neox"), 40, 0), letters(), "neox"),
            prior(root),
            ["L1.resid_mid"],
            [],
            np.random.default_rng(0),
        ),
        "L1.resid_mid.*have no resid_mid",
    ),
    "answer": (
        lambda root: checked(
            prior(root, prompt="{form} {country} "),
            word_tokenizer(["The", "In", " Peru", " Mali", " ", " T0", " T1", " I0", " I1"]),
        ),
        "gives 'The Peru ' other tokens with its answer than without",
    ),
}


def test_answers_that_nobody_asks_for_are_not_looked_at(tmp_path: Path) -> None:
    task = prior(tmp_path, [row | {"code": row["code"] + "Z"} for row in ROWS])
    check_target(target(letters()), task, ["L0H0"], [], np.random.default_rng(0))


@pytest.mark.parametrize("case", UNFIT)
def test_what_a_later_stage_would_stumble_over_is_said_before_anything_runs(
    case: str, tmp_path: Path
) -> None:
    run, culprit = UNFIT[case]
    with pytest.raises(InputError, match=culprit):
        run(tmp_path)


def test_an_answer_that_brings_its_space_gets_no_other(tmp_path: Path) -> None:
    task = prior(tmp_path, [row | {"code": " " + row["code"]} for row in ROWS])
    assert task.completed([0, 3]) == ["The Peru T0", "In Mali I1"]
    assert task.answers([0]) == [" T0"]
