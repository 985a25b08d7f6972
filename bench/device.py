"""Speed of the device beside one core of the processor, at GPT-2 small's shape with random weights.

Extraction, training of the generator, sampling and exact values run on `--device`, and then on the processor with less to do. Both
give what was done in a second of wall clock, and the share of the measured peak of a float32 matrix product (of exact values, of a
float64 one) that this is. Where there is no GPU, its columns are empty. It takes six minutes at most.

    python -m bench.device --out results/bench/device.csv
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.tables import options, processor

# isort: split
import numpy as np
import pandas as pd
import torch
from bench.cost import Control, Decoder, run_target, search, train_generator, write_candidates
from bench.training import matrix_product_peaks

from inversescope import device
from inversescope.activations.capture import capture
from inversescope.config.targets import ArchitectureConfig
from inversescope.fcr.exact import exact_reference
from inversescope.generator.backbone import BackboneShape
from inversescope.generator.base import Rows
from inversescope.generator.condition import Condition
from inversescope.generator.inversescope import GeneratorShape, InverseScope
from inversescope.kernel.distances import distance_of
from inversescope.sampling.decode import decode
from inversescope.sites import Site
from inversescope.store import write_table
from inversescope.streams import stream_uniforms
from inversescope.targets.models import Target, build_model
from inversescope.targets.tokenizers import word_tokenizer
from inversescope.training import Schedule, train

LAYERS, WIDTH, VOCABULARY, TOKENS = 12, 768, 50_257, 18
MODEL = Decoder.gpt2(LAYERS, WIDTH, VOCABULARY)
CONTROL = Control(MODEL, 32, 64, WIDTH)
#: Steps, the first of which is not timed.
STEPS = 4


class Size(NamedTuple):
    """How much there is to do: prompts that are read, sequences of a training step, draws, reference prompts."""

    prompts: int
    sequences: int
    draws: int
    reference: int


#: The processor gets a part that takes it a minute in all.
ON_GPU, ON_CPU = Size(16_384, 1024, 4096, 200_000), Size(96, 16, 32, 20_000)


class Measured(NamedTuple):
    """One measurement: units done in a second, and operations in a second."""

    unit: str
    rate: float
    operations: float


def main() -> int:
    """Measure, print the table, and write it where asked."""
    parser = options(__doc__.splitlines()[0], "device")
    parser.add_argument("--device", default="auto", help="cuda, cuda:N, or auto: a GPU if there is one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device.choose(arguments.device)
    there = device.device()
    found = {} if device.on_cpu() else measure(ON_GPU)
    name = torch.cuda.get_device_name(there) if found else "none here"
    device.choose("cpu")
    table = as_table(found, measure(ON_CPU))
    print(f"GPU: {name}; processor: {processor()}, one thread")
    with pd.option_context("display.width", 220, "display.max_columns", None):
        print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}", na_rep="—"))
    if arguments.out is not None:
        write_table(table.assign(gpu_name=name), Path(arguments.out))
    return 0


def as_table(gpu: dict[str, Measured], cpu: dict[str, Measured]) -> pd.DataFrame:
    """A row a measurement; columns of the GPU are empty where there is none."""
    rows = []
    for name, one in cpu.items():
        peak = "peak, float64" if name == "exact values" else "peak, float32"
        row: dict[str, object] = {"what": name, "unit": f"{one.unit}/s", "cpu": one.rate}
        row["cpu_share_of_peak"] = one.operations / cpu[peak].operations
        other = gpu.get(name)
        row["gpu"] = other.rate if other else np.nan
        row["gpu_share_of_peak"] = other.operations / gpu[peak].operations if other else np.nan
        rows.append(row | {"ratio": other.rate / one.rate if other else np.nan})
    return pd.DataFrame(rows)


def measure(size: Size) -> dict[str, Measured]:
    """Everything, on the device of this process."""
    torch.manual_seed(0)
    shape = ArchitectureConfig(n_layers=LAYERS, n_heads=12, d_model=WIDTH, n_positions=64)
    found = {f"peak, {name}": peak(getattr(torch, name)) for name in ("float32", "float64")}
    model = build_model(shape, VOCABULARY, 0).to(device.device()).requires_grad_(False)
    found["extraction"] = extraction(Target(model, word_tokenizer(["one"]), "gpt2"), size.prompts)
    del model
    backbone = BackboneShape(VOCABULARY, 64, LAYERS, 12, WIDTH, 4 * WIDTH)
    generator = InverseScope(GeneratorShape(backbone, {"L0H0": 64}, {"L0H0": 1.0}, 32, 64, WIDTH))
    generator = generator.to(device.device())
    generator.backbone.requires_grad_(False)
    found["training"] = training(generator, size.sequences)
    found["sampling"] = sampling(generator.eval().requires_grad_(False), size.draws)
    found["exact values"] = exact(size.reference)
    return found


def seconds(run: Callable[[], object]) -> float:
    """Wall clock of a run, work that the device still has to do included."""
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Wait for the device."""
    if not device.on_cpu():
        torch.cuda.synchronize(device.device())


