"""Estimators against enumeration: each is unbiased, or consistent, on a toy prior on which everything is known."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from inversescope.fcr.estimators import (
    CacheDraws,
    Estimate,
    GeneratorDraws,
    combined,
    refusal,
    relative_weights,
    reweighted,
    weighted_match,
)
from inversescope.fcr.exact import exact_reference
from inversescope.fcr.intervals import bootstrap_means
from inversescope.fcr.resampling import ends
from inversescope.kernel.distances import DISTANCES, distance_of
from inversescope.kernel.kernel import kernel_values, support_radius

# The exact reference


@pytest.mark.parametrize("block", [13, 10_000])
@pytest.mark.parametrize("kind", ["hard", "gaussian"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_exact_reference_equals_naive_loops(distance: str, kind: str, block: int) -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((150, 3)).astype(np.float32)
    queries = np.concatenate([reference[:6], [[30.0, -40.0, 20.0]]]).astype(np.float32)
    if distance == "cosine":
        queries[-1] = reference[7]
    scale = {"cosine": 1.0, "euclidean": 4.0, "normalised_euclidean": 2.5}[distance]
    epsilons = [scale * e for e in (0.2, 0.01, 0.08)]  # in any order
    labels = {"a": rng.integers(0, 3, 150), "b": rng.integers(-1, 2, 150)}
    own = {"a": rng.integers(0, 3, 7), "b": rng.integers(0, 2, 7)}
    found = exact_reference(
        distance_of(distance).prepare(queries), reference, own, labels, epsilons, distance, kind, block
    )
    for q in range(7):
        d = distance_of(distance).paired(np.tile(queries[q], (150, 1)), reference)
        for e, epsilon in enumerate(epsilons):
            k = np.where(d < support_radius(epsilon, kind), kernel_values(d, epsilon, kind), 0.0)
            assert found.count[q, e] == (k > 0).sum()
            assert found.mass[q, e] == pytest.approx(k.sum(), rel=1e-4)
            if k.sum() == 0:
                assert math.isnan(found.entropy[q, e]) and math.isnan(found.match["a"][q, e])
                continue
            p = k[k > 0] / k.sum()
            assert found.entropy[q, e] == pytest.approx(-(p * np.log(p)).sum(), abs=2e-4)
            for name in labels:
                expected = (k * (labels[name] == own[name][q])).sum() / k.sum()
                assert found.match[name][q, e] == pytest.approx(expected, abs=1e-4)
    assert (found.count[:6] > 1).any() and (distance == "cosine" or found.count[6, 1] == 0)


def test_exact_values_do_not_depend_on_the_other_bandwidths() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((200, 3)).astype(np.float32)
    labels = {"a": rng.integers(0, 3, 200)}
    for kind in ("hard", "gaussian"):
        alone = exact_reference(
            distance_of("cosine").prepare(z[:5]), z, {"a": labels["a"][:5]}, labels, [0.02], kind=kind
        )
        among = exact_reference(
            distance_of("cosine").prepare(z[:5]), z, {"a": labels["a"][:5]}, labels, [0.5, 0.02], kind=kind
        )
        assert (among.count[:, 1] == alone.count[:, 0]).all()
        np.testing.assert_allclose(among.mass[:, 1], alone.mass[:, 0])
        np.testing.assert_allclose(among.match["a"][:, 1], alone.match["a"][:, 0])


# A toy on which everything is known


@dataclass
class Toy:
    """A uniform prior of N prompts and one target: kernel values, matches, a skewed generator, a cache that holds a part out."""

    kernel: np.ndarray  # (N,)
    match: np.ndarray  # (N,)
    q: np.ndarray  # (N,) the generator; what is missing to 1 are unparseable texts
    held: np.ndarray  # (N,) bool, what the cache may hold

    @property
    def size(self) -> int:
        return len(self.kernel)

    @property
    def posterior(self) -> np.ndarray:
        return self.kernel / self.kernel.sum()

    @property
    def truth(self) -> float:
        return float((self.posterior * self.match).sum())

    def draw(self, n: int, rng: np.random.Generator, q: np.ndarray | None = None) -> GeneratorDraws:
        q = self.q if q is None else q
        index = rng.choice(self.size + 1, size=n, p=[*q, max(0.0, 1.0 - q.sum())])
        parsed = index < self.size
        index = np.minimum(index, self.size - 1)
        density = np.where(self.held[index], -math.log(self.held.sum()), -np.inf)
        with np.errstate(divide="ignore"):
            return GeneratorDraws(
                match=self.match[index] * parsed,
                kernel=self.kernel[index] * parsed,
                log_prior=np.full(n, -math.log(self.size)),
                log_density=np.where(parsed, density, -np.inf),
                log_q=np.log(q[index]),
            )

    def cache(self, n: int, rng: np.random.Generator, dense: bool) -> CacheDraws:
        """Distinct cached prompts, as the workflow draws them."""
        rows = rng.choice(np.flatnonzero(self.held), size=n, replace=False)
        rows = rows[self.kernel[rows] > 0]
        return CacheDraws(
            match=self.match[rows],
            kernel=self.kernel[rows],
            log_prior=np.full(len(rows), -math.log(self.size)),
            log_density=np.full(len(rows), -math.log(self.held.sum())),
            log_q=None if dense else np.log(self.q[rows]),
            size=n,
        )


def toy(kind: str, seed: int = 0) -> Toy:
    rng = np.random.default_rng(seed)
    size = 600
    d = rng.uniform(0.0, 0.4, size)
    kernel = kernel_values(d, 0.1, kind) * (d < support_radius(0.1, kind))
    match = (rng.random(size) < 0.25 + 0.5 * (d < 0.05)).astype(float)
    # The generator prefers what matches and what is near, and writes something else at times.
    score = 1.5 * match - 6.0 * d + 0.5 * rng.standard_normal(size)
    q = np.exp(score) / np.exp(score).sum() * 0.9
    held = rng.random(size) < 0.8
    return Toy(kernel, match, q, held)


def averaged(
    estimate: Callable[[np.random.Generator], Estimate], replications: int
) -> tuple[float, float, float]:
    """Mean over replications, its standard error, the standard deviation of one."""
    rng = np.random.default_rng(7)
    values = np.array([estimate(rng).value for _ in range(replications)])
    values = values[np.isfinite(values)]
    return float(values.mean()), float(values.std() / len(values) ** 0.5), float(values.std())


def agrees(
    t: Toy, estimate: Callable[[np.random.Generator], Estimate], replications: int = 400, bias: float = 0.004
) -> None:
    """The mean is the truth within its error; `bias` is what self-normalised weights are allowed at this size."""
    mean, error, _ = averaged(estimate, replications)
    assert error < 0.01 and abs(mean - t.truth) < 4.0 * error + bias, (mean, error, t.truth)


@pytest.mark.parametrize("kind", ["hard", "gaussian"])
def test_generated_is_unbiased_for_an_exact_generator(kind: str) -> None:
    t = toy(kind)

    def estimate(rng: np.random.Generator) -> Estimate:
        drawn = t.draw(50, rng, t.posterior)
        return weighted_match(drawn.match, (drawn.kernel > 0).astype(float))  # equation 1: a plain mean

    agrees(t, estimate, bias=0.0)
    skewed, error, _ = averaged(
        lambda rng: (d := t.draw(200, rng)) and weighted_match(d.match, (d.kernel > 0) * 1.0), 200
    )
    assert skewed - t.truth > 0.1  # and biased for another one


@pytest.mark.parametrize("kind", ["hard", "gaussian"])
def test_reweighted_is_consistent_for_a_skewed_generator(kind: str) -> None:
    t = toy(kind)

    def estimate(n: int) -> Callable[[np.random.Generator], Estimate]:
        def one(rng: np.random.Generator) -> Estimate:
            d = t.draw(n, rng)
            return reweighted(d.match, d.kernel, d.log_prior, d.log_q)

        return one

    few, _, _ = averaged(estimate(50), 400)
    agrees(t, estimate(2000), 200, bias=0.006)
    plain, _, _ = averaged(lambda rng: (d := t.draw(2000, rng)) and weighted_match(d.match, d.kernel), 100)
    assert abs(few - t.truth) < 0.3 * (plain - t.truth)


@pytest.mark.parametrize("kind", ["hard", "gaussian"])
def test_cache_alone_is_unbiased_for_what_it_can_hold(kind: str) -> None:
    t = toy(kind)
    t.held[:] = True
    agrees(t, lambda rng: (c := t.cache(200, rng, True)) and weighted_match(c.match, c.kernel), 800)
    half = Toy(t.kernel, t.match, t.q, t.match == 0)
    mean, _, _ = averaged(
        lambda rng: (c := half.cache(100, rng, True)) and weighted_match(c.match, c.kernel), 50
    )
    assert mean == 0.0  # what is held out of the cache, it cannot know of


@pytest.mark.parametrize("dense", [False, True], ids=["balance heuristic", "partition"])
@pytest.mark.parametrize("kind", ["hard", "gaussian"])
def test_combined_is_consistent(kind: str, dense: bool) -> None:
    """Also where the cache holds out prompts that match more often: neither source knows the truth by itself."""
    t = toy(kind)
    t.held = np.random.default_rng(5).random(t.size) < np.where(t.match > 0, 0.5, 0.95)
    cache_alone, _, _ = averaged(
        lambda rng: (c := t.cache(200, rng, True)) and weighted_match(c.match, c.kernel), 200
    )
    assert t.truth - cache_alone > 0.1
    agrees(t, lambda rng: combined(t.cache(200, rng, dense), t.draw(600, rng)), 400, bias=0.006)


def test_combined_beats_both_of_its_sources() -> None:
    t = toy("hard")
    t.held[:] = True

    def error(estimate: Callable[[np.random.Generator], Estimate]) -> float:
        mean, _, deviation = averaged(estimate, 400)
        return math.hypot(mean - t.truth, deviation)

    def weights_alone(rng: np.random.Generator) -> Estimate:
        d = t.draw(100, rng)
        return reweighted(d.match, d.kernel, d.log_prior, d.log_q)

    cache_alone = error(lambda rng: (c := t.cache(60, rng, True)) and weighted_match(c.match, c.kernel))
    both = error(lambda rng: combined(t.cache(60, rng, False), t.draw(100, rng)))
    assert both < 0.9 * min(cache_alone, error(weights_alone))


def test_combined_with_one_source_is_that_source() -> None:
    t, rng = toy("gaussian"), np.random.default_rng(0)
    cached, drawn = t.cache(200, rng, False), t.draw(80, rng)
    nothing = np.zeros(0)
    empty_cache = CacheDraws(nothing, nothing, nothing, nothing, nothing, 0)
    nobody = GeneratorDraws(nothing, nothing, nothing, nothing, nothing)
    # Without a cache its density is 0 wherever the generator goes.
    outside = GeneratorDraws(drawn.match, drawn.kernel, drawn.log_prior, np.full(80, -np.inf), drawn.log_q)
    expected = reweighted(drawn.match, drawn.kernel, drawn.log_prior, drawn.log_q)
    assert combined(empty_cache, outside) == expected
    all_refused = GeneratorDraws(
        drawn.match, 0 * drawn.kernel, drawn.log_prior, drawn.log_density, drawn.log_q
    )
    dense = t.cache(200, rng, True)
    for generator in (nobody, all_refused):
        found = combined(dense, generator)
        assert found.value == pytest.approx(weighted_match(dense.match, dense.kernel).value, abs=1e-3)
    assert math.isnan(combined(empty_cache, nobody).value)
    empty_dense = CacheDraws(nothing, nothing, nothing, nothing, None, 200)
    inside = GeneratorDraws(drawn.match, drawn.kernel, drawn.log_prior, np.full(80, -7.0), drawn.log_q)
    assert math.isnan(combined(empty_dense, inside).value)
    assert combined(cached, drawn).n == (cached.kernel > 0).sum() + (drawn.kernel > 0).sum()


def test_balance_heuristic_by_hand() -> None:
    """Two prompts in the cache, three candidates: weights kernel prior / (n0 p0 + n1 q), whichever source they came from."""
    cache = CacheDraws(
        match=np.array([1.0, 0.0]),
        kernel=np.ones(2),
        log_prior=np.log([0.1, 0.1]),
        log_density=np.log([0.125, 0.125]),
        log_q=np.log([0.4, 0.01]),
        size=4,
    )
    drawn = GeneratorDraws(
        match=np.array([1.0, 1.0, 0.0]),
        kernel=np.array([1.0, 1.0, 0.0]),
        log_prior=np.log([0.1, 0.1, 0.1]),
        log_density=np.array([np.log(0.125), -np.inf, np.log(0.125)]),
        log_q=np.log([0.4, 0.2, 0.3]),
    )
    weight = 0.1 / np.array([0.5 + 1.2, 0.5 + 0.03, 0.5 + 1.2, 0.6])
    estimate = combined(cache, drawn)
    assert estimate.value == pytest.approx((weight * [1, 0, 1, 1]).sum() / weight.sum())
    assert estimate.ess == pytest.approx(weight.sum() ** 2 / (weight**2).sum()) and estimate.n == 4
    # Dense: the cache speaks for what it can hold, the candidate outside for the rest.
    cache.log_q = None
    weight = np.array([0.1 / 0.5, 0.1 / 0.5, 0.1 / 0.6])
    assert combined(cache, drawn).value == pytest.approx((weight * [1, 0, 1]).sum() / weight.sum())


def test_weights_survive_tiny_and_huge_logarithms() -> None:
    weight = relative_weights(np.array([-5000.0, -5000.0 + math.log(3.0), -np.inf]))
    np.testing.assert_allclose(weight / weight.sum(), [0.25, 0.75, 0.0])
    drawn = [np.array([1.0, 0.0]), np.ones(2), np.full(2, -900.0), np.array([-2000.0, -2000.0])]
    assert reweighted(*drawn).value == 0.5


def test_missing_is_missing() -> None:
    for estimate in (
        weighted_match(np.zeros(0), np.zeros(0)),
        weighted_match(np.ones(3), np.zeros(3)),
        reweighted(np.ones(3), np.zeros(3), np.zeros(3), np.zeros(3)),
    ):
        assert math.isnan(estimate.value) and (estimate.n, estimate.ess) == (0, 0.0)


# Refusal


def test_refusal_entropy_and_size_are_the_true_ones() -> None:
    t = toy("hard")
    accepted_set = t.kernel > 0
    rate = t.q[accepted_set].sum()
    p = t.q[accepted_set] / rate
    entropy, size = -(p * np.log(p)).sum(), math.log(accepted_set.sum())
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        d = t.draw(400, rng)
        parsed = d.log_q > -np.inf  # the share that is parsed matters to neither number
        found.append(refusal(parsed, d.kernel > 0, d.log_q, np.zeros(400, bool), np.zeros(400)))
    entropies, sizes = np.array([f.entropy for f in found]), np.array([f.log_mass for f in found])
    assert abs(entropies.mean() - entropy) < 4 * entropies.std() / 300**0.5 + 0.01
    assert abs(sizes.mean() - size) < 4 * sizes.std() / 300**0.5 + 0.01
    assert abs(np.mean([1 - f.rate for f in found]) - rate) < 0.01
    uniform = math.log(accepted_set.sum())
    assert uniform - entropy > 0.2  # neither is the entropy of the uniform distribution


def test_refusal_counts_raw_candidates() -> None:
    parsed = np.array([True, True, True, False, False])
    accepted = np.array([True, True, False, False, False])
    copies = np.array([True, False, True, False, False])
    found = refusal(parsed, accepted, np.log([0.5, 0.25, 0.1, 0.1, 0.1]), copies, np.log([0.2] * 5))
    assert (found.n, found.parse, found.distance, found.rate) == (
        5,
        0.4,
        pytest.approx(0.2),
        pytest.approx(0.6),
    )
    assert found.copies == 0.5
    assert found.entropy == pytest.approx(-np.log([0.5, 0.25]).mean() + math.log(0.4))
    assert found.log_mass == pytest.approx(math.log((2 + 4) / 5 * 0.2))
    nobody = refusal(parsed, accepted & False, np.zeros(5), copies, np.zeros(5))
    assert nobody.rate == 1.0
    assert all(math.isnan(x) for x in (nobody.entropy, nobody.copies, nobody.log_mass))


# Intervals


def test_bootstrap_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    n, studies = 50, 400
    values = rng.beta(0.5, 1.0, (studies, n))  # rates of target prompts, skewed
    mean, low, high = bootstrap_means(values, resamples=500, seed=1)
    np.testing.assert_allclose(mean, values.mean(1))
    covered = ((low <= 1 / 3) & (1 / 3 <= high)).mean()
    assert 0.90 < covered < 0.98
    width = (high - low).mean() / (2 * 1.96 * stats.beta(0.5, 1.0).std() / n**0.5)
    assert 0.9 < width < 1.1
    _, narrow, wide = bootstrap_means(values[:20], resamples=500, confidence=0.5, seed=1)
    assert ((wide - narrow) < 0.5 * (high - low)[:20]).all()


def test_bootstrap_intervals_are_scipys() -> None:
    values = np.random.default_rng(0).random((3, 30))
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        axis=-1,
        vectorized=True,
        n_resamples=700,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng([3, 7]),
    ).confidence_interval
    _, low, high = bootstrap_means(values, 700, 0.9, seed=3)
    np.testing.assert_allclose([low, high], [theirs.low, theirs.high], rtol=1e-12)


def test_missing_targets_are_left_out_of_their_row_alone() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((4, 30))
    values[1, 5:] = np.nan
    values[2] = np.nan
    values[3, 1:] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, low, high = bootstrap_means(values, resamples=300)
    np.testing.assert_allclose(mean[[0, 1, 3]], [values[0].mean(), values[1, :5].mean(), values[3, 0]])
    assert all(math.isnan(x[2]) for x in (mean, low, high))
    assert low[3] == high[3] == mean[3]  # one target tells nothing of the spread
    alone = bootstrap_means(values[1:2, :5], resamples=300)
    np.testing.assert_allclose([mean[1], low[1], high[1]], np.ravel(alone))
    assert values[1, :5].min() <= low[1] < mean[1] < high[1] <= values[1, :5].max()


def test_bootstrap_is_repeatable_and_takes_constants() -> None:
    values = np.random.default_rng(0).random((3, 20))
    values[2] = 0.25
    first, again = bootstrap_means(values, seed=4), bootstrap_means(values, seed=4)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[1], bootstrap_means(values, seed=5)[1])
    np.testing.assert_allclose([x[2] for x in first], 0.25)


def test_an_error_lies_in_its_interval() -> None:
    """Chance raises the mean of absolute values in every resample: above the error itself, where that is small."""
    rng = np.random.default_rng(3)
    difference = rng.standard_normal((12, 30))
    difference -= difference.mean(1, keepdims=True)  # an error of exactly 0 in each of 12 rates
    difference += 0.02
    draws = rng.integers(30, size=(400, 30))
    error = float(np.abs(difference.mean(1)).mean())
    again = np.abs(difference[:, draws].mean(2)).mean(0)
    assert ends(again, 0.95)[0] > error, "as they stand, the resamples lie above it"
    low, high = ends(again, 0.95, error)
    assert 0.0 <= low <= error <= high
    assert high - low <= np.diff(ends(again, 0.95))[0] + 1e-12
