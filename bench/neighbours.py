"""Exact neighbour search beside faiss's exact index, in one run on one thread.

Who lies within a cosine distance of 0.1 of 128 queries, among 100,000 cached activations of 16, 64 and 256 numbers? And, as in the
study of SmolLM2, of 50 queries among 16,000 activations of a head (64 numbers) and of the residual stream (576)?
`Cache.search` answers against `IndexFlatIP.range_search` of the same unit vectors, whose inner product must exceed 0.9. The
activations are drawn around centres so that a query has about 1% or about 10% of the cache as neighbours, the range in
which heads lie. `first 256` is what training and conditioning ask for: the first 256 neighbours in random row order. faiss
is an optional peer (`pip install "inversescope[bench]"`).

    python -m bench.neighbours --out results/bench/neighbours.csv
"""

from __future__ import annotations

import sys
from typing import Any

from bench.tables import finish, in_turns, options, spread

# isort: split
import numpy as np

from inversescope.kernel.neighbours import Cache

EPSILON, LIMIT, REPEATS = 0.1, 256, 5
#: Numbers of an activation, cached rows, queries.
SIZES = ((16, 100_000, 128), (64, 100_000, 128), (256, 100_000, 128), (64, 16_000, 50), (576, 16_000, 50))
SHARES = (0.01, 0.1)


def main() -> int:
    """Measure, print the table, and write it where asked."""
    parser = options(__doc__.splitlines()[0], "neighbours")
    arguments = parser.parse_args()
    faiss = load_faiss()
    if faiss is None:
        print(
            'faiss is not installed, so its rows are left out. Install the peers with: pip install "inversescope[bench]"',
            file=sys.stderr,
        )
    rows = [row for size in SIZES for share in SHARES for row in measure(*size, share, faiss)]
    finish(rows, arguments.out)
    return 0


def load_faiss() -> Any:
    """The module on one thread, or None."""
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(1)
    return faiss


def activations(width: int, rows: int, share: float) -> np.ndarray:
    """Activations (rows, width) around 1 / share centres; two of the same centre are about 0.06 apart."""
    rng = np.random.default_rng(width)
    centres = rng.standard_normal((round(1 / share), width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = rng.standard_normal((rows, width)) * (0.06 / width) ** 0.5
    return (centres[rng.integers(len(centres), size=rows)] + noise).astype(np.float32)


def measure(width: int, rows: int, asked: int, share: float, faiss: Any) -> list[dict[str, object]]:
    """Rows of one cache: ours and the peer's."""
    cache = Cache(activations(width, rows, share))
    queries = cache.keys[np.random.default_rng(0).choice(rows, asked, replace=False)]
    runs: dict[str, Any] = {
        "inversescope": lambda: cache.search(queries, EPSILON),
        f"inversescope, first {LIMIT}": lambda: cache.search(queries, EPSILON, limit=LIMIT),
        "inversescope, counts only": lambda: cache.counts(queries, np.array([EPSILON])),
    }
    found = cache.search(queries, EPSILON)
    if faiss is not None:
        index = faiss.IndexFlatIP(width)
        index.add(cache.keys)
        runs["faiss IndexFlatIP"] = lambda: index.range_search(queries, 1.0 - EPSILON)
        check_equal(found, *index.range_search(queries, 1.0 - EPSILON))
    turns = in_turns(runs, REPEATS)
    seconds, peer = {name: min(turn) for name, turn in turns.items()}, turns.get("faiss IndexFlatIP")
    return [
        {
            "dimension": width,
            "rows": rows,
            "queries": asked,
            "neighbours_a_query": float(found.counts.mean()),
            "method": method,
            "milliseconds": 1000 * seconds[method],
            "distances_per_s": asked * rows / seconds[method],
            **(
                {"speed_ratio": min(peer) / seconds[method], **spread(turns[method], peer)}
                if peer and method.startswith("inversescope")
                else {}
            ),
        }
        for method in runs
    ]


def check_equal(found: Any, limits: np.ndarray, products: np.ndarray, rows: np.ndarray) -> None:
    """Make sure that both found the same neighbours, but for those on the edge in float32.

    Raises:
        AssertionError: a neighbour clearly inside was found by one of them only.
    """
    for query in range(len(limits) - 1):
        part = slice(int(limits[query]), int(limits[query + 1]))
        ours, theirs = found.of(query), rows[part]
        only_theirs = np.isin(theirs, ours, invert=True)
        only_ours = np.isin(ours, theirs, invert=True)
        distance = found.distance[found.start[query] : found.start[query + 1]]
        assert (np.abs(1.0 - products[part][only_theirs] - EPSILON) < 1e-5).all(), (
            f"query {query}: faiss found more"
        )
        assert (np.abs(distance[only_ours] - EPSILON) < 1e-5).all(), f"query {query}: faiss found less"


if __name__ == "__main__":
    sys.exit(main())
