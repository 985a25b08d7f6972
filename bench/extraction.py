"""Extraction speed and size beside TransformerLens, nnsight and plain Hugging Face, in one run on one thread.

What is asked for: every head's result and every layer's residual stream at the last token. All read the same randomly
initialised weights, and the table says how far their results are apart. The methods take turns, so that what else the machine
does meets them alike; `ours_times` is how much faster ours is than a method in the median turn, `ours_low` and `ours_high` in the
turns where it is least and most. Shape `smollm2` is that of SmolLM2-135M. TransformerLens and nnsight are optional peers
(`pip install "inversescope[bench]"`).

    python -m bench.extraction --out results/bench/extraction.csv
    python -m bench.extraction --shapes smollm2
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from bench.tables import finish, installed, options

# isort: split
import numpy as np
import torch
from torch import Tensor, nn

from inversescope.activations.capture import capture, result_basis
from inversescope.config.targets import ArchitectureConfig
from inversescope.config.tasks import IOIConfig
from inversescope.sites import expand_sites
from inversescope.targets.models import Target, build_model, load_target, save_trained
from inversescope.targets.tokenizers import encode, word_tokenizer
from inversescope.tasks.ioi import IOITask

BATCHES = (16, 64, 256, 1024)
SITES = ["L*H*", "L0.resid_pre", "L*.resid_post"]
#: A method: token ids (N, T), batch size -> heads' results (N, layers, heads, d) and the residual stream (N, layers + 1, d), or
#: what `capture` returns; and how many bytes that are.
Method = Callable[[np.ndarray, int], tuple[Any, int]]
PEERS = ("transformer_lens", "nnsight")
PROMPTS = ("unrelated", "draws", "enumerated")


@dataclass(frozen=True)
class Shape:
    """A target model and how many prompts are read from it.

    The peers read every `stride`-th prompt: their speed does not depend on how many there are, ours does,
    as more prompts share more beginnings. Of unrelated prompts ours reads four times as many as the peers, at most.
    """

    name: str
    spec: ArchitectureConfig
    vocabulary: int | None
    prompts: int
    stride: int
    repeats: int
    batches: tuple[int, ...] = BATCHES


SMOLLM2 = ArchitectureConfig(
    architecture="llama",
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    d_model=576,
    d_mlp=1536,
    n_positions=8192,
    initializer_range=0.04,
)
GPT2 = ArchitectureConfig(n_layers=12, n_heads=12, d_model=768, n_positions=1024)
SHAPES = (
    Shape("embedded", ArchitectureConfig(n_layers=4, n_heads=4, d_model=64), None, 65536, 16, 4),
    Shape("gpt2-small", GPT2, 50257, 256, 4, 2),
    Shape("smollm2", SMOLLM2, 49152, 512, 32, 5, (16,)),
)


def main() -> int:
    """Measure, print the table, and write it where asked."""
    parser = options(__doc__.splitlines()[0], "extraction")
    parser.add_argument("--shapes", nargs="+", default=[shape.name for shape in SHAPES], help="which models")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS), choices=PROMPTS, help="which prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for peer in PEERS:
        installed(peer)
    rows = []
    for shape in SHAPES:
        if shape.name in arguments.shapes:
            rows += measure_shape(shape, arguments.prompts)
    finish(rows, arguments.out)
    return 0


def measure_shape(shape: Shape, sets: Sequence[str] = PROMPTS) -> list[dict[str, Any]]:
    """Rows of one model: every set of prompts by every method, turn by turn."""
    task = IOITask(IOIConfig())
    tokenizer = word_tokenizer(task.words())
    model = build_model(shape.spec, shape.vocabulary or len(tokenizer), seed=0)
    with tempfile.TemporaryDirectory() as directory:
        save_trained(directory, model, tokenizer, shape.name)
        target = load_target(directory)
        methods = make_methods(target, Path(directory))
    rows = []
    every = prompt_sets(task, tokenizer, shape.prompts, target.model.config.vocab_size)
    for name in sets:
        own, stride = every[name], shape.stride
        if name == "unrelated" and stride > 4:
            own, stride = own[: 4 * len(own) // stride], 4
        some = own[::stride]
        batch = {method: best_batch(run, some, shape.batches) for method, run in methods.items()}
        turns: dict[str, list[float]] = {method: [] for method in methods}
        kept: dict[str, tuple[Any, int]] = {}
        for _ in range(shape.repeats):
            for method, run in methods.items():
                read = own if method == "inversescope" else some
                start = time.process_time()
                kept[method] = run(read, batch[method])
                turns[method].append((time.process_time() - start) / len(read))
        rows += _rows(shape, name, target, some, own, batch, turns, kept)
    return rows


def _rows(
    shape: Shape,
    name: str,
    target: Target,
    some: np.ndarray,
    own: np.ndarray,
    batch: dict[str, int],
    turns: dict[str, list[float]],
    kept: dict[str, tuple[Any, int]],
) -> list[dict[str, Any]]:
    """A row a method: its speed in the fastest turn, and how much faster ours is, turn by turn."""
    ours = last_results(target, kept["inversescope"][0])[:: len(own) // len(some)]
    lenses = [method for method in turns if method.startswith("transformer_lens")]
    fastest = min((min(turns[method]) for method in lenses), default=float("nan"))
    cached = kept[lenses[0]][1] / len(some) if lenses else float("nan")
    rows = []
    for method, seconds in turns.items():
        values, size = kept[method]
        n = len(own) if method == "inversescope" else len(some)
        results = last_results(target, values)[:: n // len(some)]
        times = np.array(seconds) / np.array(turns["inversescope"])
        rows.append(
            {
                "model": shape.name,
                "prompts": name,
                "n": n,
                "tokens": some.shape[1],
                "method": method,
                "batch": batch[method] or "",
                "prompts_per_s": 1 / min(seconds),
                "times_fastest_transformer_lens": fastest / min(seconds),
                "ours_times": float(np.median(times)),
                "ours_low": float(times.min()),
                "ours_high": float(times.max()),
                "bytes_per_prompt": size / n,
                "share_of_transformer_lens_bytes": size / n / cached,
                "largest_difference": float(np.abs(results - ours).max() / np.abs(ours).max()),
            }
        )
    return rows


def prompt_sets(task: Any, tokenizer: Any, n: int, words: int) -> dict[str, np.ndarray]:
    """Prompts (n, T) that share no beginning, some (draws from the prior), or all they can (its
    enumeration)."""
    rng = np.random.default_rng(0)
    lengths = [len(one) for one in encode(tokenizer, task.texts(np.arange(task.size)[:: task.size // 997]))]
    length = int(np.bincount(lengths).argmax())

    def of_length(texts: list[str]) -> np.ndarray:
        return np.stack([one for one in encode(tokenizer, texts) if len(one) == length][:n])

    start = task.size // 2
    while len(encode(tokenizer, task.texts(np.arange(start, start + 1)))[0]) != length:
        start += n
    return {
        "unrelated": rng.integers(0, words, (n, length)).astype(np.int32),
        "draws": of_length(task.texts(rng.choice(task.size, min(40 * n, task.size), replace=False))),
        "enumerated": of_length(task.texts(np.arange(start, start + n))),
    }


def best_batch(run: Method, tokens: np.ndarray, batches: Sequence[int]) -> int:
    """The batch size at which a method is fastest on the first prompts; 0 for ours, which chooses itself."""
    if run.__name__ == "inversescope":
        run(tokens[:256], 0)
        return 0
    best, fastest = 0, float("inf")
    for batch in batches:
        if batch > len(tokens):
            continue
        some = tokens[: max(batch, 256)]
        run(some[:batch], batch)
        if len(batches) == 1:
            return batch
        start = time.process_time()
        run(some, batch)
        seconds = (time.process_time() - start) / len(some)
        if seconds < fastest:
            best, fastest = batch, seconds
    return best


def make_methods(target: Target, directory: Path) -> dict[str, Method]:
    """Ours and the peers that are installed."""
    sites = expand_sites(SITES, target.n_layers, target.n_heads)

    def inversescope(tokens: np.ndarray, batch: int) -> tuple[Any, int]:
        values = capture(target, tokens, sites)
        return values, sum(value.nbytes for value in values.values())

    methods: dict[str, Method] = {"inversescope": inversescope, "hugging_face": hugging_face_method(target)}
    if installed("transformer_lens"):
        methods |= transformer_lens_methods(target, directory)
    if installed("nnsight"):
        methods["nnsight"] = nnsight_method(target)
    return methods


def in_batches(read: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Method:
    """A method that reads a batch at a time: ids (B, T) -> results (B, layers, heads, d), residual stream (B, layers + 1, d)."""

    def run(tokens: np.ndarray, batch: int) -> tuple[Any, int]:
        with torch.inference_mode():
            parts = [
                read(torch.from_numpy(tokens[low : low + batch]).long())
                for low in range(0, len(tokens), batch)
            ]
        results, residual = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return (results, residual), results.nbytes + residual.nbytes

    return run


def output_maps(target: Target) -> Tensor:
    """W_O (layers, heads, head_dim, d) of all heads."""
    layers, heads = range(target.n_layers), range(target.n_heads)
    return torch.stack([torch.stack([target.w_o(layer, head) for head in heads]) for layer in layers])


def head_results(target: Target, z: Sequence[Tensor], w_o: Tensor) -> Tensor:
    """Results z W_O (B, layers, heads, d) from what enters each layer's output projection (B, heads * head_dim), as a user would
    write it."""
    split = torch.stack(list(z), dim=1).unflatten(-1, (target.n_heads, target.head_dim))
    return torch.einsum("nlhd,lhdm->nlhm", split, w_o)


def hugging_face_method(target: Target) -> Method:
    """Every z by hooks on the output projections, and what enters and leaves the blocks. Of the logits only the last token's are
    computed."""
    w_o = output_maps(target)

    def read(ids: Tensor) -> tuple[Tensor, Tensor]:
        z: list[Tensor] = []
        residual: list[Tensor] = []

        def left(module: nn.Module, args: Any, output: Any) -> None:
            residual.append((output[0] if isinstance(output, tuple) else output)[:, -1])

        hooks = [target.layers[0].register_forward_pre_hook(lambda _, args: residual.append(args[0][:, -1]))]
        for layer in target.layers:
            projection = layer.get_submodule(target.arch.out_proj)
            hooks.append(projection.register_forward_pre_hook(lambda _, args: z.append(args[0][:, -1])))
            hooks.append(layer.register_forward_hook(left))
        target.model(ids, use_cache=False, logits_to_keep=1)
        for hook in hooks:
            hook.remove()
        return head_results(target, z, w_o), torch.stack(residual, 1)

    return in_batches(read)


def nnsight_method(target: Target) -> Method:
    """nnsight's trace of the same model: what enters the output projections, and what enters and leaves the blocks."""
    from nnsight import NNsight

    # A copy: nnsight and our fast products each put functions of their own into the model's modules.
    w_o, traced = output_maps(target), NNsight(copy.deepcopy(target.model))
    blocks = attrgetter(f"{target.arch.body}.{target.arch.layers}")(traced)
    projection = attrgetter(target.arch.out_proj)

    def read(ids: Tensor) -> tuple[Tensor, Tensor]:
        with traced.trace(ids, use_cache=False, logits_to_keep=1):
            z, residual = list().save(), list().save()
            residual.append(blocks[0].input[:, -1])
            for block in blocks:
                z.append(projection(block).input[:, -1])
                left = block.output
                residual.append((left[0] if isinstance(left, tuple) else left)[:, -1])
        return head_results(target, z, w_o), torch.stack(list(residual), 1)

    return in_batches(read)


