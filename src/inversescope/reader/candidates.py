"""Which label functions are tried on some texts: all of the grammar whose words these texts hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from scipy import sparse

from inversescope.config.functions import Function
from inversescope.tasks.functions import Corpus

#: Texts that sets of words are found in, and words looked at: the most frequent ones.
_TEXTS, _WORDS = 8192, 400
#: Words of which each "word after" and "has" is tried, and the share of texts that must hold them.
_COMMON, _SHARE = 40, 0.02
#: Two words belong together if the distributions of what stands around them are this alike (cosine of their roots).
_ALIKE = 0.75
#: Words of a set: fewer may be alike by chance, more make names that nobody reads.
_SHORTEST, _LONGEST = 3, 40
_PLACES = (*range(10), *range(-10, 0))

Class = Function | tuple[str, ...]


def interchangeable(corpus: Corpus, longest: int = _LONGEST) -> list[tuple[str, ...]]:
    """Sets of up to `longest` words that stand between the same words: fillers of a slot, as far as texts show it; in order."""
    ids = corpus.ids[:_TEXTS]
    share = np.bincount(ids[corpus.first[:_TEXTS]], minlength=len(corpus.words)) / len(ids)
    known = np.argsort(-share, kind="stable")[:_WORDS]
    known = known[(share[known] >= max(2 / len(ids), 0.002)) & (share[known] < 0.99)]
    column = np.full(len(corpus.words) + 1, -1)
    column[known] = np.arange(len(known))
    edge = np.full((len(ids), 1), -1, np.int64)
    before, after = np.hstack([edge, ids[:, :-1]]), np.hstack([ids[:, 1:], edge])
    there = (ids >= 0) & (column[ids] >= 0)
    context = (before[there] + 1) * (len(corpus.words) + 1) + after[there] + 1
    kept, context = np.unique(context, return_inverse=True)
    shape = len(known), len(kept)
    counts = sparse.csr_matrix((np.ones(len(context)), (column[ids[there]], context)), shape=shape)
    root = counts.sqrt().multiply(1 / np.sqrt(np.maximum(counts.sum(1), 1))).tocsr()
    alike = (root @ root.T).toarray() >= _ALIKE
    _, group = sparse.csgraph.connected_components(alike, directed=False)
    sets = [
        tuple(sorted(corpus.words[i] for i in known[group == g])) for g in range(group.max(initial=-1) + 1)
    ]
    return sorted((s for s in sets if _SHORTEST <= len(s) <= longest), key=lambda s: (-len(s), s))


def candidates(corpus: Corpus) -> list[Function]:
    """The functions that are tried, each once; the order is that of the grammar, not of any result."""
    return list(dict.fromkeys(_listed(corpus)))


def _listed(corpus: Corpus) -> Iterator[Function]:
    named = [kind for kind in (Function("capital"), Function("number")) if corpus.of_class(kind).any()]
    sets: list[Class] = list(interchangeable(corpus))
    classes: list[Class] = [*named, *sets]
    anything = Function("any")
    longest = int(corpus.length.max(initial=0))
    ends = [Function("word", (place,)) for place in _PLACES if -longest <= place < longest]
    yield from ends
    chosen: list[Function] = []
    for kind in [anything, *classes]:
        places = [] if kind == anything else [Function("word", (place, kind)) for place in (0, 1, 2, -1, -2)]
        once = [Function("once", (place, kind)) for place in (0, 1, -1)]
        picked = [*places, Function("twice", (kind,)), *once]
        yield from picked
        chosen += picked
        for name in ("which_twice", "how_many", "distinct"):
            yield Function(name, (kind,))
        for one, other in combinations(places, 2):
            yield Function("same", (one, other))
            if kind == Function("number"):
                yield Function("compare", (one, other))
    yield from (Function("count", (one,)) for one in [*ends, *chosen])
    hidden = np.any([np.zeros_like(corpus.first), *map(corpus.of_class, named)], 0)
    if varied := [*named, *(kind for kind in sets if (corpus.of_class(kind) & ~hidden).any())]:
        yield Function("skeleton", tuple(varied))
    share = np.bincount(corpus.ids[corpus.first], minlength=len(corpus.words)) / max(1, len(corpus))
    for number in np.argsort(-share, kind="stable")[:_COMMON]:
        if share[number] >= _SHARE:
            text = corpus.words[number]
            yield from (Function(name, (text, place)) for name in ("after", "before") for place in (0, -1))
            yield Function("has", (text,))
