"""Samplers of noise: the angles and radii of Appendix B by their inverse CDF, and the isotropic Gaussian of D.1.3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np


def gaussian_noise(scale: np.ndarray, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Isotropic Gaussian noise (N, dimension) of root mean square norms `scale` (N,) (paper, D.1.3)."""
    return rng.standard_normal((len(scale), dimension)) * (scale / math.sqrt(dimension))[:, None]


@dataclass(frozen=True)
class _Inverse:
    """The inverse CDF of a density on a grid, ready to be asked at any uniforms: (points,) each, and the mass of all cells."""

    grid: np.ndarray
    density: np.ndarray
    cdf: np.ndarray
    mass: float

    @staticmethod
    def of(log_density: Any, low: float, high: float, points: int = 8192) -> _Inverse:
        """Of an unnormalised log density on [low, high]; the grid closes in on where the mass is."""
        for _ in range(4):
            grid = np.linspace(low, high, points)
            log_f = log_density(grid)
            keep = np.flatnonzero(log_f > log_f.max() - 45.0)
            low, high = grid[max(keep[0] - 1, 0)], grid[min(keep[-1] + 1, points - 1)]
        grid = np.linspace(low, high, points)
        log_f = log_density(grid)
        f = np.exp(log_f - log_f.max())
        mass = 0.5 * (f[1:] + f[:-1])
        return _Inverse(grid, f, np.concatenate([[0.0], np.cumsum(mass)]) / mass.sum(), mass.sum())

    def __call__(self, u: np.ndarray) -> np.ndarray:
        """Values at uniforms `u`. Inside a cell the density is linear: solve f0 t + (f1 - f0) t^2 / 2 = rest for t in [0, 1]."""
        cell = np.clip(np.searchsorted(self.cdf, u, side="right") - 1, 0, len(self.grid) - 2)
        rest = (u - self.cdf[cell]) * self.mass
        f0, slope = self.density[cell], self.density[cell + 1] - self.density[cell]
        root = np.sqrt(np.maximum(f0 * f0 + 2.0 * slope * rest, 0.0))
        t = np.clip(2.0 * rest / np.maximum(f0 + root, 1e-300), 0.0, 1.0)
        return self.grid[cell] + t * (self.grid[cell + 1] - self.grid[cell])


def _angle_log_density(theta: np.ndarray, n: int, epsilon: float, kind: str) -> np.ndarray:
    with np.errstate(divide="ignore"):
        volume = (n - 2) * np.log(np.sin(theta)) if n > 2 else np.zeros_like(theta)
    d = 1.0 - np.cos(theta)
    return volume - (0.0 if kind == "hard" else (d / epsilon) ** 2)


@lru_cache(maxsize=512)
def _angles(n: int, epsilon: float, kind: str) -> _Inverse:
    """Training asks for the same few angles at every step: the grid is made once."""
    high = math.acos(max(1.0 - epsilon, -1.0)) if kind == "hard" else math.pi
    return _Inverse.of(lambda t: _angle_log_density(t, n, epsilon, kind), 0.0, high)


def sample_angles(u: np.ndarray, n: int, epsilon: float, kind: str = "hard") -> np.ndarray:
    """Angles in radians with density k((1 - cos t) / epsilon) sin(t)^(n - 2), by the inverse CDF at uniforms `u`."""
    return _angles(n, epsilon, kind)(np.asarray(u, np.float64))


def sample_radii(u: np.ndarray, n: int, epsilon: float, kind: str = "hard") -> np.ndarray:
    """Radii rho with density k(rho / epsilon) rho^(n - 1), by the inverse CDF at uniforms `u` (Euclidean distances)."""
    u = np.asarray(u, np.float64)
    if kind == "hard":
        return epsilon * u ** (1.0 / n)
    high = epsilon * (math.sqrt(n / 2.0) + 8.0)

    def log_density(rho: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return (n - 1) * np.log(rho) - (rho / epsilon) ** 2 if n > 1 else -((rho / epsilon) ** 2)

    return _Inverse.of(log_density, 0.0, high)(u)
