"""Which ways to word a prompt a site treats alike: groups of skeletons whose activations lie together, as label functions.

Two wordings may ask for the same without a word in common ("The language of Ghana is", "The people of Ghana speak"). No property of
the text tells it, but the activation may. So skeletons are grouped by the mean activations of the prior's prompts that have them
(Ward, 1963), into few groups or many. Each grouping is written as `which([...], [...])`, by words that tell the groups apart, and
then tried and tested as all other functions are. Target prompts have no part in the grouping.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage

from inversescope.config.functions import Function
from inversescope.reader.candidates import Class, interchangeable
from inversescope.tasks.functions import Corpus

#: Prompts that are looked at, and skeletons that are grouped, at most: of more, too few prompts have each.
PROMPTS, _SKELETONS = 8192, 400
#: Numbers of groups that are tried.
_GROUPS = (2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32)
#: A word tells a group if this share of the prompts with it are of the group.
_TELLS = 0.9


def groupings(corpus: Corpus, z: np.ndarray) -> list[Function]:
    """Groups of wordings by what a site computes from them, each grouping once.

    Args:
        corpus: N prompts of the prior, without target prompts.
        z: (N, d) their activations, prepared as distances take them.
    """
    return list(dict.fromkeys(_listed(corpus, z)))


def _listed(corpus: Corpus, z: np.ndarray) -> Iterator[Function]:
    sets: list[Class] = list(interchangeable(corpus, longest=len(corpus.words)))
    names: list[Class] = [Function("capital"), Function("number")]
    held = np.zeros((len(corpus), len(corpus.words)), bool)
    row, place = np.nonzero(corpus.ids >= 0)
    held[row, corpus.ids[row, place]] = True
    # Some slots are filled with what a question is about, the words of others are the question: which ones, is not known.
    filled = [sets, *([one for one in sets if one != kept] for kept in sets), *([one] for one in sets), []]
    for some in filled:
        hidden = [*names, *some]
        code = corpus.labels(Function("skeleton", tuple(hidden))).codes
        n = int(code.max(initial=-1)) + 1
        if not 2 < n <= _SKELETONS:
            continue
        member = sparse.csr_matrix((1 / np.bincount(code)[code], (code, np.arange(len(code)))))
        tree = linkage(member @ z.astype(np.float64), "ward")
        shown = held.copy()
        for kind in hidden:
            row, place = np.nonzero(corpus.of_class(kind))
            shown[row, corpus.ids[row, place]] = False
        for k in _GROUPS:
            lists = telling_words(shown, fcluster(tree, k, "maxclust")[code]) if k < n else []
            if len(lists) > 1:
                yield Function("which", tuple(tuple(corpus.words[i] for i in one) for one in lists))


def telling_words(held: np.ndarray, group: np.ndarray) -> list[list[int]]:
    """Lists of words, so that the first list of which a prompt has a word tells the prompt's group, as far as words tell it.

    A list holds words nearly all of whose prompts are of one group, as few as tell all that such words can tell; the most frequent
    one is first. What none of them tells is looked at again beside the prompts that are left.

    Args:
        held: (N, words) which words a prompt holds.
        group: (N,) its group, from 1.
    """
    lists: list[list[int]] = []
    left = np.ones(len(held), bool)
    while left.any():
        sizes = np.array([held[left & (group == g)].sum(0) for g in range(1, int(group.max()) + 1)])
        total = sizes.sum(0)
        telling = (total > 0) & (sizes.max(0) >= _TELLS * total)
        told: dict[int, list[int]] = {}
        gain = np.where(telling, total, 0)
        while gain.any():
            word = int(gain.argmax())
            told.setdefault(int(sizes[:, word].argmax()), []).append(word)
            left &= ~held[:, word]
            gain = np.where(telling, held[left].sum(0), 0)
        if not told:
            break
        lists += told.values()
    return lists