def peak(dtype: torch.dtype) -> Measured:
    """Operations in a second of a large square product, the best of several: on the processor in float32, of several libraries."""
    if device.on_cpu() and dtype == torch.float32:
        best = max(matrix_product_peaks().values())
        return Measured("operations", best, best)
    width = 1536 if device.on_cpu() else 8192
    a = torch.randn(width, width, device=device.device()).to(dtype)
    best = min(seconds(lambda: a @ a) for _ in range(4))
    return Measured("operations", 2 * width**3 / best, 2 * width**3 / best)


def extraction(target: Target, prompts: int) -> Measured:
    """All heads at the last token of unrelated prompts."""
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(prompts, TOKENS))
    sites = [Site.parse(f"L{layer}H{head}") for layer in range(LAYERS) for head in range(12)]
    capture(target, tokens[:8], sites)
    took = seconds(lambda: capture(target, tokens, sites))
    return Measured("prompts", prompts / took, run_target(prompts * TOKENS, MODEL.P, 1.0) / took)


def training(model: InverseScope, sequences: int) -> Measured:
    """Steps of control layers and site map on a frozen backbone; what a step learns from is at hand."""
    rng, here, times = np.random.default_rng(0), device.device(), list[float]()
    tokens = torch.from_numpy(rng.integers(VOCABULARY, size=(sequences, TOKENS))).to(here)
    z = {"L0H0": torch.from_numpy(rng.standard_normal((sequences, 64)).astype(np.float32)).to(here)}

    def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        wait()
        times.append(time.perf_counter())
        logp = model.log_probabilities(tokens[:, :-1], model.fold(Condition(z)), Rows())
        return -logp.gather(-1, tokens[:, 1:, None]).mean(), {}

    train(model, loss, Schedule(STEPS, 1e-4), name="", tokens_per_step=1, echo=lambda line: None)
    took = (times[-1] - times[1]) / (STEPS - 2)
    operations = train_generator(sequences, TOKENS, MODEL, CONTROL.passed(64), frozen=True)
    return Measured("tokens", sequences * TOKENS / took, operations / took)


def sampling(model: InverseScope, draws: int) -> Measured:
    """Draws for four activations, token by token."""
    z = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    condition = Condition({"L0H0": z}).to(device.device())
    uniforms = stream_uniforms(0, "bench", np.arange(4), np.arange(draws // 4), TOKENS - 2)
    decode(model, condition, uniforms[:, :1, :2], end=0)
    took = seconds(lambda: decode(model, condition, uniforms, end=0))
    tokens = draws * (TOKENS - 2)
    return Measured("tokens", tokens / took, write_candidates(tokens, MODEL, CONTROL.H) / took)


def exact(reference: int) -> Measured:
    """Exact values of 1,000 targets at five bandwidths, activations as wide as the residual stream."""
    rng, targets = np.random.default_rng(0), 1000
    z = rng.standard_normal((reference, WIDTH)).astype(np.float32)
    labels = {"feature": rng.integers(4, size=reference)}
    own = {"feature": labels["feature"][:targets]}
    epsilons = [0.85, 0.87, 0.89, 0.9, 0.91]
    queries = distance_of("cosine").prepare(z[:targets])
    took = seconds(lambda: exact_reference(queries, z, own, labels, epsilons))
    return Measured("distances", targets * reference / took, search(targets, reference, WIDTH) / took)


if __name__ == "__main__":
    sys.exit(main())
