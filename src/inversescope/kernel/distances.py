"""Distances between activations (paper, section 2), each with its noise of Appendix B: one class a distance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from inversescope.errors import InputError
from inversescope.kernel.kernel import check_bandwidth
from inversescope.kernel.noise import sample_angles, sample_radii


class Distance(ABC):
    """How far activations are from a query's, and noise whose density falls with that distance."""

    #: Whether a bandwidth is a share of the query's norm (or an angle), and not a length.
    relative = True

    def prepare(self, z: Any) -> Any:
        """Bring activations (..., d) into the form that `between` takes."""
        return z

    @abstractmethod
    def compare(self, queries: Any, keys: Any) -> Any:
        """Distances (Q, N) of prepared queries (Q, d) to prepared keys (N, d)."""

    @abstractmethod
    def compare_pairs(self, queries: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance (N,) of each row of z (N, d) to the query in the same row (N, d), float64."""

    @abstractmethod
    def displace(
        self, z: np.ndarray, direction: np.ndarray, u: np.ndarray, epsilon: float, kind: str, norm_band: float
    ) -> np.ndarray:
        """Noised copies (N, n) of z (N, n), from directions (N, n) and uniforms (2, N): see `perturb`."""

    def perturb(
        self,
        z: np.ndarray,
        epsilon: float,
        rng: np.random.Generator,
        kind: str = "hard",
        norm_band: float = 0.1,
    ) -> np.ndarray:
        """Draw z' = z + r with density proportional to k(d(z', z) / epsilon), the noise of Appendix B, exactly.

        Args:
            z: activations (N, n), n >= 2.
            norm_band: delta of Appendix B: the norm of z' is within this share of the norm of z, where d leaves it open.

        Returns:
            (N, n) float64.

        Raises:
            InputError: a bandwidth that is not positive, or activations of dimension 1.
        """
        check_bandwidth(epsilon)
        z = np.asarray(z, np.float64)
        if z.shape[1] < 2:
            raise InputError(
                f"noise needs activations of dimension 2 or more, got {z.shape[1]}", "choose another site"
            )
        u = rng.random((2, len(z)))
        return self.displace(z, rng.standard_normal(z.shape), u, epsilon, kind, norm_band)

    def between(self, queries: Any, keys: Any) -> Any:
        """Distances (Q, N) of prepared queries (Q, d) to prepared keys (N, d), NumPy arrays or tensors on any device.

        Keys (N, P, d) are prompts with P positions each: a prompt's distance is the least over its positions.
        """
        if len(keys.shape) == 2:
            return self.compare(queries, keys)
        count, positions, width = keys.shape
        each = self.compare(queries, keys.reshape(count * positions, width)).reshape(-1, count, positions)
        return each.min(-1) if isinstance(each, np.ndarray) else each.amin(-1)

    def paired(self, queries: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance (N,) of row i of z, (N, d) or (N, P, d), to row i of the queries (N, d), nothing prepared; float64."""
        queries, z = queries.astype(np.float64), z.astype(np.float64)
        if z.ndim == 2:
            return self.compare_pairs(queries, z)
        return np.min([self.compare_pairs(queries, z[:, p]) for p in range(z.shape[1])], axis=0)

    def resolution(self, z: np.ndarray) -> float:
        """Distance below which two activations in single precision may be one, at the median size of activations (N, d)."""
        return 1e-3 * float(np.median(np.linalg.norm(z.astype(np.float64), axis=-1)))

    def size(self, z: np.ndarray) -> np.ndarray:
        """What bandwidths are shares of: the norms (N,) of activations (N, d), or 1."""
        return np.linalg.norm(z.astype(np.float64), axis=-1) if self.relative else np.ones(len(z))


