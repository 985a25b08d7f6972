"""Files that RAVEL, translation and the case studies have besides: removed, cut short, changed by a bit: one clear error."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import test_counting_study
import test_icl
import test_ravel_study
from test_counting_study import checked, finished  # noqa: F401
from test_icl import study as translated  # noqa: F401

pytestmark = pytest.mark.faults

RAVEL, ICL, COUNTING = f"ravel/{test_ravel_study.MODEL}", "icl_translation/delayed", "counting/tiny"
SITE = test_ravel_study.SITES[0]
# Kind of artifact: the study, the file, a stage that reads it, a result of that stage.
KINDS: dict[str, tuple[str, str, list[str], str]] = {
    "RAVEL: activations at all positions": (
        "ravel",
        f"data/{RAVEL}/positions/ravel/{SITE}.safetensors",
        ["train_sae", "--site", SITE],
        f"results/{RAVEL}/sae/{SITE}.csv",
    ),
    "RAVEL: autoencoder": (
        "ravel",
        f"data/{RAVEL}/sae/ravel/{SITE}/model.safetensors",
        ["classify_attributes", "--site", SITE],
        f"results/{RAVEL}/attributes/{SITE}.csv",
    ),
    "RAVEL: decisions on attributes": (
        "ravel",
        f"results/{RAVEL}/attributes/{test_ravel_study.SITES[-1]}.parquet",
        ["plot_ravel"],
        "results/figures/ravel_confusion.csv",
    ),
    "translation: exact values": (
        "icl",
        f"results/{ICL}/exact/{test_icl.SITES[0]}.parquet",
        ["plot_icl"],
        f"results/{ICL}/layers.csv",
    ),
    "counting: imported weights": (
        "counting",
        f"data/{COUNTING}/target/model.safetensors",
        ["check_causes"],
        f"results/{COUNTING}/causes.csv",
    ),
    "counting: points of completeness": (
        "counting",
        f"results/{COUNTING}/completeness.parquet",
        ["plot_cases"],
        "results/figures/counting_tiny_completeness.csv",
    ),
}
# Text, in which a changed digit is found by its hash alone (audit --verify).
TEXTS: dict[str, tuple[str, str, list[str], str]] = {
    "RAVEL: scores of a site": (
        "ravel",
        f"results/{RAVEL}/attributes/{SITE}.csv",
        ["plot_ravel"],
        "results/ravel/scores.csv",
    ),
    "translation: patching": (
        "icl",
        f"results/{ICL}/patching.csv",
        ["plot_icl"],
        f"results/{ICL}/layers.csv",
    ),
    "counting: causal effects": (
        "counting",
        f"results/{COUNTING}/causes.csv",
        ["plot_causes"],
        "results/tables/counting_tiny_causes_headline.csv",
    ),
}


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished tiny study of RAVEL."""
    root = tmp_path_factory.mktemp("ravel")
    test_ravel_study.write_config(root, {})
    test_ravel_study.run_all(root)
    return root


@pytest.fixture
def study(request: pytest.FixtureRequest, kind: str) -> Iterator[tuple[Path, Callable[[list[str]], int]]]:
    """Root of the study of a kind of file, and what runs one of its stages."""
    name = (KINDS | TEXTS)[kind][0]
    if name == "ravel":
        root = request.getfixturevalue("studied")
        yield root, lambda words: test_ravel_study.run(root, *words)
    elif name == "icl":
        root = request.getfixturevalue("translated")
        yield root, lambda words: test_icl.run(root, words[0], "delayed", *words[1:])
    else:
        root = request.getfixturevalue("checked").parents[2]
        yield root, lambda words: test_counting_study.run(root, *words)


def damaged(whole: bytes, fault: str, rng: random.Random) -> bytes | None:
    """What becomes of a file; None if it is gone."""
    if fault == "removed":
        return None
    if fault == "cut short":
        return whole[: len(whole) // 2]
    data = bytearray(whole)
    data[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("kind", [*KINDS, *TEXTS])
def test_each_is_one_clear_error(
    study: tuple[Path, Callable[[list[str]], int]], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path, reader, result = (KINDS | TEXTS)[kind]
    root, run = study
    file, rng = root / path, random.Random(kind)
    whole, before = file.read_bytes(), (root / result).read_bytes()
    try:
        for fault in ["removed"] + ["cut short", *["a bit flipped"] * 3] * (kind in KINDS):
            data = damaged(whole, fault, rng)
            file.unlink(missing_ok=True)
            if data is not None:
                file.write_bytes(data)
            capsys.readouterr()
            status = run(reader)
            lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
            if status == 2:
                folder = file.parent.name if file.suffix == ".safetensors" else file.name
                assert len(lines) == 1 and (file.name in lines[0] or folder in lines[0]), lines
            else:
                assert status == 0 and fault == "a bit flipped" and file.suffix == ".parquet", (fault, status)
                assert (root / result).read_bytes() == before
    finally:
        file.write_bytes(whole)
