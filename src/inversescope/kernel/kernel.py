"""Distances, kernels, the noise of Appendix B and kernel weights (paper, section 2 and Appendix B).

Everything here works on plain NumPy arrays; `distances` also takes torch tensors (any device), because it uses operators only.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from inversescope.errors import InputError

DISTANCES = ("cosine", "euclidean", "normalised_euclidean")
KERNELS = ("hard", "gaussian")


def check_bandwidth(epsilon: float) -> None:
    """Refuse a bandwidth that defines no neighbourhood.

    Raises:
        InputError: epsilon is not a positive finite number.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise InputError(
            f"kernel bandwidth epsilon = {epsilon} is not positive", "set kernel.epsilon > 0, for example 0.1"
        )


def prepare(z: Any, distance: str) -> Any:
    """Bring activations (N, d) into the form in which `distances` compares them: unit vectors for cosine, else unchanged."""
    if distance != "cosine":
        return z
    norm = (z * z).sum(-1)[..., None] ** 0.5
    if bool((norm == 0).any()):
        raise InputError(
            "an activation is exactly zero, so its cosine distance is undefined",
            "choose another site or distance",
        )
    return z / norm


def distances(queries: Any, keys: Any, distance: str = "cosine") -> Any:
    """Compare prepared queries (Q, d) with prepared keys (N, d): distances (Q, N).

    Keys (N, P, d) are prompts with P positions each; a prompt's distance is the least over its positions. `cosine` is 1 - cos;
    `euclidean` the norm of the difference; `normalised_euclidean` that norm divided by the query's.
    The result has the type of its arguments. Raises `InputError` for an unknown distance.
    """
    if len(keys.shape) == 3:
        count, positions, width = keys.shape
        flat = distances(queries, keys.reshape(count * positions, width), distance)
        least = flat.reshape(len(queries), count, positions)
        return least.min(-1) if isinstance(least, np.ndarray) else least.amin(-1)
    if distance == "cosine":
        result = queries @ keys.T
        result *= -1.0  # in place: this product is what a search spends its time on
        result += 1.0
        return result
    if distance not in DISTANCES:
        raise InputError(f"unknown distance {distance!r}", f"choose one of {', '.join(DISTANCES)}")
    q2 = (queries * queries).sum(-1)[:, None]
    squared = q2 + (keys * keys).sum(-1)[None, :] - 2.0 * (queries @ keys.T)
    squared = squared * (squared > 0)
    return squared**0.5 if distance == "euclidean" else (squared / q2) ** 0.5


def gaussian_noise(
    z: np.ndarray, scale: np.ndarray, rng: np.random.Generator, distance: str = "cosine"
) -> np.ndarray:
    """Isotropic Gaussian noise (N, d) for activations (N, d), of root mean square norm `scale` (N,) (paper, D.1.3).

    Scales are shares of each activation's norm where the distance is relative, and norms themselves for `euclidean`.
    """
    n, d = z.shape
    size = np.ones(n) if distance == "euclidean" else np.linalg.norm(z.astype(np.float64), axis=-1)
    return rng.standard_normal((n, d)) * (scale * size / math.sqrt(d))[:, None]


def paired_distances(a: np.ndarray, b: np.ndarray, distance: str = "cosine") -> np.ndarray:
    """Distance of row i of `b` to the query in row i of `a`: two (N, d) arrays to (N,), in double precision.

    Where `b` is (N, P, d), the least over its P positions.
    """
    if b.ndim == 3:
        return np.min([paired_distances(a, b[:, p], distance) for p in range(b.shape[1])], axis=0)
    a, b = a.astype(np.float64), b.astype(np.float64)
    if distance == "cosine":
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        return 1.0 - (a * b).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    difference = np.linalg.norm(a - b, axis=-1)
    return difference if distance == "euclidean" else difference / np.linalg.norm(a, axis=-1)


def kernel_values(d: np.ndarray, epsilon: float | np.ndarray, kind: str = "hard") -> np.ndarray:
    """k(d / epsilon): the indicator of d < epsilon (`hard`) or exp(-(d / epsilon)^2) (`gaussian`)."""
    if kind == "hard":
        return (d < epsilon).astype(np.float64)
    if kind == "gaussian":
        return np.exp(-((np.asarray(d, np.float64) / epsilon) ** 2))
    raise InputError(f"unknown kernel {kind!r}", f"choose one of {', '.join(KERNELS)}")


def support_radius(epsilon: Any, kind: str = "hard") -> Any:
    """Distance beyond which the kernel is treated as zero: epsilon for `hard`, 3.7 epsilon (k < 1.2e-6) for `gaussian`."""
    return epsilon if kind == "hard" else 3.7 * epsilon


# ------------------------------------------------------------------------------------------------------------------ noise


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


# ---------------------------------------------------------------------------------------------------------------- weights


def effective_sample_size(weights: np.ndarray) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2 of non-negative weights; 0 for none."""
    total = float(np.sum(weights))
    return total * total / float(np.sum(np.square(weights))) if total > 0 else 0.0


def truncate_weights(weights: np.ndarray) -> np.ndarray:
    """Clip importance weights at their mean times sqrt(n) (Ionides, 2008): bounded variance for a vanishing bias."""
    if weights.size == 0:
        return weights
    return np.minimum(weights, weights.mean() * math.sqrt(weights.size))
