"""Lineage on a finished tiny study: adopted, pushed, restored, audited; and what must be noticed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from inversescope.cli import main
from inversescope.config import merge
from inversescope.errors import InputError, neutral
from inversescope.lineage.audit import audit, compare, render
from inversescope.lineage.records import Versions, adopt, restore, stale
from inversescope.store import read_table

ROOT = Path(__file__).parents[2]
RESULTS = "results/ioi/gpt2-embedded"
FIGURE = "results/figures/ioi_gpt2-embedded_fig4.png"
TRACKED = (".gitignore", ".gitattributes", ".dvcignore", "dvc.yaml")
# Of IOI alone, which is all that the tiny configuration has.
STAGES = {
    "prompts",
    "targets",
    "activations",
    "exact",
    "generators",
    "samples",
    "inversionview",
    "estimates",
    "tables",
    "figures",
    "causes",
    "frontier",
    "study",
    "report",
    "records",
}
# What all stages of IOI but the last are behind.
ENDS = ("report", "study@ioi", "frontier@ioi")


def shell(root: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(root / "src"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout + done.stderr


def commit(root: Path, message: str) -> None:
    shell(root, "git", "add", "--all")
    shell(root, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message)


def edit_config(root: Path, delta: dict[str, Any]) -> None:
    file = root / "config/config.yaml"
    file.write_text(yaml.safe_dump(merge(yaml.safe_load(file.read_text()), delta), sort_keys=False))


PARTS = ("Snakefile", "rules", "src", "config", "report", "profiles", "envs", *TRACKED)


def write_placeholder(root: Path, path: str) -> None:
    """Something to hash in place of a result: its own name; of the tables and descriptions that are read, the form."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    text = f"{path}\n"
    if path.startswith(f"{RESULTS}/fcr"):
        sites = (
            [file.stem] if file.parent.name == "fcr" else ["L0H0", "L0H1", "L1H0", "L1H1", "L1.resid_post"]
        )
        text = "site,note,fcr\n" + "".join(f"{site},,0.5\n" for site in sites)
    elif path.endswith("target.json"):
        text = '{"candidate": "s3", "seed": 7}\n'
    file.write_text(text)


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that has run, as far as Snakemake's records say, with placeholders for all but a prompt file: adopted and pushed."""
    root = tmp_path_factory.mktemp("adopted") / "clone"
    root.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, root)
    (root / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, root / ".dvc")
    edit_config(root, yaml.safe_load((root / "config/test/tiny.yaml").read_text()))
    shell(root, "git", "init", "-q", "-b", "main")
    summary = shell(root, sys.executable, "-m", "snakemake", "--summary", "ioi", "study")
    outputs = [line.split("\t")[0] for line in summary.splitlines() if line.startswith(("data/", "results/"))]
    assert len(outputs) > 200
    for output in outputs:
        write_placeholder(root, output)
    shell(root, *f"inversescope make_prompts --model gpt2-embedded --split test --root {root}".split())
    shell(
        root, *f"{sys.executable} -m snakemake --cores 1 --touch --forceall --quiet all -- ioi study".split()
    )
    commit(root, "The study")
    names = adopt(root)
    assert {name.partition("@")[0] for name in names} == STAGES
    commit(root, "Adopt the run")
    shell(root, sys.executable, "-m", "dvc", "push", "-q")
    assert (root.parent / "inversescope-store").is_dir()
    return root


@pytest.fixture
def clone(adopted: Path, tmp_path: Path) -> Path:
    """A fresh clone of the adopted study: what git has."""
    shell(tmp_path, "git", "clone", "-q", str(adopted), "clone")
    return tmp_path / "clone"


