"""Distances between activations (paper, section 2), each with its noise of Appendix B: one class a distance.

The same activations have the same distances on every processor, to the last bit. Matrix products differ in their last digits from
one processor's routines to another's, and training makes much of little: a millionth in what a generator is told can be a tenth of
its loss thirty steps later. So activations are prepared as whole multiples of a step, small enough that float64 holds all products
and sums of them exactly, whatever their order. A GPU gives the same bits too (`arrays`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from inversescope.errors import InputError
from inversescope.kernel.arrays import Array, below, double, empty, fetched, one_minus, placed, root, single
from inversescope.kernel.kernel import check_bandwidth
from inversescope.kernel.noise import sample_angles, sample_radii

#: Of a prepared activation's components, as whole numbers: a product of two has twice as many, and float64 holds 53.
BITS = 24
BLOCK = 16_384  # keys whose products are held in float64 at a time


def on_grid(z: Array, exponent: np.ndarray | int) -> Array:
    """Activations (..., d) rounded to multiples of 2^(exponent - BITS), float32; their norms are at most about 2^exponent."""
    steps = np.ldexp(np.float32(1.0), BITS - np.clip(exponent, -100, 100))[..., None]
    if not isinstance(z, np.ndarray):
        steps = placed(steps)
        return (single(z) * steps).round() / steps
    result = np.multiply(z, steps, dtype=np.float32)
    np.rint(result, out=result)
    result /= steps
    return result


def norms(z: np.ndarray) -> np.ndarray:
    """Norms (...) of activations (..., d), float64."""
    return np.sqrt((z * z).sum(-1, dtype=np.float64))


def products(queries: Array, keys: Array) -> Array:
    """Inner products (Q, N) of prepared activations (Q, d) and (N, d): float64, and exact."""
    return double(queries) @ double(keys).T


def squares(x: Array) -> Array:
    """Squared norms (N,) of prepared activations (N, d): float64, and exact."""
    x = double(x)
    return (x * x).sum(-1)


class Distance(ABC):
    """How far activations are from a query's, and noise whose density falls with that distance."""

    #: Whether a bandwidth is a share of the query's norm (or an angle), and not a length.
    relative = True

    @abstractmethod
    def prepare(self, z: np.ndarray) -> Array:
        """Bring activations (..., d) into the form that `between` takes, float32: on a grid, so that `products` are exact.

        What is prepared lies on the device of this process.
        """

    @abstractmethod
    def compare(self, queries: Array, keys: Array) -> Array:
        """Distances (Q, N), float32, of prepared queries (Q, d) to prepared keys (N, d), where these lie."""

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

    def between(self, queries: Array, keys: Array) -> np.ndarray:
        """Distances (Q, N), float32, of prepared queries (Q, d) to prepared keys (N, d).

        Keys (N, P, d) are prompts with P positions each: a prompt's distance is the least over its positions.
        """
        return fetched(self.distances(queries, keys))

    def within(
        self, queries: Array, keys: Array, radius: float | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query, key and distance (n,) of the pairs of `between` that are nearer than a radius, one for all or one a query.

        They come query by query, in the order of the keys.
        """
        radius = np.broadcast_to(np.asarray(radius, np.float32), (len(queries),))
        return below(self.distances(queries, keys), radius)

    def distances(self, queries: Array, keys: Array) -> Array:
        """The same as `between`, where the prepared activations lie."""
        if keys.ndim == 3:
            count, positions, width = keys.shape
            each = self.distances(queries, keys.reshape(count * positions, width))
            each = each.reshape(-1, count, positions)
            return each.min(-1) if isinstance(each, np.ndarray) else each.amin(-1)
        if len(keys) <= BLOCK:
            return self.compare(queries, keys)
        result = empty((len(queries), len(keys)), queries)
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

    def prepare(self, z: np.ndarray) -> Array:
        """Unit vectors. Raises `InputError` for an activation that is exactly zero."""
        norm = norms(z)[..., None]
        if bool((norm == 0).any()):
            raise InputError(
                "an activation is exactly zero, so its cosine distance is undefined",
                "choose another site or distance",
            )
        return on_grid(placed(z) / placed(norm.astype(z.dtype)), 0)

    def resolution(self, z: np.ndarray) -> float:
        return 1e-6

    def compare(self, queries: Array, keys: Array) -> Array:
        return one_minus(products(queries, keys))

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

    def prepare(self, z: np.ndarray) -> Array:
        return on_grid(placed(z), np.frexp(norms(z))[1])

    def compare(self, queries: Array, keys: Array) -> Array:
        return single(root(self.squared(queries, keys)))

    @staticmethod
    def squared(queries: Array, keys: Array) -> Array:
        """Squared Euclidean distances (Q, N), float64, cut off at 0."""
        q2, k2 = squares(queries), squares(keys)
        squared = q2[:, None] + k2[None, :] - 2.0 * products(queries, keys)
        return squared.clip(0.0)

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

    def compare(self, queries: Array, keys: Array) -> Array:
        return single(root(self.squared(queries, keys) / squares(queries)[:, None]))

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
