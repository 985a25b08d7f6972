"""Exact search against brute force: who is found, in which order, under limits, spans and exclusions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inversescope.kernel.distances import DISTANCES, distance_of
from inversescope.kernel.neighbours import Cache, Neighbours, coverage

SIZE, DIMENSION, QUERIES = 157, 4, 11
RADIUS = {"cosine": 0.4, "euclidean": 1.6, "normalised_euclidean": 0.9}


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((SIZE, DIMENSION)).astype(np.float32)
    return keys, keys[rng.choice(SIZE, QUERIES, replace=False)] + 0.1 * rng.standard_normal(
        (QUERIES, DIMENSION)
    ).astype(np.float32)


def brute(keys: np.ndarray, query: np.ndarray, distance: str) -> np.ndarray:
    """Distances (N,) of one query to all keys."""
    return distance_of(distance).paired(np.tile(query, (len(keys), 1)), keys)


def lists(found: Neighbours) -> list[list[int]]:
    assert found.start[0] == 0 and found.start[-1] == len(found.rows) == len(found.distance)
    return [found.of(i).tolist() for i in range(len(found.counts))]


@pytest.mark.parametrize("block", [7, 64, 4096])
@pytest.mark.parametrize("distance", DISTANCES)
def test_search_equals_brute_force(distance: str, block: int) -> None:
    keys, queries = data()
    cache = Cache(keys, distance, block=block)
    found = cache.search(cache.prepare(queries), RADIUS[distance])
    assert sum(found.counts) > 100
    for i, rows in enumerate(lists(found)):
        d = brute(keys, queries[i], distance)
        assert rows == np.flatnonzero(d < RADIUS[distance]).tolist()
        np.testing.assert_allclose(found.distance[found.start[i] : found.start[i + 1]], d[rows], atol=1e-5)
    assert (found.scanned == SIZE).all()


def test_each_query_may_have_its_own_radius() -> None:
    keys, queries = data(1)
    cache = Cache(keys, block=10)
    radius = np.linspace(0.01, 1.2, QUERIES)
    found = cache.search(cache.prepare(queries), radius)
    for i, rows in enumerate(lists(found)):
        assert rows == np.flatnonzero(brute(keys, queries[i], "cosine") < radius[i]).tolist()


def test_excluded_rows_are_left_out_of_their_query_alone() -> None:
    keys, _ = data()
    cache = Cache(keys, block=16)
    own = np.array([3, 3, 156, 0, -1])
    queries = cache.keys[[3, 4, 156, 0, 3]]
    everything = lists(cache.search(queries, 0.5))
    found = lists(cache.search(queries, 0.5, exclude=own))
    assert 3 in everything[0] and 3 in found[4]
    for before, after, row in zip(everything, found, own, strict=True):
        assert after == [r for r in before if r != row]


@pytest.mark.parametrize("first", [0, 50, 150])
@pytest.mark.parametrize("length", [0, 1, 40, 156, 157])
def test_span_wraps_around_the_end(first: int, length: int) -> None:
    keys, queries = data(2)
    cache = Cache(keys, block=9)
    found = cache.search(cache.prepare(queries), 0.5, span=(first, length))
    rows = (first + np.arange(length)) % SIZE
    for i, here in enumerate(lists(found)):
        d = brute(keys, queries[i], "cosine")
        assert here == [r for r in rows if d[r] < 0.5]  # in the order of the span
    assert (found.scanned == length).all()


def test_two_spans_that_meet_find_everything_once() -> None:
    keys, queries = data(3)
    cache = Cache(keys, block=32)
    q = cache.prepare(queries)
    for first, cut in [(0, 80), (120, 90), (156, 1)]:
        left = lists(cache.search(q, 0.5, span=(first, cut)))
        right = lists(cache.search(q, 0.5, span=((first + cut) % SIZE, SIZE - cut)))
        for a, b, both in zip(left, right, lists(cache.search(q, 0.5)), strict=True):
            assert not set(a) & set(b) and sorted(a + b) == both


@pytest.mark.parametrize("block", [5, 50, 4096])
@pytest.mark.parametrize("limit", [1, 4, 1000])
def test_limit_keeps_the_first_ones_of_each_query(limit: int, block: int) -> None:
    keys, queries = data(4)
    cache = Cache(keys, block=block)
    radius = np.linspace(0.01, 0.9, QUERIES)  # few neighbours for some queries, many for others
    exclude = np.arange(QUERIES) * 13
    for span in [None, (100, 120)]:
        everything = cache.search(cache.prepare(queries), radius, exclude, span=span)
        found = cache.search(cache.prepare(queries), radius, exclude, limit=limit, span=span)
        assert lists(found) == [rows[:limit] for rows in lists(everything)]
        length = SIZE if span is None else span[1]
        assert (found.scanned[everything.counts < limit] == length).all()
        assert (found.scanned <= length).all() and (found.scanned[found.counts > 0] > 0).all()
        if limit == 1000:
            assert (found.scanned == length).all()


@pytest.mark.parametrize("limit", [None, 4])
def test_queries_are_searched_alike_alone_and_together(limit: int | None) -> None:
    keys, queries = data(5)
    cache = Cache(keys, block=50)
    together = cache.search(cache.prepare(queries), 0.5, limit=limit)
    alone = [cache.search(cache.prepare(queries[[i]]), 0.5, limit=limit) for i in range(QUERIES)]
    for name in ("rows", "scanned", "counts"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(a, name) for a in alone]), getattr(together, name)
        )
    np.testing.assert_allclose(np.concatenate([a.distance for a in alone]), together.distance, atol=1e-6)


def test_scanned_rows_of_a_cut_search_tell_the_share() -> None:
    # Neighbours are found at the rate of the whole cache: counts / scanned estimates the share within the radius.
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((20_000, 3)).astype(np.float32)
    cache = Cache(keys)
    queries = cache.prepare(rng.standard_normal((200, 3)).astype(np.float32))
    exact = cache.counts(queries, np.array([0.05]))[:, 0] / cache.size
    found = cache.search(queries, 0.05, limit=64)
    assert (found.counts == 64).all() and (found.scanned < 8000).all()
    ratio = found.counts / found.scanned / exact
    assert abs(ratio.mean() - 1.0) < 0.05 and np.abs(ratio - 1.0).max() < 0.6


@pytest.mark.parametrize("distance", DISTANCES)
def test_counts_and_nearest_equal_brute_force(distance: str) -> None:
    keys, queries = data(5)
    cache = Cache(keys, distance, block=20)
    radii = RADIUS[distance] * np.array([1.0, 0.3, 1.5])  # in any order
    counts = cache.counts(cache.prepare(queries), radii)
    rows, best = cache.nearest(cache.prepare(queries))
    for i in range(QUERIES):
        d = brute(keys, queries[i], distance)
        assert counts[i].tolist() == [(d < r).sum() for r in radii]
        assert rows[i] == d.argmin() and best[i] == pytest.approx(d.min(), abs=1e-5)


def test_memory_maps_and_no_queries_are_served(tmp_path: Path) -> None:
    keys, queries = data()
    np.save(tmp_path / "z.npy", keys)
    mapped = Cache(np.load(tmp_path / "z.npy", mmap_mode="r"), "euclidean")
    plain = Cache(keys, "euclidean")
    assert lists(mapped.search(queries, 1.5)) == lists(plain.search(queries, 1.5))
    assert plain.search(queries[:0], 1.5).counts.tolist() == []


def test_coverage() -> None:
    found = coverage(np.array([0, 0, 5, 10, 99, 100, 1000, 3]))
    assert found.to_dict() == {
        "share_lt1": 0.25,
        "share_lt10": 0.5,
        "share_lt100": 0.75,
        "median_neighbours": 7.5,
    }