@pytest.fixture(scope="module")
def restored(adopted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone, restored from the directory that was pushed to."""
    base = tmp_path_factory.mktemp("restored")
    shell(base, "git", "clone", "-q", str(adopted), "clone")
    count, targets = restore(base / "clone", str(adopted.parent / "inversescope-store"))
    assert count > 200 and {"activations_ioi", "ioi", "study_ioi"} < set(targets)
    return base / "clone"


# -------------------------------------------------------------------------------------------------------------- adopt, restore
def nothing_for_dvc(root: Path) -> None:
    assert "up to date" in shell(root, sys.executable, "-m", "dvc", "status", "--with-deps", *ENDS)
    assert "up to date" in shell(root, sys.executable, "-m", "dvc", "status", "records")


def test_adopting_leaves_nothing_for_dvc_to_do(adopted: Path) -> None:
    nothing_for_dvc(adopted)
    recorded = Versions(adopted).recorded
    for path in (
        "data/ioi/prompts/test.parquet",
        f"{RESULTS}/fcr.csv",
        f"{RESULTS}/cells/L0H0.parquet",
        FIGURE,
    ):
        assert len(recorded[path]) == 32
    variant = "data/ioi/gpt2-embedded/checkpoints/inversescope/{}/model.safetensors"
    assert variant.format("paper") in recorded and variant.format("default_sparse_own") in recorded


@pytest.mark.parametrize("fails", [False, True])
def test_adopting_keeps_the_times_of_files_with_hard_links(
    adopted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """As of a study that was copied by `cp -l`: DVC puts files of its own in their place."""
    root = tmp_path / "study"
    shutil.copytree(adopted, root, symlinks=True)
    # One that `ioi` needs, and one of the study over variants in a folder that both have files in.
    study = sorted((root / "data/ioi").rglob("*_s0_*/model.safetensors"))[0]
    linked = [root / "data/ioi/prompts/train.parquet", study]
    before = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in linked]
    for k, file in enumerate(linked):
        os.link(file, tmp_path / f"link{k}")
    if fails:

        def full(*arguments: object, **options: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("dvc.dvcfile.ProjectFile.dump_stages", full)
        with pytest.raises(OSError):
            adopt(root, ["ioi"])
    else:
        adopt(root, ["ioi"])
        nothing_for_dvc(root)
    for file, (inode, time) in zip(linked, before, strict=True):
        assert file.stat().st_ino != inode and file.stat().st_mtime_ns == time, file
    assert "Nothing to be done" in shell(root, sys.executable, "-m", "snakemake", "-n", "all", "study")


def test_a_stale_run_is_not_adopted(adopted: Path) -> None:
    lock = (adopted / "dvc.lock").read_bytes()
    original = (adopted / "config/config.yaml").read_text()
    edit_config(adopted, {"fcr": {"mcmc_evaluations": 7}})
    try:
        with pytest.raises(
            InputError, match=r"run_mcmc\w* \(\d+\).*params changed.*snakemake --cores all -- all study"
        ):
            adopt(adopted)
    finally:
        (adopted / "config/config.yaml").write_text(original)
    assert (adopted / "dvc.lock").read_bytes() == lock


def test_a_run_that_goes_on_is_not_adopted(adopted: Path) -> None:
    locks = adopted / ".snakemake/locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.output.lock").touch()
    try:
        with pytest.raises(InputError, match="a run is going on"):
            adopt(adopted)
    finally:
        (locks / "0.output.lock").unlink()


def test_after_restoring_nothing_is_to_be_done(restored: Path) -> None:
    output = shell(restored, sys.executable, "-m", "snakemake", "-n", "--", "all", "study")
    assert "Nothing to be done" in output
    nothing_for_dvc(restored)


# After restoring: the edited key, rules that rerun, and no others; a loop's rules by their stage.
AFTER_ESTIMATES = {
    "estimate_fcr",
    "estimate_variants",
    "collect_tables",
    "collect_study",
    "collect_frontier",
    "draw_exact",
}
DRAWN = {"plot_figures", "plot_study", "plot_frontier", "make_report"}
EDITS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "confidence of intervals": (
        {"fcr": {"confidence": 0.9}},
        {"check_causes", "plot_causes"} | AFTER_ESTIMATES | DRAWN,
    ),
    "evaluations a chain": (
        {"fcr": {"mcmc_evaluations": 7}},
        {"run_mcmc"} | AFTER_ESTIMATES | DRAWN,
    ),
    "a description": ({"variants": {"default": {"change": "nothing"}}}, set()),
}


@pytest.mark.parametrize("edit", EDITS)
def test_after_restoring_an_edit_reruns_its_dependants_alone(restored: Path, edit: str) -> None:
    delta, expected = EDITS[edit]
    original = (restored / "config/config.yaml").read_text()
    edit_config(restored, delta)
    try:
        rules = {s.rule for s in stale(restored, ["all", "study"])}
    finally:
        (restored / "config/config.yaml").write_text(original)
    assert {re.sub(r"_ioi_gpt2_embedded.*", "", rule) for rule in rules} == expected


def test_code_that_was_edited_since_is_not_blessed(clone: Path, adopted: Path) -> None:
    source = clone / "src/inversescope/fcr/estimators.py"
    source.write_text(source.read_text() + "\n# edited\n")
    with pytest.raises(InputError, match="compute_exact.*check out the commit that wrote dvc.lock"):
        restore(clone, str(adopted.parent / "inversescope-store"))


def test_a_flipped_byte_in_the_remote_is_not_restored(clone: Path, adopted: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(adopted.parent / "inversescope-store", store)
    md5 = Versions(adopted).recorded["data/ioi/prompts/train.parquet"]
    flip(store / "files/md5" / md5[:2] / md5[2:])
    with pytest.raises(InputError, match="fetch|after the pull"):
        restore(clone, str(store))
    assert not (clone / "data/ioi/prompts/train.parquet").exists()


def test_restoring_needs_a_lock_and_a_remote(clone: Path) -> None:
    with pytest.raises(InputError, match="neither a remote nor a directory"):
        restore(clone, "nowhere")
    (clone / "dvc.lock").unlink()
    with pytest.raises(InputError, match="no run has been adopted.*make adopt"):
        restore(clone)


def test_dvc_repro_records_what_adopting_does(adopted: Path, tmp_path: Path) -> None:
    """DVC runs every stage through Snakemake, which finds nothing to do; dvc.lock is then the same, byte for byte."""
    root = tmp_path / "repro"
    shutil.copytree(adopted, root, ignore=shutil.ignore_patterns("cache", "tmp"))
    (root / "dvc.lock").unlink()
    output = shell(root, sys.executable, "-m", "dvc", "repro", *ENDS)
    assert output.count("Nothing to be done") == len(STAGES - {"records"})
    shell(root, sys.executable, "-m", "dvc", "repro", "--single-item", "records")
    assert yaml.safe_load((root / "dvc.lock").read_text()) == yaml.safe_load(
        (adopted / "dvc.lock").read_text()
    )


# ----------------------------------------------------------------------------------------------------------------------- audit
def flip(file: Path) -> None:
    """Change one bit in the middle of a file; its size and time stay."""
    stat = file.stat()
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_figure_is_traced_to_data_model_and_seed(adopted: Path) -> None:
    found = audit(adopted, FIGURE)
    assert found.fine and found.source == "snakemake" and found.state == "unchanged"
    assert next(iter(found.nodes)) == "plot_figures"
    whole = {
        "make_prompts",
        "train_target",
        "select_target",
        "extract_activations",
        "train_backbone",
        "train_generator",
    }
    assert whole | {"sample_prompts", "run_mcmc", "compute_exact", "estimate_fcr", "collect_tables"} <= set(
        found.nodes
    )
    assert "collect_study" not in found.nodes
    text = render(found)
    for words in (
        "data set: draws from the prior of ioi, by seed 0",
        "target model gpt2-embedded: source trained",
    ):
        assert words in text
    assert found.nodes["compute_exact"].config["kernel.distance"] == "cosine"
    assert found.nodes["compute_exact"].code["src/inversescope/fcr/estimators.py"].startswith("sha256:")
    commit_now = shell(adopted, "git", "rev-parse", "--short", "HEAD").strip()
    assert f"git commit {commit_now}" in text and f"dvc.lock of {commit_now}" in text
    assert all(f["hash"].startswith(("md5:", "git:")) for n in found.nodes.values() for f in n.files)


def test_one_number_is_traced_by_way_of_its_row(adopted: Path) -> None:
    lines = (adopted / RESULTS / "fcr.csv").read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if line.startswith("L1H1,"))
    found = audit(adopted, f"{RESULTS}/fcr.csv:{number}")
    assert found.fine and found.row["site"] == "L1H1"
    assert found.row_from == f"{RESULTS}/fcr/L1H1.csv"
    assert [f["path"] for f in found.nodes["compute_exact"].files] == [f"{RESULTS}/exact/L1H1.parquet"]
    assert len(audit(adopted, f"{RESULTS}/fcr.csv").nodes["compute_exact"].files) > 1


def test_the_command_prints_json_and_needs_no_torch(adopted: Path) -> None:
    code = (
        "import sys; from inversescope.cli import main; status = main(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'snakemake', 'pandas'} & set(sys.modules); sys.exit(status)"
    )
    values = json.loads(shell(adopted, sys.executable, "-c", code, "audit", "--json", FIGURE))
    assert values["fine"] and values["seed"] == 0 and values["nodes"]["make_prompts"]["config"]["seed"] == 0


def test_a_table_cut_between_two_lines_is_found_by_its_hash_alone(adopted: Path, tmp_path: Path) -> None:
    root = tmp_path / "cut"
    shutil.copytree(adopted, root)
    path = f"{RESULTS}/fcr/L0H0.csv"
    lines = (root / path).read_text().splitlines(keepends=True)
    (root / path).unlink()  # not through a link to the cache
    (root / path).write_text("".join(lines[: len(lines) // 2]))
    assert len(read_table(root / path)) == len(lines) // 2 - 1  # reads as a table
    assert main(["audit", path, "--verify", "--root", str(root)]) == 1


def test_a_flipped_byte_is_found_though_size_and_time_are_the_same(adopted: Path, tmp_path: Path) -> None:
    root = tmp_path / "flipped"
    shutil.copytree(adopted, root)
    path = f"{RESULTS}/cells/L0H0.parquet"
    (md5,) = (Versions(root).recorded[path],)
    flip(root / path)
    flip(root / ".dvc/cache/files/md5" / md5[:2] / md5[2:])
    found = audit(root, f"{RESULTS}/cells/L0H0.parquet", verify=True)
    assert found.state == "changed" and not found.fine
    assert [Path(p).name for p in found.damaged_objects] == [md5[2:]]
    assert "CHANGED" in render(found) and "DAMAGED" in render(found)
    assert main(["audit", path, "--verify", "--root", str(root)]) == 1


def test_every_large_file_is_hashed_only_when_asked(adopted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With files counted as large, DVC's database answers, and misses the flipped byte; --verify does not."""
    path = "data/ioi/prompts/test.parquet"
    monkeypatch.setattr("inversescope.lineage.records.SMALL", 0)
    original = (adopted / path).read_bytes()
    stat = (adopted / path).stat()
    flip(adopted / path)
    try:
        assert Versions(adopted).state(path, verify=False) == "unchanged"
        assert Versions(adopted).state(path, verify=True) == "changed"
    finally:
        (adopted / path).write_bytes(original)
        os.utime(adopted / path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_missing_files_edited_values_and_edited_code_are_told(adopted: Path, tmp_path: Path) -> None:
    root = tmp_path / "changed"
    shutil.copytree(adopted, root)
    (root / RESULTS / "exact/L0H0.parquet").unlink()
    edit_config(root, {"fcr": {"mcmc_evaluations": 7}})
    source = root / "src/inversescope/kernel/kernel.py"
    source.write_text(source.read_text() + "\n# edited\n")
    found = audit(root, FIGURE)
    assert not found.fine and not found.nodes["compute_exact"].present
    why = {name: "; ".join(node.why) for name, node in found.nodes.items()}
    assert "exact/L0H0.parquet is missing" in why["estimate_fcr"]
    assert "configuration fcr.mcmc_evaluations was 10, now 7" in why["run_mcmc"]
    assert "src/inversescope/kernel/kernel.py is not what it was" in why["compute_exact"]
    assert found.nodes["make_prompts"].fine and found.nodes["train_target"].fine
    assert "exact/L0H0.parquet  missing" in render(found)
    assert "uncommitted edits" in render(found)
    assert main(["audit", FIGURE, "--root", str(root)]) == 1


def test_a_node_is_recomputed_and_compared(adopted: Path) -> None:
    path = "data/ioi/prompts/test.parquet"
    found = audit(adopted, FIGURE, rerun=path)
    assert found.rerun == {path: "identical"} and found.fine
    original = (adopted / path).read_bytes()
    (adopted / path).write_bytes(original[:-1])
    try:
        assert audit(adopted, path, rerun=path).rerun == {path: "different"}
    finally:
        (adopted / path).write_bytes(original)
    with pytest.raises(InputError, match="compute_exact stands for 5 recorded jobs"):
        audit(adopted, FIGURE, rerun="compute_exact")
    with pytest.raises(InputError, match="elsewhere is not a recorded job"):
        audit(adopted, FIGURE, rerun="elsewhere")


def test_measured_times_are_no_difference(tmp_path: Path) -> None:
    pairs = {
        "json": (
            '{"a": 1, "train_seconds": 2.0}',
            '{"a": 1, "train_seconds": 3.0}',
            '{"a": 2, "train_seconds": 2.0}',
        ),
        "csv": ("a,sample_seconds\n1,2\n", "a,sample_seconds\n1,3\n", "a,sample_seconds\n2,2\n"),
    }
    for suffix, texts in pairs.items():
        files = [tmp_path / f"{i}.{suffix}" for i in range(3)]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text)
        assert compare(files[0], files[0]) == "identical"
        assert compare(files[0], files[1]) == "identical but for measured times"
        assert compare(files[0], files[2]) == "different"
    assert compare(files[0], tmp_path / "none") == "missing"


def test_a_fresh_clone_is_traced_by_the_stages_of_dvc(clone: Path) -> None:
    found = audit(clone, f"{RESULTS}/fcr.csv")
    assert found.source == "dvc.lock" and found.state == "unchanged" and not found.fine
    assert {name.partition("@")[0] for name in found.nodes} == {
        "tables", "estimates", "samples", "exact", "generators", "activations", "targets", "prompts"
    }  # fmt: skip
    assert found.nodes["tables@ioi"].present and not found.nodes["prompts@ioi"].present
    assert found.nodes["prompts@ioi"].files[0]["hash"].startswith("md5:")
    assert found.nodes["generators@ioi"].config["seed"] == 0
    text = render(found)
    assert "make restore" in text and "MISSING" in text
    assert main(["audit", f"{RESULTS}/fcr.csv", "--root", str(clone)]) == 1


def test_an_audit_of_the_restored_study_is_that_of_the_adopted(restored: Path, adopted: Path) -> None:
    first, second = audit(adopted, FIGURE), audit(restored, FIGURE, verify=True)
    assert second.fine
    assert {n: node.files for n, node in first.nodes.items()} == {
        n: node.files for n, node in second.nodes.items()
    }
    assert {n: node.ran for n, node in first.nodes.items()} == {
        n: node.ran for n, node in second.nodes.items()
    }


BAD = {
    "results/none.csv": "is an output of no recorded job",
    "Snakefile": "is an output of no recorded job",
    "results": "is a folder",
    "../elsewhere.csv": "is not below",
    f"{RESULTS}/fcr.csv:1": "no row at line 1",
    f"{RESULTS}/fcr.csv:99999": "its rows are at lines 2 to",
    f"{FIGURE}:3": "is no CSV file",
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_question_is_one_clear_error(
    adopted: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", what, "--root", str(adopted)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and BAD[what] in line


def test_without_a_lock_or_a_whole_record_there_is_one_clear_error(clone: Path, adopted: Path) -> None:
    folder = clone / ".snakemake/metadata"
    folder.mkdir(parents=True)
    (folder / "QQ==").write_text("{")
    with pytest.raises(InputError, match="QQ== is not a record of Snakemake.*make restore"):
        audit(clone, FIGURE)
    (clone / "dvc.lock").unlink()
    with pytest.raises(InputError, match="no run has been adopted.*make adopt"):
        audit(clone, FIGURE)


def test_terminal_escapes_are_neutralised(adopted: Path, tmp_path: Path) -> None:
    assert neutral("a\x1b[31mb\u202ec\x9bd\n") == "a\\x1b[31mb\\u202ec\\x9bd\\n"
    root = tmp_path / "escapes"
    shutil.copytree(adopted, root)
    table = root / RESULTS / "fcr.csv"
    table.write_text("site,note,fcr\n\x1b]0;title\x07\x1b[2J,,0.5\n")
    text = render(audit(root, f"{RESULTS}/fcr.csv:2"))
    assert "\\x1b]0;title\\x07" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
