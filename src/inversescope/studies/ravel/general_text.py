"""General text for autoencoders of models that others trained: Python's own manual, which comes with every Python."""

from __future__ import annotations

WORDS = 16  # of a passage


def passages() -> list[str]:
    """The topics of Python's manual (`pydoc_data.topics`), cut into passages of `WORDS` words with one space between them.

    Marks without a letter or digit are left out, and so is the rest of a topic that is too short for a passage. The text is
    that of the running Python: what is made of it records its SHA-256.
    """
    from pydoc_data.topics import topics

    found = []
    for name in sorted(topics):
        words = [word for word in topics[name].split() if any(map(str.isalnum, word))]
        found += [" ".join(words[low : low + WORDS]) for low in range(0, len(words) - WORDS + 1, WORDS)]
    return found
