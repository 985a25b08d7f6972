"""Files survive being killed, are checked when read, and have the same bytes for the same content."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from inversescope import store
from inversescope.errors import InputError

META = {"model": "tiny", "site": "L0H1", "revision": "", "tokenizer_hash": "ab", "prompt_hash": "cd", "n": 3}


def activations(rows: int = 300) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)


def test_activations_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "L0H1.safetensors"
    store.write_activations(path, activations(), META)
    z, meta = store.read_activations(path)
    np.testing.assert_array_equal(z, activations())
    assert z.dtype == np.float32 and meta.items() >= {key: str(value) for key, value in META.items()}.items()
    assert meta["dtype"] == "float32" and meta["package_version"]
    np.testing.assert_array_equal(load_file(path)["z"], activations())
    empty = tmp_path / "empty.safetensors"
    store.write_activations(empty, activations(0), {})
    assert store.read_activations(empty)[0].shape == (0, 5)


def test_equal_activations_have_equal_bytes(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np; from inversescope.store import write_activations\n"
        "meta = {k: k for k in ('site', 'model', 'revision', 'hash', 'prompts', 'a', 'b')}\n"
        "write_activations(sys.argv[1], np.ones((3, 2)), meta)"
    )
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    assert store.file_hash(paths[0]) == store.file_hash(paths[1])


@pytest.mark.parametrize("keep", [0, 4, 30, -100, -1])
def test_truncated_activations_are_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "L0H1.safetensors"
    store.write_activations(path, activations(), META)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"L0H1\.safetensors.*Delete it and rerun extract_activations"):
        store.read_activations(path)


def test_overlong_or_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "z.safetensors"
    store.write_activations(path, activations(), META)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match="overlong"):
        store.read_activations(path)
    path.write_bytes((10).to_bytes(8, "little") + b"not a json header")
    with pytest.raises(InputError, match="not a safetensors file"):
        store.read_activations(path)
    for tensors in (
        {"z": np.ones((2, 2))},
        {"z": np.ones(4, np.float32)},
        {"y": np.ones((2, 2), np.float32)},
    ):
        save_file(tensors, path)
        with pytest.raises(InputError, match="instead of"):
            store.read_activations(path)
    with pytest.raises(InputError, match="does not exist"):
        store.read_activations(tmp_path / "none.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_with_its_row(tmp_path: Path, value: float) -> None:
    z = activations(70_000)
    z[66_123, 3] = value
    z[69_000] = np.nan
    path = tmp_path / "L0H1.safetensors"
    store.write_activations(path, z, META)
    with pytest.raises(InputError, match=r"L0H1\.safetensors holds NaN or infinity, first in row 66123"):
        store.read_activations(path)


def test_large_finite_values_are_no_error(tmp_path: Path) -> None:
    path = tmp_path / "L0H1.safetensors"
    store.write_activations(path, np.full((10, 3), 3e38), META)
    assert (store.read_activations(path)[0] > 2.9e38).all()


def test_provenance_mismatch_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "z.safetensors"
    store.write_activations(path, activations(), META)
    _, meta = store.read_activations(path)
    store.check_provenance(meta, tokenizer_hash="ab", prompt_hash="cd", n=3)
    with pytest.raises(InputError, match="z.safetensors: prompt hash is 'cd', but this run uses 'ef'"):
        store.check_provenance(meta, path, tokenizer_hash="ab", prompt_hash="ef")
    with pytest.raises(InputError, match="not recorded"):
        store.check_provenance(meta, path, license="mine")


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "site": pd.Categorical(["L0H1", "L0.resid_post", "L0H1"]),
            "generator": ["inversescope", "", ""],
            "layer": [0, 0, 1],
            "head": pd.array([1, None, 2], dtype="Int64"),
            "fcr": [1 / 3, np.nan, 2e-10],
            "accepted": [True, False, True],
        }
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_tables_round_trip_with_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"]
    for path in paths:
        store.write_table(frame().sort_index(), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    back = store.read_table(paths[0])
    assert back["generator"].tolist() == ["inversescope", "", ""] and back["head"].isna().tolist() == [
        False,
        True,
        False,
    ]
    assert back["accepted"].dtype == bool and list(back["site"]) == list(frame()["site"])
    np.testing.assert_allclose(back["fcr"], frame()["fcr"], rtol=1e-5)
    assert store.read_table(paths[0], columns=["layer", "fcr"]).shape == (3, 2)
    if suffix == "csv":
        assert paths[0].read_text().splitlines()[1] == "L0H1,inversescope,0,1,0.333333,True"


def test_unreadable_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    store.write_table(frame(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="t.parquet cannot be read"):
        store.read_table(path)
    store.write_table(frame(), tmp_path / "t.csv")
    with pytest.raises(InputError, match="cannot be read"):
        store.read_table(tmp_path / "t.csv", columns=["nothing"])
    with pytest.raises(InputError, match="does not exist"):
        store.read_table(tmp_path / "none.csv")
    with pytest.raises(InputError, match="neither a .parquet nor a .csv"):
        store.write_table(frame(), tmp_path / "t.xlsx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.parquet"]


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), store.atomic_path(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    with store.atomic_path(path) as part:
        part.write_text("new")
    assert path.read_text() == "new"
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode


def test_checkpoints_and_json_round_trip(tmp_path: Path) -> None:
    tensors = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "steps": np.array([3]),
        "mask": np.array([True]),
    }
    store.save_checkpoint(
        tmp_path / "c", tensors, {"loss": np.float32(0.5), "path": Path("a/b"), "rows": np.arange(2)}
    )
    back, meta = store.load_checkpoint(tmp_path / "c")
    assert meta == {"loss": 0.5, "path": "a/b", "rows": [0, 1]} and list(meta) == ["loss", "path", "rows"]
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        np.testing.assert_array_equal(back[name], tensor)
    back["w"][0, 0] = 1.0
    model = tmp_path / "c" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(InputError, match="cut short.*trains it"):
        store.load_checkpoint(tmp_path / "c")
    (tmp_path / "c" / "meta.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        store.read_json(tmp_path / "c" / "meta.json")
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json({"x": float("nan")}, tmp_path / "nan.json")
