"""Bandwidths as shares of the prior: their definition against brute force, and what a configuration makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import BASE, MODEL

from inversescope.config import merge, parse_config
from inversescope.config.methods import Bandwidth, KernelConfig
from inversescope.errors import InputError
from inversescope.kernel.bandwidths import epsilons_of_shares, headline_at, one_position, shares_of_epsilons
from inversescope.kernel.distances import DISTANCES, distance_of
from inversescope.workflow.plan import ExperimentPlan, Plan
from inversescope.workflow.used import value

SIZE, QUERIES, DIMENSION = 403, 21, 5
SHARES = [0.003, 0.1, 0.5, 0.97]


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((n, DIMENSION)).astype(np.float32) + 1 for n in (QUERIES, SIZE))  # type: ignore[return-value]


def held(distance: str, queries: np.ndarray, reference: np.ndarray, epsilon: float) -> np.ndarray:
    """Reference prompts within epsilon of each query (Q,), one pair at a time."""
    metric = distance_of(distance)
    return np.array(
        [(metric.paired(np.tile(q, (len(reference), 1)), reference) < epsilon).sum() for q in queries]
    )


@pytest.mark.parametrize("block", [SIZE, 1 << 26])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_median_ball_holds_the_share(distance: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inversescope.kernel.bandwidths.PAIRS", block)
    queries, reference = data()
    found = epsilons_of_shares(distance_of(distance), queries, reference, SHARES)
    assert found == sorted(found) and len(set(found)) == len(SHARES)
    for share, epsilon in zip(SHARES, found, strict=True):
        assert float(f"{epsilon:.6g}") == epsilon
        assert np.median(held(distance, queries, reference, epsilon)) == round(share * SIZE)
    measured = shares_of_epsilons(distance_of(distance), queries, reference, found)
    np.testing.assert_allclose(measured, np.round(np.multiply(SHARES, SIZE)) / SIZE)


def test_a_prompt_of_several_positions_is_as_far_as_its_nearest() -> None:
    queries, _ = data()
    reference = np.random.default_rng(1).standard_normal((SIZE, 3, DIMENSION)).astype(np.float32)
    (epsilon,) = epsilons_of_shares(distance_of("cosine"), queries, reference, [0.2])
    assert np.median(held("cosine", queries, reference, epsilon)) == round(0.2 * SIZE)
    assert one_position(reference).tolist() == [reference[i, i % 3].tolist() for i in range(SIZE)]


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_ball_is_never_smaller_than_rounding_errors(distance: str) -> None:
    """At a site that knows three kinds of prompts, a share of a tenth means all prompts of the target's kind."""
    rng = np.random.default_rng(2)
    kinds = 100 * rng.standard_normal((3, DIMENSION)).astype(np.float32)
    reference = np.repeat(kinds, 100, 0) * (1 + 1e-7 * rng.standard_normal((300, 1))).astype(np.float32)
    metric, queries = distance_of(distance), kinds[rng.integers(3, size=QUERIES)]
    (epsilon,) = epsilons_of_shares(metric, queries, reference, [0.1])
    assert epsilon == pytest.approx(metric.resolution(queries), rel=1e-5)
    assert shares_of_epsilons(metric, queries, reference, [epsilon]) == [pytest.approx(1 / 3)]


def test_a_share_is_found_without_validation_prompts() -> None:
    _, reference = data()
    assert headline_at(KernelConfig(epsilon=0.3), reference) == 0.3
    epsilon = headline_at(KernelConfig(share=0.05), reference)
    assert np.median(held("cosine", reference[:200], reference, epsilon)) == pytest.approx(0.05 * SIZE, abs=1)


def test_a_bandwidth_is_called_by_its_value() -> None:
    shown = {Bandwidth("epsilon", 0.1): "ε = 0.1", Bandwidth("share", 0.003): "0.3% of the prior"}
    for bandwidth, label in shown.items():
        assert bandwidth.label == label
        assert Bandwidth.parse(str(bandwidth)) == bandwidth


SHARED: dict[str, Any] = {
    "experiments": {"ioi": {"n_val": 9, "n_reference": 700, "variants": ["paper", "default", "paper_share"]}},
    "kernel": {"epsilons": [0.02], "share": 0.05, "shares": [0.1]},
    "variants": {
        "default": {"share_range": [0.01, 0.2]},
        "paper_share": {"base": "paper", "steps": 20, "n_heads": 4, "d_head": 4, "share": 0.03},
    },
}


def planned(delta: dict[str, Any] | None = None) -> ExperimentPlan:
    return Plan(parse_config(merge(merge(BASE, SHARED), delta or {})))["ioi", MODEL]


def test_what_is_read_by_share() -> None:
    plan = planned()
    assert [str(one) for one in plan.bandwidths] == [
        "epsilon 0.02",
        "epsilon 0.1",  # what `paper` is trained for
        "share 0.03",
        "share 0.05",
        "share 0.1",
    ]
    assert plan.config.shares == [0.01, 0.03, 0.05, 0.1, 0.2]
    assert plan.bandwidth_table == [f"results/ioi/{MODEL}/bandwidths.csv"]
    read = {name: [str(one) for one in plan.config.bandwidths_of(name)] for name in plan.studied}
    assert read == {
        "paper": ["epsilon 0.1"],
        "default": ["epsilon 0.02", "share 0.05", "share 0.1"],
        "paper_share": ["share 0.03"],
    }
    shown = {name: str(plan.config.headline_of(name)) for name in plan.studied}
    assert shown == {"paper": "epsilon 0.1", "default": "share 0.05", "paper_share": "share 0.05"}


@pytest.mark.parametrize(
    ("delta", "again"),
    [
        ({"kernel": {"epsilons": [0.02, 0.2]}}, True),  # it reaches as far as it is read
        ({"kernel": {"share": 0.04}}, True),
        ({"variants": {"paper_share": {"share": 0.02}}}, False),
    ],
)
def test_a_generator_is_made_again_for_other_bandwidths(delta: dict[str, Any], again: bool) -> None:
    assert (value(planned(), "training/default") != value(planned(delta), "training/default")) == again
    assert value(planned(), "training/paper") == value(planned(delta), "training/paper")


@pytest.mark.parametrize(
    ("delta", "culprits"),
    [
        ({"experiments": {"ioi": {"n_val": 0}}}, ["ioi.n_val", "validation", "n_val: 100"]),
        (
            {"experiments": {"ioi": {"n_reference": 299}}},
            ["ioi.n_reference", "1% of the prior holds 2.99 of 299", "raise n_reference", "share_range"],
        ),
        ({"kernel": {"share": 1.0}}, ["kernel.share", "less than 1"]),
        ({"kernel": {"shares": [0.0]}}, ["kernel.shares", "greater than 0"]),
        ({"variants": {"paper_share": {"epsilon": 0.1}}}, ["paper_share", "epsilon and for a share"]),
        ({"variants": {"default": {"share_range": [0.2, 0.1]}}}, ["default", "share_range runs from 0.2"]),
    ],
)
def test_shares_that_cannot_be_read_are_refused(delta: dict[str, Any], culprits: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        planned(delta)
    for culprit in culprits:
        assert culprit in str(raised.value)
