"""The shape of the repository: what must stay short enough to be read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST_FUNCTION = 80


@pytest.mark.parametrize(
    ("file", "most"), [("config/config.yaml", 250), ("config/embedded.yaml", 250), ("rules/common.smk", 120)]
)
def test_a_file_is_short(file: str, most: int) -> None:
    assert len((ROOT / file).read_text(encoding="utf-8").splitlines()) <= most


def test_no_function_is_long() -> None:
    found = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(found) > 500
    assert not {name: lines for name, lines in found.items() if lines > LONGEST_FUNCTION}
