"""Distances, kernels and the noise of Appendix B against densities integrated on their own, from 2 to 4,608 dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from numpy.polynomial.legendre import leggauss
from scipy import integrate, stats

from inversescope.config.methods import KernelConfig
from inversescope.errors import InputError
from inversescope.kernel.distances import DISTANCES, distance_of, products
from inversescope.kernel.kernel import (
    check_bandwidth,
    effective_sample_size,
    kernel_values,
    support_radius,
    truncate_weights,
)
from inversescope.kernel.noise import sample_angles, sample_radii

COSINE = distance_of("cosine")
DIMENSIONS = [2, 3, 16, 64, 768, 4608]
P_VALUE = 1e-3  # seeds are fixed: a pass or a failure repeats


def angle_log_density(n: int, epsilon: float, kind: str) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Logarithm of k((1 - cos t) / epsilon) sin(t)^(n - 2), written down anew, and the end of its support."""

    def log_density(t: np.ndarray) -> np.ndarray:
        d = 2.0 * np.sin(t / 2.0) ** 2  # 1 - cos t
        with np.errstate(divide="ignore"):
            volume = (n - 2) * np.log(np.sin(t)) if n > 2 else 0.0 * t
        return volume if kind == "hard" else volume - (d / epsilon) ** 2

    end = 2.0 * math.asin(math.sqrt(min(epsilon, 2.0) / 2.0)) if kind == "hard" else math.pi
    return log_density, end


def cdf(log_density: Callable[[np.ndarray], np.ndarray], end: float, at: np.ndarray) -> np.ndarray:
    """CDF on [0, end] at ascending points, by Gauss-Legendre between them and adaptive quadrature beyond them."""
    peak = float(log_density(np.linspace(end * 1e-6, end * (1 - 1e-9), 200_001)).max())

    def density(t: float) -> float:
        return float(np.exp(log_density(np.asarray(t)) - peak))

    nodes, weights = leggauss(12)
    low, high = at[:-1, None], at[1:, None]
    points = (low + high) / 2 + (high - low) / 2 * nodes
    between = (np.exp(log_density(points) - peak) * weights).sum(1) * (high - low)[:, 0] / 2
    options = {"limit": 500, "epsabs": 0.0, "epsrel": 1e-9}
    # Break the ends up near the points, where the mass is: far away the density underflows.
    span = at[-1] - at[0]
    breaks = [0.0, *(at[0] - span * s for s in (1.0, 0.1) if at[0] > span * s), float(at[0])]
    before = sum(
        integrate.quad(density, a, b, **options)[0] for a, b in zip(breaks, breaks[1:], strict=False)
    )
    breaks = [float(at[-1]), *(at[-1] + span * s for s in (0.1, 1.0) if at[-1] + span * s < end), end]
    after = sum(integrate.quad(density, a, b, **options)[0] for a, b in zip(breaks, breaks[1:], strict=False))
    total = before + between.sum() + after
    return (before + np.concatenate([[0.0], np.cumsum(between)])) / total


def vector(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n) * 3.0


