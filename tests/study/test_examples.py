"""The notebooks of examples/, cell by cell, on a small model with random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from inversescope.config.targets import ArchitectureConfig
from inversescope.reader.reading import Reading
from inversescope.tasks.base import split_words

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def cells(name: str) -> list[str]:
    """The code of a notebook; lines that install something are left out."""
    book = json.loads((EXAMPLES / name).read_text())
    assert book["nbformat"] == 4 and not any(cell.get("outputs") for cell in book["cells"])
    code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in code if not cell.startswith("%pip install")]


def run(name: str, words: list[str], folder: Path, **settings: object) -> dict[str, object]:
    """Run a notebook on a model that knows some words; settings take the place of those in its first cell."""
    from inversescope.targets.models import build_model, save_trained
    from inversescope.targets.tokenizers import word_tokenizer

    vocabulary = dict.fromkeys(piece for text in words for piece in split_words(text))
    tokenizer = word_tokenizer(list(vocabulary))
    shape = ArchitectureConfig(n_layers=2, n_heads=2, d_model=16, n_positions=32)
    save_trained(
        folder / "model", build_model(shape, len(tokenizer), 0, initializer_range=0.3), tokenizer, "tiny"
    )
    first, *others = cells(name)
    for key, value in {"MODEL": str(folder / "model"), **settings}.items():
        first, found = re.subn(rf"^{key} = .*$", f"{key} = {value!r}", first, flags=re.M)
        assert found == 1, key
    names: dict[str, object] = {}
    for cell in (first, *others):
        exec(compile(cell, name, "exec"), names)
    return names


def test_the_first_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "When John and Mary went to the store, Tom gave a drink to James Dan Sam park school ring",
        " John Mary",
    ]
    names = run("smollm2.ipynb", words, tmp_path, SITE="L1H0", PLACES=["store", "park"])
    reading = names["reading"]
    assert isinstance(reading, Reading)
    assert set(reading.features["feature"]) == {"first", "second", "place", "giver", "item", "taker"}
    assert set(names["layers"]["site"]) == {"L0.resid_post", "L1.resid_post"}
    assert (tmp_path / "reading.html").stat().st_size > 10_000


def test_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "The judge nurse pilot singer farmer baker walked ran to the garden office harbour kitchen market"
    ]
    words += [" last night this morning at noon on Sunday and"]
    names = run("own_model.ipynb", words, tmp_path, **{"STEPS, BACKBONE_STEPS": (3, 5)})
    together = names["together"]
    assert isinstance(together, Reading)
    assert set(together.samples["source"]) >= {"default"}
    assert set(names["other"].features["value"]) == {"judge", "garden", "night"}
