"""Is a task vector masked by the query that has entered, or overwritten? (paper, section 4.3, on Figure 7)

The same queries are asked under several tasks, so that what an activation holds on average about the query and about the task
can be told apart (a two-way analysis of variance, coordinate by coordinate). Then each part is taken away, and what is left is
read: by the model itself, at the layer where patching works best (`states`), and by linear probes (`probed`). A task that is masked
is read as soon as the query's part is gone, and its vector still has its length (`remaining`); one that was overwritten is not.

Activations are arrays (Q, T, K, d): queries, tasks, draws of the shots, width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5


@dataclass(frozen=True)
class Parts:
    """Mean parts of activations (Q, T, K, d).

    Attributes:
        mean: (d,) of all.
        query: (Q, 1, 1, d) what each query adds to the mean, whatever the task.
        task: (1, T, 1, d) what each task adds, whatever the query; at the layer of the task vectors, these.
    """

    mean: np.ndarray
    query: np.ndarray
    task: np.ndarray


def parts(x: np.ndarray) -> Parts:
    """Tell apart what activations (Q, T, K, d) hold about query and task."""
    mean = x.mean((0, 1, 2))
    return Parts(mean, x.mean((1, 2), keepdims=True) - mean, x.mean((0, 2), keepdims=True) - mean)


def states(x: np.ndarray, best: Parts) -> dict[str, np.ndarray]:
    """What is written at the best layer, to ask what the model reads there in activations x (Q, T, K, d) of another layer.

    All but the first are deviations from x's mean, added to the mean of the best layer, for the layers' means differ; what comes of
    this alone is `recentred`, with which the others are compared.

    Returns:
        returned: x as it is. recentred: its deviations. query_removed: without the query's part. other_removed: without the
        part of another query (a control). task_removed: without the parts of query and task (a control: what is left is of the
        answer and the shots). vector_only: the part of x along the task vectors of the best layer.
    """
    here = parts(x)
    deviation = x - here.mean
    return {
        "returned": x,
        "recentred": best.mean + deviation,
        "query_removed": best.mean + deviation - here.query,
        "other_removed": best.mean + deviation - np.roll(here.query, 1, axis=0),
        "task_removed": best.mean + deviation - here.query - here.task,
        "vector_only": best.mean + deviation @ _projection(best),
    }


def _projection(best: Parts) -> np.ndarray:
    """(d, d) projection onto the span of the T task vectors, which add up to zero."""
    vectors = best.task[0, :, 0]
    basis = np.linalg.svd(vectors, full_matrices=False)[2][: len(vectors) - 1]
    return basis.T @ basis


def remaining(x: np.ndarray, best: Parts) -> np.ndarray:
    """How much of the task vectors of the best layer is left in activations x (Q, T, K, d), a mean a query (Q,).

    The coefficient of x along its own task's vector, in units of the vectors' squared length: 1 at the best layer itself, 0 where
    later blocks have taken them away, below 0 where they wrote the opposite.
    """
    vectors = best.task[0, :, 0]
    along = np.einsum("qtkd,td->qtk", x - x.mean((0, 1, 2)), vectors)
    return along.mean((1, 2)) / (vectors**2).sum(-1).mean()


def probed(x: np.ndarray, best: np.ndarray, max_iter: int = 500) -> dict[str, np.ndarray]:
    """Accuracy of linear probes of the task in activations x (Q, T, K, d), a mean a query (Q,); chance is 1 / T.

    Multinomial logistic regression on standardised activations, cross-validated: no query is in both halves.

    Returns:
        own: trained on x. carried: trained on the activations `best` (Q, T, K, d) of the best layer, read in x without change but
        for the layers' means.
    """
    n_queries, n_tasks, n_draws, width = x.shape
    task = np.broadcast_to(np.arange(n_tasks)[:, None], (n_queries, n_tasks, n_draws)).ravel()
    query = np.repeat(np.arange(n_queries), n_tasks * n_draws)
    here, there = x.reshape(-1, width), best.reshape(-1, width)
    moved = here - here.mean(0) + there.mean(0)
    hits = {"own": np.zeros(len(task)), "carried": np.zeros(len(task))}
    for train, test in GroupKFold(min(FOLDS, n_queries)).split(here, task, query):
        for name, learnt, read in (("own", here, here), ("carried", there, moved)):
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=max_iter))
            probe.fit(learnt[train], task[train])
            hits[name][test] = probe.predict(read[test]) == task[test]
    return {name: hit.reshape(n_queries, -1).mean(1) for name, hit in hits.items()}
