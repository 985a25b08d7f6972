"""Stage `fetch_word_lists` of the translation task."""

from __future__ import annotations

from inversescope.context import Context, echo
from inversescope.tasks import word_lists
from inversescope.tasks.icl_translation import TranslationTask


def fetch_word_lists(context: Context) -> None:
    """Write data/icl_translation/lists/*.json, from the mirror or from upstream at the pinned commit, checked by SHA-256."""
    config = context.config.icl_translation
    mirror = None if config.mirror is None else context.root / config.mirror
    word_lists.fetch(context.root / "data" / TranslationTask.name / "lists", mirror)
    task = TranslationTask(config, context.root)
    left_out = ", ".join(f"{why}: {number}" for why, number in task.dropped.items())
    echo(f"fetch_word_lists: {task.n} pairs a task; left out {left_out}")
