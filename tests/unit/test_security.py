"""Nothing that is read can run, leave the tree, steer a terminal or a page."""

from __future__ import annotations

import ast
import json
import pickle
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import MODEL, make_target, write_config
from project import ROOT
from pydantic import BaseModel
from rich.console import Console

from inversescope.cli import main
from inversescope.config import Config, load_config
from inversescope.errors import InputError
from inversescope.figures.headline import headline_page
from inversescope.figures.headline import number as headline_number
from inversescope.figures.save import markdown, save_table
from inversescope.report.page import grid
from inversescope.report.show import show_task
from inversescope.sites import Site
from inversescope.store import load_checkpoint, load_state, read_activations, read_table, write_table
from inversescope.targets.models import load_target

DATA = Path("data/ioi") / MODEL
EVIL = "<script>alert(1)</script>\x1b]0;owned\x07\x1b[2J\u202etxt\x9b31m"
CONTROLS = ("\x1b", "\x07", "\u202e", "\x9b")


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable, tuple]:
        return (Path.touch, (self.trace,))


# ---------------------------------------------------------------------------------------------------------------------- pickle
def bombs(trace: Path) -> Iterator[bytes]:
    """A bare pickle, and a checkpoint as PyTorch writes it."""
    import io

    import torch

    yield pickle.dumps(Bomb(trace))
    buffer = io.BytesIO()
    torch.save({"weight": Bomb(trace)}, buffer)
    yield buffer.getvalue()


def test_the_bomb_goes_off(tmp_path: Path) -> None:
    """What the next tests rely on."""
    for number, data in enumerate(bombs(tmp_path / "trace")):
        if number == 0:
            pickle.loads(data)  # noqa: S301
            assert (tmp_path / "trace").exists()


def test_a_pickle_in_place_of_any_file_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for data in bombs(trace):
        for name, read in (
            ("model.safetensors", lambda path: load_checkpoint(path.parent)),
            ("state.safetensors", load_state),
            ("z.safetensors", read_activations),
            ("table.parquet", read_table),
            ("table.csv", lambda path: read_table(path, columns=["fcr"])),
        ):
            path = tmp_path / name
            path.write_bytes(data)
            (tmp_path / "meta.json").write_text("{}")
            with pytest.raises(InputError, match=name):
                read(path)
    assert not trace.exists()


def test_a_target_with_pickled_weights_or_code_of_its_own_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    make_target(tmp_path)
    folder, trace = tmp_path / DATA / "target", tmp_path / "trace"
    about = json.loads((folder / "target.json").read_text())
    (folder / "target.json").write_text(json.dumps({**about, "sha256": {}}))
    safe = (folder / "model.safetensors").read_bytes()
    for data in bombs(trace):
        (folder / "model.safetensors").unlink(missing_ok=True)
        (folder / "pytorch_model.bin").write_bytes(data)
        with pytest.raises(InputError, match="as pytorch_model.bin, and not as safetensors"):
            load_target(folder)
        (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(InputError, match="no safetensors file|cannot be loaded"):
            load_target(folder)
    (folder / "model.safetensors").write_bytes(safe)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')")
    with pytest.raises(InputError, match="code of its own"):
        load_target(folder)
    assert not trace.exists()


def test_no_source_unpickles_or_trusts_remote_code() -> None:
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "joblib", "marshal", "shelve"} & set(names), path
            if isinstance(node, ast.Call):
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert words.get("trust_remote_code", "False") == "False", path
                assert words.get("allow_pickle", "False") == "False", path
                assert words.get("shell", "False") == "False", path
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "os.system"), path
                loads = called in ("np.load", "numpy.load")
                assert not loads or words.get("allow_pickle") == "False", path
                assert called != "torch.load" or words.get("weights_only") == "True", path
                assert called != "yaml.load", path


# ----------------------------------------------------------------------------------------------------------------------- paths
OUTSIDE = (
    "../evil",
    "a/../../evil",
    "/etc/evil",
    ".hidden",
    "a b",
    "a;touch x",
    "$(touch x)",
    "a\n",
    "*",
    "",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leaves_the_tree_or_steers_a_shell_is_refused(name: str, tmp_path: Path) -> None:
    for delta in (
        {"experiments": {name: {"model": MODEL, "sites": ["L0H0"]}}},
        {"models": {name: {"source": "local", "path": "x"}}},
        {"studies": {"sweep": {"runs": {name: {"base": "paper"}}}}},
        {"variants": {name: {"base": "paper"}}},
        {"models": {MODEL: {"seeds": [name]}}},
        {"experiments": {"ioi": {"task": name}}},
        {"variants": {"paper": {"generator": name}}},
    ):
        write_config(tmp_path, delta)
        assert main(["make_prompts", "--model", MODEL, "--split", "test", "--root", str(tmp_path)]) == 2, (
            delta
        )
    assert {path.name for path in tmp_path.iterdir()} == {"config"}
    with pytest.raises(InputError):
        Site.parse(name)


# ----------------------------------------------------------------------------------------------------------------- unknown keys
def models_of(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """A configuration model and all that it consists of."""
    if model in seen:
        return seen
    seen.add(model)
    pending: list[Any] = [field.annotation for field in model.model_fields.values()]
    while pending:
        kind = pending.pop()
        pending += typing.get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            models_of(kind, seen)
    return seen


def test_every_part_of_the_configuration_refuses_unknown_keys() -> None:
    found = models_of(Config, set())
    assert len(found) > 8
    for model in found:
        assert model.model_config.get("extra") == "forbid", model.__name__


# ------------------------------------------------------------------------------------------------------- text of models and users
def test_text_in_the_report_neither_runs_nor_steers() -> None:
    from jinja2 import Environment, StrictUndefined

    table = grid(pd.DataFrame({"text": [EVIL], "fcr": [0.5]}))
    template = (
        "{% for row in grid.rows %}{% for name, cell in row %}<td>{{ cell }}</td>{% endfor %}{% endfor %}"
    )
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template).render(grid=table)
    assert "<script" not in page and not any(c in page for c in CONTROLS)
    source = (ROOT / "src/inversescope/report/page.html.j2").read_text()
    assert "|safe" not in source.replace(" ", "") and "autoescape false" not in source


def test_text_in_tables_neither_runs_nor_steers(tmp_path: Path) -> None:
    assert "<script" not in markdown(EVIL)
    frame = pd.DataFrame({"text": [EVIL], "distance": [0.1], "accepted": [True]})
    save_table(frame, markdown(EVIL), tmp_path / "table")
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert "script" in text and not any(c in text for c in CONTROLS), path
    raw = tmp_path / "raw.parquet"
    write_table(frame, raw)
    assert read_table(raw)["text"][0] == EVIL, "raw candidates keep every byte"


def test_text_on_the_terminal_does_not_steer_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(tmp_path)
    config = str(tmp_path / "config/config.yaml")
    frame, _ = headline_page([headline_number(EVIL, EVIL, EVIL, 0.5)])
    write_table(frame, tmp_path / f"results/tables/ioi_{MODEL}_headline.csv")
    with (tmp_path / "terminal").open("w+") as out:
        show_task(tmp_path, load_config([config]), "ioi", Console(file=out, width=200))
        out.seek(0)
        shown = out.read()
    assert "owned" in shown and not any(c in shown for c in CONTROLS)
    # What a user types, or a file is called, comes back in errors.
    assert main(["make_prompts", "--model", EVIL, "--split", "test", "--config", config]) == 2
    assert main(["config", "--config", f"{EVIL}.yaml"]) == 2
    err = capsys.readouterr().err
    assert "owned" in err and not any(c in err for c in CONTROLS)