def transformer_lens_methods(target: Target, directory: Path) -> dict[str, Method]:
    """TransformerLens as its users get head results, and with each of its own means to keep less."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(directory), device="cpu", dtype=torch.float32)
    bridge.eval()
    bridge.set_use_attn_result(True)
    layers = range(target.n_layers)
    heads = [f"blocks.{layer}.attn.hook_result" for layer in layers]
    residual = ["blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in layers)]
    names = [*heads, *residual]

    def method(**options: Any) -> Method:
        def run(tokens: np.ndarray, batch: int) -> tuple[Any, int]:
            sizes: list[int] = []

            def read(ids: Tensor) -> tuple[Tensor, Tensor]:
                _, cache = bridge.run_with_cache(ids, **options)
                found = [cache[name] for name in names]
                sizes.append(sum(one.numel() * one.element_size() for one in found))
                last = [
                    one[:, -1] if one.ndim == full else one
                    for one, full in zip(found, [4] * len(heads) + [3] * len(residual), strict=True)
                ]
                return torch.stack(last[: len(heads)], 1), torch.stack(last[len(heads) :], 1)

            return in_batches(read)(tokens, batch)[0], sum(sizes)

        return run

    # The first is what "its cached results" means in the table: hook_result of all heads, and the residual stream.
    return {
        "transformer_lens": method(names_filter=names),
        "transformer_lens_last_token": method(names_filter=names, pos_slice=-1),
        "transformer_lens_whole_cache": method(),
    }


def last_results(target: Target, kept: Any) -> np.ndarray:
    """What was read at the last token as (N, layers * heads + layers + 1, d_model), from whatever a method keeps."""
    if isinstance(kept, tuple):
        results, residual = kept
        return np.concatenate([results.reshape(len(results), -1, results.shape[-1]), residual], 1)
    sites = expand_sites(SITES, target.n_layers, target.n_heads)
    heads = [
        kept[s.label] @ result_basis(target, s)[1].astype(np.float32) for s in sites if s.kind == "result"
    ]
    residual = sorted(
        (s for s in sites if s.kind != "result"), key=lambda s: (s.layer, s.kind == "resid_post")
    )
    return np.stack([*heads, *(kept[s.label] for s in residual)], axis=1)


if __name__ == "__main__":
    sys.exit(main())
