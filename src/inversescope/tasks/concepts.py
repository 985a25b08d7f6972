"""Words of one meaning in four languages: the embedded study's dictionary. Ours; no spelling occurs twice in the table."""

from __future__ import annotations

from pathlib import Path

_TABLE = Path(__file__).parent / "data/icl_translation/concepts.tsv"

#: The table's head, then a concept a row: (language, ...), ((word, ...), ...).
LANGUAGES, *_ROWS = (tuple(line.split("\t")) for line in _TABLE.read_text(encoding="utf-8").splitlines())
CONCEPTS = tuple(_ROWS)
