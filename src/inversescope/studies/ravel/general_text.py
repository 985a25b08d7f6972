"""General text for autoencoders: a corpus or, where none is named, text at hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from inversescope.config.tasks import GeneralTextConfig
from inversescope.errors import InputError
from inversescope.tasks.corpus import is_text, read_corpus

WORDS = 16  # of a passage of Python's manual


def passages(texts: Iterable[str], words: int) -> list[str]:
    """Texts cut into passages of so many words, with one space between them.

    Marks without a letter or digit are left out, and so is the rest of a text that is too short for a passage.
    """
    found = []
    for text in texts:
        kept = [word for word in text.split() if any(map(str.isalnum, word))]
        found += [" ".join(kept[low : low + words]) for low in range(0, len(kept) - words + 1, words)]
    return found


def manual() -> list[str]:
    """Passages of Python's own manual (`pydoc_data.topics`), which comes with every Python.

    The text is that of the running Python: what is made of it records its SHA-256.
    """
    from pydoc_data.topics import topics

    return passages((topics[name] for name in sorted(topics)), WORDS)


def corpus_passages(config: GeneralTextConfig, path: Path) -> list[str]:
    """Passages of a corpus; those with characters that are no text are left out.

    Raises:
        InputError: it cannot be read (see `read_corpus`), holds no strings, or has too few passages.
    """
    frame = read_corpus(config, path, ["text"], "sae.general.path")
    texts = [text for text in frame["text"] if text is not None] if len(frame) else []
    if not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{config.named}: column 'text' holds other values than strings", "see sae.general.columns"
        )
    found = [passage for passage in passages(texts, config.words) if is_text(passage)]
    if len(found) < (config.n_passages or 1):
        raise InputError(
            f"{config.named} has {len(found)} passages of {config.words} words",
            "raise rows or lower n_passages in sae.general",
        )
    return found
