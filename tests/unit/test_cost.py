"""The numbers of docs/cost.md are what its formulas give for the paper's configuration; and operations are counted once each."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from bench.cost import (
    Control,
    Decoder,
    Operations,
    Trained,
    check_target,
    run_target,
    search,
    train_backbone,
    train_generator,
    train_sae,
    write_candidates,
)

from inversescope.config import load_config
from inversescope.sampling.candidates import DENSE
from inversescope.targets.speed import linear

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/cost.md").read_text()
EXPONENT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
#: Tokens of a prompt; positions of a training step, filled up to the longest prompt, with its begin token.
T, T_M = 18, 25


def number(row: str) -> float:
    """The first number a · 10ᵇ in the last column of a row of the page's table of operations."""
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {row} |"))
    factor, power = re.findall(r"([\d.]+) · 10([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", line.rpartition(" | ")[2])[0]
    return float(factor) * 10.0 ** int(power.translate(EXPONENT))


def expected() -> dict[str, float]:
    """Row -> operations for config/paper.yaml, IOI on GPT-2 small."""
    whole = load_config([ROOT / "config/config.yaml", ROOT / "config/paper.yaml"])
    about = whole.experiments["ioi"]
    view = whole.of("ioi", "gpt2")
    paper, backbone = view.variant("paper"), view.backbone
    model = Decoder.gpt2(12, 768, 50257)
    control = Control(model, paper.n_heads, paper.d_head, model.D)
    N, Q, M, S = about.n_train, about.n_test, view.sampling.candidates, 144
    assert isinstance(about.n_reference, int)
    R, half = about.n_reference, (sum(range(12)) / 12 + 1) / 12
    sequences = S * paper.per_site
    passed = control.passed(model.D, paper.site_map_blocks)
    step = train_generator(sequences, T_M, model, passed, frozen=True)
    ravel = load_config([ROOT / "config/config.yaml", ROOT / "config/paper_ravel.yaml"])
    sae = ravel.of("ravel", "gemma-2-2b").sae
    return {
        "`extract_activations`": run_target((N + Q + R) * T, model.P, 1.0),
        "each job that runs the target, at its start": run_target(check_target(24, False), model.P, 1.0),
        "`train_backbone`": train_backbone(backbone.steps * backbone.batch_size * T_M, model),
        "`train_generator`, a step, backbone frozen": step,
        "the same, backbone trained too": train_generator(sequences, T_M, model, passed, frozen=False),
        "its neighbour search, a step (kernel pairs only)": search(sequences, N, 64),
        "all steps, frozen": paper.steps * step,
        "`compute_exact`, a site": search(Q, R, 64),
        "the same, all heads": S * search(Q, R, 64),
        "`sample_prompts`, writing candidates": write_candidates(S * Q * M * (T - 2), model, control.H),
        "the same, activations of candidates": run_target(S * Q * M * T, model.P, half),
        "the same, probabilities of cached neighbours": write_candidates(S * Q * DENSE * T, model, control.H),
        "the same, neighbours of the targets": search(Q, N, 64),
        "`train_sae`, an autoencoder of width W (RAVEL)": train_sae(
            sae.steps, sae.batch_size, 2304, sae.width
        ),
        "`run_mcmc`": run_target(S * Q * view.fcr.mcmc_evaluations * T, model.P, half),
    }


@pytest.mark.parametrize("row", expected())
def test_the_page_tells_what_its_formulas_give(row: str) -> None:
    """To the digits that it gives."""
    exact = expected()[row]
    assert number(row) == pytest.approx(exact, rel=0.5 / 10 + 1e-9)
    assert f"{number(row):.1e}" == f"{exact:.1e}"


def gigabytes(row: str) -> list[float]:
    """Sums of the last column of the page's rows of memory that begin so."""
    lines = [line for line in PAGE.splitlines() if line.startswith(f"| {row} |") and line.endswith(" GB |")]
    return [sum(map(float, re.findall(r"([\d.]+) GB", line.rpartition(" | ")[2]))) for line in lines]


def test_memory_of_the_page() -> None:
    """Trainings of config/paper.yaml: GPT-2's tensors, those of query and key, and site maps are small."""
    model = Decoder.gpt2(12, 768, 50257)
    control, maps, backbone = Control(model, 32, 64, 768), 144 * 768**2, model.P + model.P_o
    first = Trained(backbone, model.P)
    small = 2 * 12 * 768 * 32 * 64 + maps
    second = Trained(control.P_c + maps, small, backbone)
    step = 3 * 144 * 8 * (T_M * model.V + 2 * model.L * control.H * model.D)
    checkpoints = [
        first.memory(0, backbone + model.P_o),
        second.memory(0, control.P_c + maps + backbone + model.P_o, backbone),
    ]
    assert gigabytes("the same, its checkpoint") == pytest.approx([b / 1e9 for b in checkpoints], abs=0.15)
    steps = [first.memory(3 * 64 * T_M * model.V, 0), second.memory(step, 0, backbone)]
    told = [*gigabytes("`train_backbone`, a step"), *gigabytes("`train_generator`, a step")]
    assert told == pytest.approx([b / 1e9 for b in steps], abs=0.15)


def test_parameters_of_the_page() -> None:
    model = Decoder.gpt2(12, 768, 50257)
    told = dict(re.findall(r"^\| (P[_ocm]*)\b.* \| ([\d.]+) M \|$", PAGE, flags=re.M))
    control = Control(model, 32, 64, 768)
    found = {"P": model.P, "P_o": model.P_o, "P_m": control.passed(768) - control.P_c, "P_c": control.P_c}
    assert {name: f"{count / 1e6:.3g}" for name, count in found.items()} == told


@pytest.mark.parametrize("gelu", [False, True])
def test_a_product_is_counted_once(gelu: bool) -> None:
    """Forward and both gradients; what GELU was applied to is computed again, for its gradient."""
    x, weight = torch.randn(3, 5, 7, requires_grad=True), torch.randn(11, 7, requires_grad=True)
    once = 2 * math.prod(x.shape) * len(weight)
    with Operations() as found:
        y = linear(x, weight, None, gelu)
    assert found.total == once
    with Operations() as found:
        linear(x, weight, None, gelu).sum().backward()
    assert y.shape == (3, 5, 11) and found.total == (4 if gelu else 3) * once


def test_tokens_are_counted_by_embedding() -> None:
    one, other = torch.nn.Embedding(10, 4), torch.nn.Embedding(20, 4)
    with Operations() as found, torch.inference_mode():
        one(torch.zeros(2, 3, dtype=torch.int64)), other(torch.zeros(5, dtype=torch.int64))
    assert found.tokens == {(10, 4): 6, (20, 4): 5} and found.total == 0
