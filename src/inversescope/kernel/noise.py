"""Noise on activations: Appendix B's exact sampler, and the isotropic Gaussian of D.1.3."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from inversescope.errors import InputError
from inversescope.kernel.kernel import check_bandwidth


def gaussian_noise(
    z: np.ndarray, scale: np.ndarray, rng: np.random.Generator, distance: str = "cosine"
) -> np.ndarray:
    """Isotropic Gaussian noise (N, d) for activations (N, d), of root mean square norm `scale` (N,) (paper, D.1.3).

    Scales are shares of each activation's norm where the distance is relative, and norms themselves for `euclidean`.
    """
    n, d = z.shape
    size = np.ones(n) if distance == "euclidean" else np.linalg.norm(z.astype(np.float64), axis=-1)
    return rng.standard_normal((n, d)) * (scale * size / math.sqrt(d))[:, None]


def _inverse_cdf(log_density: Any, low: float, high: float, u: np.ndarray, points: int = 8192) -> np.ndarray:
    """Invert the CDF of an unnormalised log density on [low, high] at `u`; the grid closes in on where the mass is."""
    for _ in range(4):
        grid = np.linspace(low, high, points)
        log_f = log_density(grid)
        keep = np.flatnonzero(log_f > log_f.max() - 45.0)
        low, high = grid[max(keep[0] - 1, 0)], grid[min(keep[-1] + 1, points - 1)]
    grid = np.linspace(low, high, points)
    log_f = log_density(grid)
    f = np.exp(log_f - log_f.max())
    mass = 0.5 * (f[1:] + f[:-1])
    cdf = np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum()
    cell = np.clip(np.searchsorted(cdf, u, side="right") - 1, 0, points - 2)
    # Inside a cell the density is linear: solve f0 t + (f1 - f0) t^2 / 2 = rest for t in [0, 1].
    rest = (u - cdf[cell]) * mass.sum()
    f0, slope = f[cell], f[cell + 1] - f[cell]
    root = np.sqrt(np.maximum(f0 * f0 + 2.0 * slope * rest, 0.0))
    t = np.clip(2.0 * rest / np.maximum(f0 + root, 1e-300), 0.0, 1.0)
    return grid[cell] + t * (grid[cell + 1] - grid[cell])


def _angle_log_density(theta: np.ndarray, n: int, epsilon: float, kind: str) -> np.ndarray:
    with np.errstate(divide="ignore"):
        volume = (n - 2) * np.log(np.sin(theta)) if n > 2 else np.zeros_like(theta)
    d = 1.0 - np.cos(theta)
    return volume - (0.0 if kind == "hard" else (d / epsilon) ** 2)


def sample_angles(u: np.ndarray, n: int, epsilon: float, kind: str = "hard") -> np.ndarray:
    """Angles in radians with density k((1 - cos t) / epsilon) sin(t)^(n - 2), by the inverse CDF at uniforms `u`."""
    high = math.acos(max(1.0 - epsilon, -1.0)) if kind == "hard" else math.pi
    return _inverse_cdf(
        lambda t: _angle_log_density(t, n, epsilon, kind), 0.0, high, np.asarray(u, np.float64)
    )


def sample_radii(u: np.ndarray, n: int, epsilon: float, kind: str = "hard") -> np.ndarray:
    """Radii rho with density k(rho / epsilon) rho^(n - 1), by the inverse CDF at uniforms `u` (Euclidean distances)."""
    u = np.asarray(u, np.float64)
    if kind == "hard":
        return epsilon * u ** (1.0 / n)
    high = epsilon * (math.sqrt(n / 2.0) + 8.0)

    def log_density(rho: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return (n - 1) * np.log(rho) - (rho / epsilon) ** 2 if n > 1 else -((rho / epsilon) ** 2)

    return _inverse_cdf(log_density, 0.0, high, u)


def perturb(
    z: np.ndarray,
    epsilon: float,
    rng: np.random.Generator,
    distance: str = "cosine",
    kind: str = "hard",
    norm_band: float = 0.1,
) -> np.ndarray:
    """Draw z' = z + r with density proportional to k(d~(z', z) / epsilon), the noise of Appendix B, exactly.

    For `cosine` the modified distance d~ confines |z'| to a band of `norm_band` (delta) around |z|: the angle to z has density
    k((1 - cos t)/eps) sin(t)^(n-2), the direction orthogonal to z is uniform, and the norm has density proportional to
    rho^(n-1) within the band. For Euclidean distances the radius of r has density k(rho/eps) rho^(n-1) and its direction is
    uniform.

    Args:
        z: activations (N, n), n >= 2.
        rng: source of randomness.

    Returns:
        Perturbed activations (N, n), float64.
    """
    check_bandwidth(epsilon)
    z = np.asarray(z, np.float64)
    count, n = z.shape
    if n < 2:
        raise InputError(f"noise needs activations of dimension 2 or more, got {n}", "choose another site")
    u = rng.random((2, count))
    direction = rng.standard_normal((count, n))
    norm = np.linalg.norm(z, axis=-1, keepdims=True)
    if distance != "cosine":
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        radius = sample_radii(u[0], n, epsilon, kind)[:, None]
        return z + direction * (radius * norm if distance == "normalised_euclidean" else radius)
    axis = z / np.maximum(norm, np.finfo(np.float64).tiny)
    direction -= (direction * axis).sum(-1, keepdims=True) * axis
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    angle = sample_angles(u[0], n, epsilon, kind)[:, None]
    low, high = 1.0 - norm_band, 1.0 + norm_band
    # Inverse CDF of rho^(n-1) on [low, high], written so that high^n does not overflow.
    scale = high * (u[1] + (1.0 - u[1]) * (low / high) ** n) ** (1.0 / n)
    return norm * scale[:, None] * (np.cos(angle) * axis + np.sin(angle) * direction)
