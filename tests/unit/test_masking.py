"""Parts of query and task in made-up residual streams: a task that is masked is found, one that was overwritten is not."""

from __future__ import annotations

import numpy as np
import pytest

from inversescope.studies.icl.masking import parts, probed, remaining, states

QUERIES, TASKS, DRAWS, WIDTH = 10, 3, 4, 12


@pytest.fixture
def made() -> dict[str, np.ndarray]:
    """A layer of task vectors, and later ones: the query added beside the task; the query written over it; the opposite written."""
    rng = np.random.default_rng(0)
    task = rng.normal(size=(1, TASKS, 1, WIDTH))
    task -= task.mean(1, keepdims=True)
    query = 0.7 * rng.normal(size=(QUERIES, 1, 1, WIDTH))
    offset = rng.normal(size=WIDTH)
    best = offset + task + 0.01 * rng.normal(size=(QUERIES, TASKS, DRAWS, WIDTH))
    return {
        "task": task,
        "query": query,
        "best": best,
        "masked": best + query + 3.0,
        "overwritten": best - task + query + 3.0,
        "opposite": best - 2 * task + query,
    }


def test_parts_add_up(made: dict[str, np.ndarray]) -> None:
    found = parts(made["masked"])
    np.testing.assert_allclose(found.task, made["task"], atol=0.02)
    np.testing.assert_allclose(found.query, made["query"] - made["query"].mean(0), atol=0.02)
    assert np.abs(found.task.sum(1)).max() < 1e-9 and np.abs(found.query.sum(0)).max() < 1e-9


def test_what_is_left_of_the_vector(made: dict[str, np.ndarray]) -> None:
    best = parts(made["best"])
    for name, share in (("best", 1.0), ("masked", 1.0), ("overwritten", 0.0), ("opposite", -1.0)):
        left = remaining(made[name], best)
        assert left.shape == (QUERIES,) and left.mean() == pytest.approx(share, abs=0.02)


def test_query_taken_out_leaves_the_task_if_it_was_masked(made: dict[str, np.ndarray]) -> None:
    best = parts(made["best"])
    wanted = made["best"]
    masked, overwritten = states(made["masked"], best), states(made["overwritten"], best)
    np.testing.assert_array_equal(masked["returned"], made["masked"])
    np.testing.assert_allclose(masked["recentred"].mean((0, 1, 2)), best.mean)
    np.testing.assert_allclose(
        masked["recentred"] - masked["query_removed"], parts(made["masked"]).query + 0 * wanted
    )
    np.testing.assert_allclose(masked["query_removed"], wanted, atol=0.05)
    np.testing.assert_allclose(
        overwritten["query_removed"], np.broadcast_to(best.mean, wanted.shape), atol=0.05
    )
    # Controls: the task's own part gone, and the part of a query that is not there.
    np.testing.assert_allclose(masked["task_removed"], np.broadcast_to(best.mean, wanted.shape), atol=0.05)
    assert np.abs(masked["other_removed"] - wanted).mean() > 0.5
    # Along the vectors alone: what is across them does not count, whatever the query.
    across = masked["vector_only"] - best.mean
    assert np.linalg.matrix_rank(across.reshape(-1, WIDTH), tol=1e-6) == TASKS - 1
    np.testing.assert_allclose(states(wanted, best)["vector_only"], wanted, atol=0.05)


def test_probes_share_no_query_and_know_chance(made: dict[str, np.ndarray]) -> None:
    found = {name: probed(made[name], made["best"]) for name in ("best", "masked", "overwritten")}
    assert all(rate.shape == (QUERIES,) for one in found.values() for rate in one.values())
    assert found["best"]["own"].mean() == 1 and found["best"]["carried"].mean() == 1
    assert found["masked"]["carried"].mean() > 0.5
    assert found["overwritten"]["carried"].mean() < 0.5
    # The task told by a mark of the query is of no use for another query.
    rng = np.random.default_rng(1)
    marks = rng.normal(size=(QUERIES, TASKS, 1, WIDTH)) + np.zeros((1, 1, DRAWS, 1))
    assert probed(marks, marks)["own"].mean() < 0.7