def parts(z: np.ndarray, noised: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angle to z, unit vector orthogonal to z, norm relative to z, of noised copies (N, n) of one z (n,)."""
    axis = z / np.linalg.norm(z)
    along = noised @ axis
    across = noised - along[:, None] * axis
    length = np.linalg.norm(across, axis=1)
    return (
        np.arctan2(length, along),
        across / length[:, None],
        np.linalg.norm(noised, axis=1) / np.linalg.norm(z),
    )


# Noise


@pytest.mark.parametrize("kind", ["hard", "gaussian"])
@pytest.mark.parametrize("n", DIMENSIONS)
@pytest.mark.parametrize("epsilon", [0.005, 0.1])
def test_angles_invert_their_cdf(n: int, kind: str, epsilon: float) -> None:
    u = np.linspace(0.0005, 0.9995, 400)
    angles = sample_angles(u, n, epsilon, kind)
    assert (np.diff(angles) > 0).all()
    log_density, end = angle_log_density(n, epsilon, kind)
    assert angles[-1] < end
    np.testing.assert_allclose(cdf(log_density, end, angles), u, atol=2e-5)


def test_wide_bandwidth_covers_the_sphere() -> None:
    # At epsilon >= 2 every direction lies within the hard kernel: cos t is uniform in three dimensions.
    u = np.linspace(0.001, 0.999, 99)
    np.testing.assert_allclose(1.0 - np.cos(sample_angles(u, 3, 2.5, "hard")), 2.0 * u, atol=1e-4)


@pytest.mark.parametrize("kind", ["hard", "gaussian"])
@pytest.mark.parametrize("n", DIMENSIONS)
def test_noise_follows_its_density(n: int, kind: str) -> None:
    count = 4000 if n <= 64 else 800
    z, epsilon, band = vector(n), 0.1, 0.1
    noised = COSINE.perturb(np.tile(z, (count, 1)), epsilon, np.random.default_rng([n, 1]), kind, band)
    angle, direction, norm = parts(z, noised)

    log_density, end = angle_log_density(n, epsilon, kind)
    assert stats.kstest(cdf(log_density, end, np.sort(angle)), "uniform").pvalue > P_VALUE
    if kind == "hard":
        assert (COSINE.between(COSINE.prepare(z[None]), COSINE.prepare(noised)) < epsilon).all()

    # The norm has density rho^(n - 1) within the band.
    low, high = 1.0 - band, 1.0 + band
    assert (norm > low - 1e-12).all() and (norm < high + 1e-12).all()
    share = ((norm / high) ** n - (low / high) ** n) / (1.0 - (low / high) ** n)
    assert stats.kstest(share, "uniform").pvalue > P_VALUE

    # The direction is uniform on the sphere of the n - 1 dimensions orthogonal to z.
    axis = z / np.linalg.norm(z)
    fixed = np.random.default_rng(5).standard_normal(n)
    fixed -= (fixed @ axis) * axis
    projection = direction @ (fixed / np.linalg.norm(fixed))
    if n == 2:
        assert stats.binomtest(int((projection > 0).sum()), count).pvalue > P_VALUE
    else:
        assert stats.binomtest(int((projection > 0).sum()), count).pvalue > P_VALUE
        assert stats.kstest(projection**2, stats.beta(0.5, (n - 2) / 2).cdf).pvalue > P_VALUE
        assert stats.spearmanr(projection, angle).pvalue > P_VALUE
    assert stats.spearmanr(norm, angle).pvalue > P_VALUE


@pytest.mark.parametrize("band", [0.02, 0.5])
def test_band_is_the_one_asked_for(band: float) -> None:
    z = vector(8)
    noised = COSINE.perturb(np.tile(z, (4000, 1)), 0.1, np.random.default_rng(0), norm_band=band)
    norm = parts(z, noised)[2]
    assert 1 - band < norm.min() < 1 - 0.9 * band and 1 + 0.9 * band < norm.max() < 1 + band


@pytest.mark.parametrize("distance", ["euclidean", "normalised_euclidean"])
@pytest.mark.parametrize("kind", ["hard", "gaussian"])
@pytest.mark.parametrize("n", DIMENSIONS)
def test_euclidean_noise_follows_its_density(n: int, kind: str, distance: str) -> None:
    count = 4000 if n <= 64 else 800
    z, epsilon = vector(n), 0.3
    noise = (
        distance_of(distance).perturb(np.tile(z, (count, 1)), epsilon, np.random.default_rng([n, 2]), kind)
        - z
    )
    radius = np.linalg.norm(noise, axis=1)
    scaled = radius / (np.linalg.norm(z) if distance == "normalised_euclidean" else 1.0) / epsilon
    law = stats.gamma(n / 2) if kind == "gaussian" else stats.uniform()
    value = scaled**2 if kind == "gaussian" else scaled**n
    assert stats.kstest(value, law.cdf).pvalue > P_VALUE
    projection = noise[:, 0] / radius
    assert stats.binomtest(int((projection > 0).sum()), count).pvalue > P_VALUE
    assert stats.kstest(projection**2, stats.beta(0.5, (n - 1) / 2).cdf).pvalue > P_VALUE
    assert stats.spearmanr(projection, radius).pvalue > P_VALUE


@pytest.mark.parametrize("n", DIMENSIONS)
def test_gaussian_radii_invert_their_cdf(n: int) -> None:
    u = np.linspace(0.001, 0.999, 300)
    radii = sample_radii(u, n, 0.2, "gaussian")
    np.testing.assert_allclose(stats.gamma(n / 2).cdf((radii / 0.2) ** 2), u, atol=2e-5)


def test_each_row_has_its_own_noise_and_the_seed_decides() -> None:
    z = np.random.default_rng(0).standard_normal((50, 16))
    first = COSINE.perturb(z, 0.1, np.random.default_rng(3))
    np.testing.assert_array_equal(first, COSINE.perturb(z, 0.1, np.random.default_rng(3)))
    assert len(np.unique(np.round(COSINE.paired(z, first), 12))) == 50


@pytest.mark.parametrize("epsilon", [0.0, -0.1, math.nan, math.inf])
def test_bandwidths_that_define_no_neighbourhood(epsilon: float) -> None:
    with pytest.raises(InputError, match=r"epsilon = .* is not positive.*kernel\.epsilon > 0"):
        check_bandwidth(epsilon)
    with pytest.raises(InputError, match="is not positive"):
        COSINE.perturb(np.ones((2, 3)), epsilon, np.random.default_rng(0))


def test_noise_needs_two_dimensions() -> None:
    with pytest.raises(InputError, match="dimension 2 or more, got 1"):
        COSINE.perturb(np.ones((2, 1)), 0.1, np.random.default_rng(0))


# Distances and kernels


def naive(query: np.ndarray, key: np.ndarray, distance: str) -> float:
    if distance == "cosine":
        dot = math.fsum(float(a) * float(b) for a, b in zip(query, key, strict=True))
        return 1.0 - dot / math.sqrt(
            math.fsum(float(a) ** 2 for a in query) * math.fsum(float(b) ** 2 for b in key)
        )
    length = math.sqrt(math.fsum((float(a) - float(b)) ** 2 for a, b in zip(query, key, strict=True)))
    if distance == "euclidean":
        return length
    return length / math.sqrt(math.fsum(float(a) ** 2 for a in query))


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_equal_naive_ones(distance: str) -> None:
    rng = np.random.default_rng(1)
    queries, keys = rng.standard_normal((7, 12)), rng.standard_normal((9, 12))
    expected = np.array([[naive(q, k, distance) for k in keys] for q in queries])
    metric = distance_of(distance)

    single = [x.astype(np.float32) for x in (queries, keys)]
    found = metric.between(*map(metric.prepare, single))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-7)
    np.testing.assert_allclose(metric.paired(queries, keys[:7]), np.diag(expected), atol=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dimension", [3, 64, 4608])
def test_distances_are_the_same_whatever_the_order_of_sums(distance: str, dimension: int) -> None:
    rng = np.random.default_rng(2)
    # One direction that all share, as in pretrained models, and norms that differ by a factor of ten.
    z = rng.standard_normal(dimension) * 20 + rng.standard_normal((40, dimension))
    z = (z * rng.uniform(0.1, 1, (40, 1))).astype(np.float32)
    metric, order = distance_of(distance), rng.permutation(dimension)
    ready = metric.prepare(z)
    d = metric.between(ready, ready)
    np.testing.assert_array_equal(d, metric.between(ready[:, order], ready[:, order]))
    np.testing.assert_array_equal(d[:1, 7:15], metric.between(ready[:1], ready[7:15]))
    terms = [Fraction(float(a)) * Fraction(float(b)) for a, b in zip(ready[0], ready[1], strict=True)]
    assert Fraction(float(products(ready[:1], ready[1:2])[0, 0])) == sum(terms)


def test_the_configuration_knows_every_distance() -> None:
    assert get_args(KernelConfig.model_fields["distance"].annotation) == tuple(DISTANCES)


@pytest.mark.parametrize("distance", ["euclidean", "normalised_euclidean"])
def test_distance_to_itself_is_no_nan(distance: str) -> None:
    z = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32) * 100
    assert np.isfinite(distance_of(distance).between(z, z)).all()


def test_arguments_are_left_alone() -> None:
    z = np.random.default_rng(0).standard_normal((4, 3))
    before = z.copy()
    COSINE.between(COSINE.prepare(z), COSINE.prepare(z))
    distance_of("euclidean").between(z, z)
    np.testing.assert_array_equal(z, before)


def test_zero_activation_and_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="exactly zero"):
        COSINE.prepare(np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"'manhattan'.*cosine"):
        distance_of("manhattan")
    with pytest.raises(InputError, match=r"'box'.*hard"):
        kernel_values(np.ones(1), 0.1, "box")


def test_kernels() -> None:
    d = np.array([0.0, 0.05, 0.1, 0.2, np.inf])
    np.testing.assert_array_equal(kernel_values(d, 0.1, "hard"), [1, 1, 0, 0, 0])
    np.testing.assert_allclose(
        kernel_values(d, 0.1, "gaussian"), [1, math.exp(-0.25), math.exp(-1), math.exp(-4), 0]
    )
    np.testing.assert_array_equal(kernel_values(d[:3], np.array([0.0, 0.1, 0.2])), [0, 1, 1])
    assert support_radius(0.2, "hard") == 0.2
    assert kernel_values(np.array([support_radius(0.2, "gaussian")]), 0.2, "gaussian")[0] < 1.2e-6


# Weights


def test_effective_sample_size() -> None:
    assert effective_sample_size(np.full(7, 0.3)) == pytest.approx(7.0)
    assert effective_sample_size(np.array([0.0, 5.0, 0.0])) == pytest.approx(1.0)
    assert effective_sample_size(np.array([1.0, 3.0])) == pytest.approx(16 / 10)
    assert effective_sample_size(np.zeros(3)) == effective_sample_size(np.zeros(0)) == 0.0
    weights = np.random.default_rng(0).exponential(size=100)
    assert effective_sample_size(weights) == pytest.approx(effective_sample_size(1e6 * weights))


def test_truncation_clips_at_the_mean_times_the_root_of_n() -> None:
    weights = np.array([1.0] * 15 + [1000.0])
    cut = weights.mean() * 4.0
    np.testing.assert_allclose(truncate_weights(weights), [1.0] * 15 + [cut])
    even = np.random.default_rng(0).uniform(1, 2, size=50)
    np.testing.assert_array_equal(truncate_weights(even), even)
    assert truncate_weights(np.zeros(0)).size == 0
