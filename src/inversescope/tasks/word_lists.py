"""Word pairs of the paper-sized translation task: downloaded once at a pinned commit, checked by SHA-256, never redistributed.

They are the lists of Hendel et al. (2023), whose prompts the paper adapts (D.3.2). Upstream states no licence, so the
repository holds the checksums alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from inversescope import store
from inversescope.errors import InputError

UPSTREAM = (
    "https://raw.githubusercontent.com/roeehendel/icl_task_vectors/"
    "1da0db608c69662cecc1ee7352b84531c1acc435/data/translation/{name}"
)
#: file -> its SHA-256.
FILES = {
    "en_fr.json": "0daf03f180f96d09c8e8e067be2651450dfbac7e735c1795cdfe36a7515a8b25",
    "en_it.json": "a453202d71d70ab6e96abfc9b336faa7db84f957b68ac7f1507d6168057c35ad",
    "en_es.json": "e53e8f89563278ccbac209b46cc7d0f7f8f26669b3a33823ac9979d791c018ef",
    "fr_en.json": "eac982cbd3438c7a2b0c48fb1b545490db3bcaed22759dcd17e7d2c4207ad565",
    "it_en.json": "b9c1cca6b1bb3101243be8a44ea447adbbb5b5aa51979e36c124e791ef74cb3c",
    "es_en.json": "4c4d296da7bf52b9c60201c507f606829a13ecac596c4e81acbe9cdce63b0944",
}


@dataclass(frozen=True)
class Pairs:
    """Word pairs that determine their task, equally many of each task.

    Attributes:
        words: task -> its (source, target) pairs, in the lists' order, all of one length.
        dropped: why -> number of pairs left out.
    """

    words: list[list[tuple[str, str]]]
    dropped: dict[str, int]


def fetch(folder: Path, mirror: Path | None) -> None:
    """Bring the lists to a folder, from a mirror or from upstream at the pinned commit.

    Raises:
        InputError: one is not there, or is not what was pinned.
    """
    for name, sha256 in FILES.items():
        content = store.fetch(UPSTREAM.format(name=name), sha256, mirror, "icl_translation.mirror")
        with store.atomic_path(folder / name) as part:
            part.write_bytes(content)


def read(folder: Path, tasks: list[tuple[str, str]]) -> Pairs:
    """Read the lists of some tasks, given as pairs of two-letter codes, and keep the pairs that a prompt can be parsed from.

    Left out are entries of several words, words spelt the same in both languages, and pairs that occur in two tasks: three shots of
    such pairs would not say which task it is. Then each task is cut to the length of the shortest.

    Raises:
        InputError: a list is missing, broken, or not what was pinned.
    """
    tables = []
    for source, target in tasks:
        name = f"{source}_{target}.json"
        path = folder / name
        if not path.is_file():
            raise InputError(f"there is no word list {path}", "run the rule fetch_word_lists first")
        tables.append(json.loads(store.checked(path.read_bytes(), FILES[name], path)))
    return keep(tables)


def keep(tables: list[dict[str, str]]) -> Pairs:
    """Clean tables of {source: target}, one a task; see `read`."""
    owners: dict[tuple[str, str], int] = {}
    for table in tables:
        for pair in table.items():
            owners[pair] = owners.get(pair, 0) + 1
    dropped = {"several words": 0, "same spelling": 0, "in two tasks": 0, "longer than the shortest": 0}
    words = []
    for table in tables:
        good = []
        for source, target in table.items():
            if not all(word and not set(word) & set(" ,:\n\t") for word in (source, target)):
                dropped["several words"] += 1
            elif source == target:
                dropped["same spelling"] += 1
            elif owners[source, target] > 1:
                dropped["in two tasks"] += 1
            else:
                good.append((source, target))
        words.append(good)
    shortest = min(map(len, words))
    dropped["longer than the shortest"] = sum(len(one) - shortest for one in words)
    return Pairs([one[:shortest] for one in words], dropped)
