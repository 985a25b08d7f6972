"""Distances between activations (paper, section 2), each with its noise of Appendix B: one class a distance.

The same activations have the same distances on every processor, to the last bit. Matrix products differ in their last digits from
one processor's routines to another's, and training makes much of little: a millionth in what a generator is told can be a tenth of
its loss thirty steps later. So activations are prepared as whole multiples of a step, small enough that float64 holds all products
and sums of them exactly, whatever their order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from inversescope.errors import InputError
from inversescope.kernel.kernel import check_bandwidth
from inversescope.kernel.noise import sample_angles, sample_radii

#: Of a prepared activation's components, as whole numbers: a product of two has twice as many, and float64 holds 53.
BITS = 24
BLOCK = 16_384  # keys whose products are held in float64 at a time


def on_grid(z: np.ndarray, exponent: np.ndarray | int) -> np.ndarray:
    """Activations (..., d) rounded to multiples of 2^(exponent - BITS), float32; their norms are at most about 2^exponent."""
    steps = np.ldexp(np.float32(1.0), BITS - np.clip(exponent, -100, 100))[..., None]
    result = np.multiply(z, steps, dtype=np.float32)
    np.rint(result, out=result)
    result /= steps
    return result


def norms(z: np.ndarray) -> np.ndarray:
    """Norms (...) of activations (..., d), float64."""
    return np.sqrt((z * z).sum(-1, dtype=np.float64))


def products(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Inner products (Q, N) of prepared activations (Q, d) and (N, d): float64, and exact."""
    found: np.ndarray = queries.astype(np.float64) @ keys.astype(np.float64).T
    return found


class Distance(ABC):
    """How far activations are from a query's, and noise whose density falls with that distance."""

    #: Whether a bandwidth is a share of the query's norm (or an angle), and not a length.
    relative = True

    @abstractmethod
    def prepare(self, z: np.ndarray) -> np.ndarray:
        """Bring activations (..., d) into the form that `between` takes, float32: on a grid, so that `products` are exact."""

    @abstractmethod
    def compare(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Distances (Q, N), float32, of prepared queries (Q, d) to prepared keys (N, d)."""

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

    def between(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Distances (Q, N), float32, of prepared queries (Q, d) to prepared keys (N, d).

        Keys (N, P, d) are prompts with P positions each: a prompt's distance is the least over its positions.
        """
        if keys.ndim == 3:
            count, positions, width = keys.shape
            each = self.between(queries, keys.reshape(count * positions, width)).reshape(-1, count, positions)
            nearest: np.ndarray = each.min(-1)
            return nearest
        if len(keys) <= BLOCK:
            return self.compare(queries, keys)
        result = np.empty((len(queries), len(keys)), np.float32)
        for low in range(0, len(keys), BLOCK):
            result[:, low : low + BLOCK] = self.compare(queries, keys[low : low + BLOCK])
        return result

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

    def prepare(self, z: np.ndarray) -> np.ndarray:
        """Unit vectors. Raises `InputError` for an activation that is exactly zero."""
        norm = norms(z)[..., None]
        if bool((norm == 0).any()):
            raise InputError(
                "an activation is exactly zero, so its cosine distance is undefined",
                "choose another site or distance",
            )
        return on_grid(z / norm.astype(z.dtype), 0)

    def resolution(self, z: np.ndarray) -> float:
        return 1e-6

    def compare(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        product = products(queries, keys)
        return np.subtract(1.0, product, out=np.empty(product.shape, np.float32), casting="same_kind")

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

    def prepare(self, z: np.ndarray) -> np.ndarray:
        return on_grid(z, np.frexp(norms(z))[1])

    def compare(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return np.sqrt(self.squared(queries, keys)).astype(np.float32)

    @staticmethod
    def squared(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Squared Euclidean distances (Q, N), float64, cut off at 0."""
        q2, k2 = (np.square(x, dtype=np.float64).sum(-1) for x in (queries, keys))
        squared = q2[:, None] + k2[None, :] - 2.0 * products(queries, keys)
        return np.maximum(squared, 0.0, out=squared)

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

    def compare(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        q2 = np.square(queries, dtype=np.float64).sum(-1)
        return np.sqrt(self.squared(queries, keys) / q2[:, None]).astype(np.float32)

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