class Cosine(Distance):
    """1 - cos of the angle between two activations. The norm of Appendix B's noise is confined to a band."""

    def prepare(self, z: Any) -> Any:
        """Unit vectors. Raises `InputError` for an activation that is exactly zero."""
        norm = (z * z).sum(-1)[..., None] ** 0.5
        if bool((norm == 0).any()):
            raise InputError(
                "an activation is exactly zero, so its cosine distance is undefined",
                "choose another site or distance",
            )
        return z / norm

    def resolution(self, z: np.ndarray) -> float:
        return 1e-6

    def compare(self, queries: Any, keys: Any) -> Any:
        result = queries @ keys.T
        result *= -1.0  # in place: this product is what a search spends its time on
        result += 1.0
        return result

    def compare_pairs(self, queries: np.ndarray, z: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(queries, axis=-1) * np.linalg.norm(z, axis=-1)
        return 1.0 - (queries * z).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny)

    def displace(
        self, z: np.ndarray, direction: np.ndarray, u: np.ndarray, epsilon: float, kind: str, norm_band: float
    ) -> np.ndarray:
        """The angle to z has density k((1 - cos t) / eps) sin(t)^(n - 2), the direction orthogonal to z is uniform, and the norm
        has density proportional to rho^(n - 1) within the band."""
        n = z.shape[1]
        norm = np.linalg.norm(z, axis=-1, keepdims=True)
        axis = z / np.maximum(norm, np.finfo(np.float64).tiny)
        direction -= (direction * axis).sum(-1, keepdims=True) * axis
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        angle = sample_angles(u[0], n, epsilon, kind)[:, None]
        low, high = 1.0 - norm_band, 1.0 + norm_band
        # Inverse CDF of rho^(n-1) on [low, high], written so that high^n does not overflow.
        scale = high * (u[1] + (1.0 - u[1]) * (low / high) ** n) ** (1.0 / n)
        return norm * scale[:, None] * (np.cos(angle) * axis + np.sin(angle) * direction)


class Euclidean(Distance):
    """Norm of the difference."""

    relative = False

    def compare(self, queries: Any, keys: Any) -> Any:
        return self.squared(queries, keys) ** 0.5

    @staticmethod
    def squared(queries: Any, keys: Any) -> Any:
        """Squared Euclidean distances (Q, N), cut off at 0."""
        q2 = (queries * queries).sum(-1)[:, None]
        squared = q2 + (keys * keys).sum(-1)[None, :] - 2.0 * (queries @ keys.T)
        return squared * (squared > 0)

    def compare_pairs(self, queries: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.linalg.norm(queries - z, axis=-1)

    def displace(
        self, z: np.ndarray, direction: np.ndarray, u: np.ndarray, epsilon: float, kind: str, norm_band: float
    ) -> np.ndarray:
        """The radius of r has density k(rho / eps) rho^(n - 1), and its direction is uniform."""
        direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
        return z + direction * (sample_radii(u[0], z.shape[1], epsilon, kind) * self.size(z))[:, None]


class NormalisedEuclidean(Euclidean):
    """Norm of the difference, divided by the query's norm."""

    relative = True

    def resolution(self, z: np.ndarray) -> float:
        return 1e-3

    def compare(self, queries: Any, keys: Any) -> Any:
        return (self.squared(queries, keys) / (queries * queries).sum(-1)[:, None]) ** 0.5

    def compare_pairs(self, queries: np.ndarray, z: np.ndarray) -> np.ndarray:
        return super().compare_pairs(queries, z) / np.linalg.norm(queries, axis=-1)


#: Name in the configuration -> distance. A new one is a class above and a line here.
DISTANCES: dict[str, Distance] = {
    "cosine": Cosine(),
    "euclidean": Euclidean(),
    "normalised_euclidean": NormalisedEuclidean(),
}


def distance_of(name: str) -> Distance:
    """The distance of this name. Raises `InputError` if there is none."""
    if name not in DISTANCES:
        raise InputError(f"unknown distance {name!r}", f"choose one of {', '.join(DISTANCES)}")
    return DISTANCES[name]
