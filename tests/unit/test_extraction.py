"""Extraction in shards: resumed where it was killed, put together to the same bytes, with lines of progress."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import MODEL, SITES, make_target, run, write_config

from inversescope.activations import batches, stages
from inversescope.activations.capture import Passes, capture
from inversescope.config import load_config
from inversescope.context import Context
from inversescope.sites import Site
from inversescope.store import Rows, read_arrays, write_arrays
from inversescope.targets.models import load_target
from inversescope.targets.tokenizers import encode

FOLDER = Path("data/ioi") / MODEL / "activations/reference"


class Killed(BaseException):
    """Stands for SIGKILL: nobody handles it."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A target and all prompts of a small prior; shards and blocks so small that there are many."""
    write_config(tmp_path)
    assert run(tmp_path, "make_prompts", "--split", "reference") == 0
    make_target(tmp_path)
    monkeypatch.setattr(stages, "SHARD", 20_000)
    monkeypatch.setattr(stages, "BLOCK", 1_000)
    monkeypatch.setattr(batches, "KEPT", {"cpu": 100_000})
    return tmp_path


def extracted(root: Path) -> dict[str, bytes]:
    assert run(root, "extract_activations", "--split", "reference") == 0
    assert not (root / FOLDER / "shards").exists()
    return {path.stem: path.read_bytes() for path in (root / FOLDER).glob("*.safetensors")}


def kill(root: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> list[Path]:
    """Kill an extraction behind some shards, and return these."""
    left = [after]

    def write(path: Path, *arguments: object) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        write_arrays(path, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(stages, "write_arrays", write)
        with pytest.raises(Killed):
            run(root, "extract_activations", "--split", "reference")
    return sorted((root / FOLDER / "shards").iterdir())


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def with_nan(path: Path) -> None:
    arrays, meta = read_arrays(path, "")
    changed = {name: np.array(z) for name, z in arrays.items()}
    changed["L1H1"][2, 0] = np.nan
    write_arrays(path, {name: Rows(z.shape, [z]) for name, z in changed.items()}, meta)


def of_other_prompts(path: Path) -> None:
    arrays, meta = read_arrays(path, "")
    changed = {name: np.zeros_like(z) for name, z in arrays.items()}
    about = {**meta, "prompt_hash": "another"}
    write_arrays(path, {name: Rows(z.shape, [z]) for name, z in changed.items()}, about)


@pytest.mark.parametrize("damage", [None, cut_short, with_nan, of_other_prompts])
def test_a_killed_extraction_goes_on_to_the_same_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None] | None
) -> None:
    whole = extracted(root)
    assert set(whole) == set(SITES)
    for path in (root / FOLDER).iterdir():
        path.unlink()
    found = kill(root, monkeypatch, after=3)
    assert len(found) == 3
    if damage:
        damage(found[1])
    ran, one = [], Passes.run
    monkeypatch.setattr(Passes, "run", lambda self, batch: ran.append(batch.low) or one(self, batch))
    assert extracted(root) == whole
    # Finished shards are not run again, a damaged one is.
    first = [int(path.stem) for path in found]
    assert (min(ran) == first[1]) if damage else (min(ran) > first[2])


def test_rows_are_those_of_their_prompts_in_any_order(root: Path) -> None:
    context = Context(root, load_config([root / "config/config.yaml"]).of("ioi", MODEL), "ioi", MODEL)
    prompts = context.prompts("reference")
    mixed = prompts.iloc[np.random.default_rng(0).permutation(len(prompts))]
    doubled = [*mixed.index[:50], *mixed.index]
    context.task.frame(prompts["prompt_id"].to_numpy()[doubled]).to_parquet(context.prompts_path("reference"))
    extracted(root)
    target, ids = load_target(context.target_dir), context.prompt_ids("reference")
    for label in SITES:
        z = context.activations("reference", label)
        texts = context.task.texts(ids)
        found = capture(target, encode(target.tokenizer, texts), [Site.parse(label)])[label]
        np.testing.assert_allclose(z, found, atol=1e-5)
        np.testing.assert_array_equal(z[:50], z[50:100])


def test_a_line_of_progress_comes_within_a_pass(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a pass takes: time is looked at before each block of the model."""
    seen: list[int] = []
    monkeypatch.setattr(stages.Progress, "__call__", lambda self, done, note="": seen.append(done))
    told: list[int] = []
    one = Passes.run
    monkeypatch.setattr(Passes, "run", lambda self, batch: told.append(len(seen)) or one(self, batch))
    extracted(root)
    assert min(np.diff(told)) >= 2, "at least once for each of the two blocks"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_activations_of_a_site_are_mapped_only_while_they_are_used(root: Path) -> None:
    """Pages of a mapped file count as memory, and a job may read hundreds of sites."""
    extracted(root)
    context = Context(root, load_config([root / "config/config.yaml"]).of("ioi", MODEL), "ioi", MODEL)
    for _ in range(2):  # the second time without a check
        z = context.activations("reference", SITES[0])
        assert f"/{SITES[0]}.safetensors" in Path("/proc/self/maps").read_text()
        del z
        assert f"/{SITES[0]}.safetensors" not in Path("/proc/self/maps").read_text()
