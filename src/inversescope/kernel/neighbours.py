"""Exact search of an activation cache: who lies within epsilon of these activations.

One class serves training pairs, conditioning, cache mixing and the estimators. Rows of the cache are independent draws, so the
first m neighbours in a random order of the rows are a uniform sample of all of them: a search that needs m neighbours a query
stops scanning for that query as soon as it has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from inversescope.kernel.arrays import Array, fetched, lowest
from inversescope.kernel.distances import distance_of


@dataclass
class Neighbours:
    """Neighbour lists of Q queries in compressed form.

    Attributes:
        start: (Q + 1,) int64; query i owns entries start[i] : start[i + 1].
        rows: (E,) int64 rows of the cache.
        distance: (E,) float32.
        scanned: (Q,) int64, cache rows that were looked at for each query.
    """

    start: np.ndarray
    rows: np.ndarray
    distance: np.ndarray
    scanned: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Neighbours found, a query."""
        return np.diff(self.start)

    def of(self, query: int) -> np.ndarray:
        """Cache rows of one query's neighbours."""
        return self.rows[self.start[query] : self.start[query + 1]]

    def first(self, limit: int) -> Neighbours:
        """The first neighbours of each query, `limit` at most.

        A query that is cut short has effectively been scanned only up to its last kept neighbour.
        """
        full = self.counts
        counts = np.minimum(full, limit)
        keep = np.arange(len(self.rows)) - np.repeat(self.start[:-1], full) < limit
        share = (self.scanned * counts / np.maximum(full, 1)).astype(np.int64)
        scanned = np.where(full > counts, share, self.scanned)
        start = np.concatenate([[0], np.cumsum(counts)])
        return Neighbours(start, self.rows[keep], self.distance[keep], scanned)

    def table(self, width: int) -> np.ndarray:
        """Cache rows as a table (Q, width), a query a row, filled up with -1; no query may have more than `width`."""
        table = np.full((len(self.counts), width), -1, np.int64)
        owner = np.repeat(np.arange(len(table)), self.counts)
        table[owner, np.arange(len(owner)) - self.start[owner]] = self.rows
        return table


class Cache:
    """Activations of one site, ready for exact search.

    Args:
        z: activations (N, d), or (N, P, d) at P positions, the nearest of which counts; a NumPy array or memory map.
        distance: name of the distance.
        block: rows compared at a time; bounds the memory at Q * block floats.
    """

    def __init__(self, z: np.ndarray, distance: str = "cosine", block: int = 4096) -> None:
        self.distance = distance_of(distance)
        self.block = block
        self.keys = self.distance.prepare(z)
        self.size = int(z.shape[0])

    def prepare(self, queries: np.ndarray) -> Array:
        """Bring raw queries (Q, d) into the form that `search` takes."""
        return self.distance.prepare(queries)

    def search(
        self,
        queries: Array,
        radius: float | np.ndarray,
        exclude: np.ndarray | None = None,
        limit: int | None = None,
        span: tuple[int, int] | None = None,
    ) -> Neighbours:
        """Find the cached rows with distance below `radius` (a number, or one a query).

        Args:
            queries: prepared activations (Q, d).
            exclude: (Q,) a cache row to leave out for each query (its own prompt), -1 for none.
            limit: stop scanning for a query once it has so many neighbours (the first ones in row order are returned).
            span: (first row, number of rows); rows wrap around the end. The whole cache if absent.
        """
        first, length = span if span is not None else (0, self.size)
        count = len(queries)
        radius = np.broadcast_to(np.asarray(radius, np.float32), (count,))
        active = np.arange(count)
        found, scanned = np.zeros((2, count), np.int64)
        parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
        done = 0
        step = min(self.block, 2048) if limit is not None else self.block
        while done < length and active.size:
            low = (first + done) % self.size
            high = min(low + step, self.size, low + length - done)
            query, column, value = self.distance.within(queries[active], self.keys[low:high], radius[active])
            owner, row = active[query], column + low
            if exclude is not None:
                keep = row != exclude[owner]
                owner, row, value = owner[keep], row[keep], value[keep]
            parts.append((owner, row, value))
            scanned[active] += high - low
            done += high - low
            if limit is not None:
                found += np.bincount(owner, minlength=count)
                active = active[found[active] < limit]
                step = self.block
        owner, rows, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=count)
        start = np.concatenate([[0], np.cumsum(counts)])
        near = Neighbours(start, rows[order], value[order].astype(np.float32), scanned)
        return near if limit is None else near.first(limit)

    def counts(self, queries: Array, radii: np.ndarray) -> np.ndarray:
        """Count cached rows nearer than each radius: (Q, len(radii)) int64, for prepared queries (Q, d)."""
        radii = np.asarray(radii, np.float32)
        result = np.zeros((len(queries), len(radii)), np.int64)
        for low in range(0, self.size, self.block):
            d = self.distance.distances(queries, self.keys[low : low + self.block])
            for column, radius in enumerate(radii):
                result[:, column] += fetched((d < radius).sum(-1))
        return result

    def nearest(self, queries: Array) -> tuple[np.ndarray, np.ndarray]:
        """Row and distance of each prepared query's nearest cached activation: two (Q,) arrays."""
        row = np.zeros(len(queries), np.int64)
        best = np.full(len(queries), np.inf, np.float32)
        for low in range(0, self.size, self.block):
            at, value = lowest(self.distance.distances(queries, self.keys[low : low + self.block]))
            better = value < best
            row[better], best[better] = at[better] + low, value[better]
        return row, best


def coverage(counts: np.ndarray) -> pd.Series:
    """Share of targets with fewer than 1, 10 and 100 cached neighbours, and their median number."""
    counts = np.asarray(counts)
    shares = {f"share_lt{k}": float((counts < k).mean()) for k in (1, 10, 100)}
    return pd.Series({**shares, "median_neighbours": float(np.median(counts))})
