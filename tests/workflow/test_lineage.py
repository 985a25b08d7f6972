"""Lineage on a finished study: adopted, pushed, restored, audited; and what must be noticed."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import MODEL, RESULTS, ROOT, copy_workflow, edit_config, planned, snakemake
from project import execute as shell

from inversescope.cli import main
from inversescope.config import load_config
from inversescope.errors import InputError, neutral
from inversescope.lineage.adopt import MAX_TABLE, adopt, restore
from inversescope.lineage.audit import audit
from inversescope.lineage.dvc import commit as keep
from inversescope.lineage.dvc import endangered
from inversescope.lineage.records import (
    ADOPTED,
    Record,
    _record_path,
    adopted_records,
    made_otherwise,
    snakemake_records,
    write_adopted,
)
from inversescope.lineage.render import render
from inversescope.lineage.rerun import compare, link_inputs
from inversescope.lineage.stale import stale
from inversescope.store import read_table
from inversescope.training import processor

FIGURE = f"results/figures/ioi_{MODEL}_fig4.png"
TABLE = f"results/tables/ioi_{MODEL}_table1.csv"
PROMPTS = "data/ioi/prompts/test.parquet"
STAGES = {"prompts@ioi", "experiment@ioi", "figures"}


def dvc(root: Path, *arguments: str) -> str:
    return shell(root, sys.executable, "-m", "dvc", *arguments)


def commit(root: Path, message: str) -> None:
    shell(root, "git", "add", "--all")
    shell(root, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message)


def keep_one_experiment(root: Path) -> None:
    """Lineage of the smallest study alone, as docs/lineage.md says: its experiment is named in dvc.yaml, the others are not."""
    pipeline = yaml.safe_load((root / "dvc.yaml").read_text())
    (experiments,) = [lists["experiments"] for lists in pipeline["vars"] if "experiments" in lists]
    others = {f"results/{about['task']}" for about in experiments.values()} - {"results/ioi"}
    others |= {path.replace("results/", "data/", 1) for path in others} | {"results/studies.html"}
    for name in set(experiments) - {"ioi"}:
        del experiments[name]
    experiments["ioi"]["model"] = MODEL
    stages = pipeline["stages"]
    del stages["ravel"], stages["weights"]
    stages["prompts"]["foreach"] = ["ioi"]
    stages["figures"]["deps"] = [dep for dep in stages["figures"]["deps"] if dep not in others]
    stages["figures"]["outs"] = [out for out in stages["figures"]["outs"] if not others & set(out)]
    (root / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))


def write_placeholder(root: Path, path: str) -> None:
    """Something to hash in place of a result: its own name; of the tables and descriptions that are read, the form."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    text = f"{path}\n"
    if path.startswith(f"{RESULTS}/fcr"):
        sites = [file.stem] if file.parent.name == "fcr" else ["L1H0", "L1H1", "L1.resid_post"]
        text = "site,note,fcr\n" + "".join(f"{site},,0.5\n" for site in sites)
    elif path == TABLE:
        text = "site,text\nL1H1,one\nL1H0,two\n"
    elif path.endswith("fig4.csv"):
        text = "x" * (MAX_TABLE + 1)
    elif path.endswith("target.json"):
        text = json.dumps({"candidate": "s3", "seed": 7, "processor": processor()})
    file.write_text(text)


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that has run, as far as Snakemake's records say, with placeholders for all but a prompt file: adopted and pushed."""
    root = copy_workflow(tmp_path_factory.mktemp("adopted") / "clone")
    for name in (".gitignore", ".gitattributes", ".dvcignore", "dvc.yaml", ".dvc/config", ".dvc/.gitignore"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    edit_config(root, yaml.safe_load((root / "config/test/smallest.yaml").read_text()))
    keep_one_experiment(root)
    shell(root, "git", "init", "-q", "-b", "main")
    commit(root, "The workflow")
    for output in planned(root, "all"):
        write_placeholder(root, output)
    shell(root, *f"inversescope make_prompts --model {MODEL} --split test --root {root}".split())
    snakemake(root, "--touch", "--forceall", "--quiet", "all", "--", "all")
    assert shell(root, "git", "status", "--porcelain") == ""
    names, left = adopt(root)
    assert set(names) == STAGES and not left
    commit(root, "Adopt the run")
    dvc(root, "push", "-q")
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
    assert restore(base / "clone", str(adopted.parent / "inversescope-store")) > 100
    return base / "clone"


# -------------------------------------------------------------------------------------------------------------- adopt, restore
def nothing_for_dvc(root: Path) -> None:
    assert "up to date" in dvc(root, "status")


def test_adopting_leaves_nothing_for_dvc_to_do(adopted: Path) -> None:
    nothing_for_dvc(adopted)
    records = adopted_records(adopted)
    assert set(records) == set(snakemake_records(adopted))
    for path, record in records.items():
        assert record.state(adopted / path, verify=True) == "unchanged", path
        assert abs((adopted / path).stat().st_mtime - record.ended) < 0.01
    lock = (adopted / "dvc.lock").read_text().splitlines()
    assert len(lock) < 200


def test_git_holds_copies_of_figures_and_small_tables(adopted: Path) -> None:
    held = shell(adopted, "git", "ls-files", "docs/results").split()
    assert {Path(file).suffix for file in held if "/figures/" in file} == {".png", ".csv"}
    assert {Path(file).suffix for file in held if "/tables/" in file} == {".csv", ".md"}
    assert ADOPTED in held and f"docs/{FIGURE}" in held and f"docs/{TABLE}" in held
    assert f"docs/{FIGURE}".replace(".png", ".csv") not in held, "too large"
    assert (adopted / "docs" / FIGURE).read_bytes() == (adopted / FIGURE).read_bytes()
    assert not shell(adopted, "git", "ls-files", "data", "results")


def test_what_git_holds_is_not_taken_for_computed(adopted: Path, tmp_path: Path) -> None:
    """In an archive of the sources, where all files are equally old, the whole study is planned, also after an edit."""
    shell(adopted, "git", "archive", "--output", str(tmp_path / "sources.tar"), "HEAD")
    root = tmp_path / "sources"
    with tarfile.open(tmp_path / "sources.tar") as archive:
        archive.extractall(root, filter="data")
    jobs = len({record.command for record in adopted_records(adopted).values()})
    for edit in ({}, {"kernel": {"epsilon": 0.2, "epsilons": [0.2]}}):
        edit_config(root, edit)
        for file in root.rglob("*"):
            os.utime(file, (1e9, 1e9))
        dry = snakemake(root, "--dry-run", "--quiet", "rules", "--", "all")
        assert set(re.findall(r"^total +(\d+)$", dry, flags=re.M)) == {str(jobs + 1)}, "and the target"


def planned_jobs(root: Path) -> int:
    dry = snakemake(root, "--dry-run", "--quiet", "rules", "--", "all")
    return max(map(int, re.findall(r"^total +(\d+)$", dry, flags=re.M)), default=0)


def test_outputs_without_a_record_are_made_anew(adopted: Path, clone: Path) -> None:
    """Results that were copied, unpacked or checked out, whatever their times, are not those of this checkout."""
    for folder in ("data", "results"):
        shutil.copytree(adopted / folder, clone / folder)
    jobs = len({record.command for record in adopted_records(adopted).values()})
    assert planned_jobs(clone) == jobs + 1, "and the target"
    shutil.copytree(adopted / ".snakemake/metadata", clone / ".snakemake/metadata", dirs_exist_ok=True)
    assert planned_jobs(clone) == 0, "with their records they are"


def test_a_pull_over_an_older_run_reruns_what_it_changes(
    adopted: Path, clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("data", "results", ".snakemake/metadata"):
        shutil.copytree(adopted / folder, clone / folder, dirs_exist_ok=True)
    headline = clone / f"results/tables/ioi_{MODEL}_headline.csv"
    assert made_otherwise(clone, load_config([clone / "config/config.yaml"]), headline) is None
    upstream = tmp_path / "upstream"
    shell(tmp_path, "git", "clone", "-q", str(clone), "upstream")
    edit_config(upstream, {"fcr": {"confidence": 0.9}})
    commit(upstream, "Another confidence")
    shell(clone, "git", "pull", "-q", "--ff-only", str(upstream), "HEAD")
    rules = {re.sub("_ioi.*", "", one.rule) for one in stale(clone, ["all"])}
    assert {"estimate_fcr", "collect_tables", "plot_figures", "make_report"} <= rules
    assert not rules & {"make_prompts", "train_target", "train_generator", "sample_prompts"}
    # Numbers of the older run are not shown as those of the new configuration.
    capsys.readouterr()
    assert main(["show", "ioi", "--root", str(clone)]) == 2
    assert "made by another configuration: fcr" in capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_adopting_does_not_touch_what_was_made(
    adopted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Nor files with hard links, as of a study that was copied by `cp -l`; dvc.lock stays if DVC fails."""
    root = tmp_path / "study"
    shutil.copytree(adopted, root, symlinks=True)
    file = root / "data/ioi/prompts/train.parquet"
    os.link(file, tmp_path / "link")
    before, lock = file.stat(), (root / "dvc.lock").read_bytes()
    if fails:

        def full(*arguments: object, **options: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("dvc.dvcfile.ProjectFile.dump_stages", full)
        with pytest.raises(OSError):
            adopt(root)
    else:
        adopt(root)
        nothing_for_dvc(root)
    after = file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (root / "dvc.lock").read_bytes() == lock


def test_a_stale_run_is_not_adopted(adopted: Path) -> None:
    kept = {name: (adopted / name).read_bytes() for name in ("dvc.lock", ADOPTED)}
    original = (adopted / "config/config.yaml").read_text()
    edit_config(adopted, {"fcr": {"mcmc_evaluations": 7}})
    try:
        with pytest.raises(
            InputError, match=r"run_mcmc\w* \(\d+\).*params changed.*snakemake --cores all -- all study"
        ):
            adopt(adopted)
    finally:
        (adopted / "config/config.yaml").write_text(original)
    assert kept == {name: (adopted / name).read_bytes() for name in kept}


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
    assert "Nothing to be done" in snakemake(restored, "-n", "--", "all")
    nothing_for_dvc(restored)
    assert shell(restored, "git", "status", "--porcelain") == ""


def test_after_restoring_an_edit_reruns_its_dependants_alone(restored: Path) -> None:
    """As in the study that was run (test_workflow.py has more edits)."""
    original = (restored / "config/config.yaml").read_text()
    edit_config(restored, {"fcr": {"confidence": 0.9}, "variants": {"default": {"change": "nothing"}}})
    try:
        rules = {s.rule for s in stale(restored, ["all", "study"])}
    finally:
        (restored / "config/config.yaml").write_text(original)
    after = {"estimate_fcr", "collect_tables", "draw_exact", "plot_figures", "make_browser", "make_report"}
    after |= {"find_hypotheses", "collect_hypotheses"}
    exact = {"check_causes", "plot_causes", "plot_layers", "plot_heads"}
    assert {re.sub("_ioi.*", "", rule) for rule in rules} == after | exact | {"plot_readers"}


def test_a_restored_run_is_adopted_again_with_the_same_records(restored: Path, tmp_path: Path) -> None:
    before = adopted_records(restored)
    shutil.copytree(restored / ".snakemake/metadata", tmp_path / ".snakemake/metadata")
    write_adopted(tmp_path, {output: record.md5 for output, record in before.items()})
    assert adopted_records(tmp_path) == before


def test_code_that_was_edited_since_is_not_blessed(clone: Path, adopted: Path) -> None:
    source = clone / "src/inversescope/fcr/estimators.py"
    source.write_text(source.read_text() + "\n# edited\n")
    with pytest.raises(InputError, match="compute_exact.*check out the commit that wrote dvc.lock"):
        restore(clone, str(adopted.parent / "inversescope-store"))


def test_a_flipped_byte_in_the_remote_is_not_restored(clone: Path, adopted: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(adopted.parent / "inversescope-store", store)
    md5 = adopted_records(adopted)["data/ioi/prompts/train.parquet"].md5
    flip(store / "files/md5" / md5[:2] / md5[2:])
    with pytest.raises(InputError, match="fetch|after the pull"):
        restore(clone, str(store))
    assert not (clone / "data/ioi/prompts/train.parquet").exists()


def test_results_that_were_made_since_are_not_overwritten(
    restored: Path, adopted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, figure, own = tmp_path / "clone", Path(FIGURE), RESULTS / "own/L1H0.csv"
    shutil.copytree(restored, root, symlinks=True)
    # In DVC's cache, as another adopted run is; and damaged: neither is worth keeping.
    shutil.copyfile(root / PROMPTS, root / RESULTS / "fcr.csv")
    flip(root / PROMPTS)
    assert endangered(root, adopted_records(root)) == []
    for path in (Path(TABLE), figure, own):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("made since\n")

    def seen() -> dict[str, tuple[bytes, int]]:
        files = (file for part in ("data", "results", ".snakemake") for file in (root / part).rglob("*"))
        return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files if file.is_file()}

    before, asked = (
        seen(),
        ["restore", "--root", str(root), "--remote", str(adopted.parent / "inversescope-store")],
    )
    capsys.readouterr()
    assert main(asked) == 2 and seen() == before
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"error: 3 files are not those of the adopted run, and are kept nowhere else: {figure}, " in told
    assert str(own) in told and TABLE in told and "make restore OVERWRITE=1" in told and PROMPTS not in told
    assert main([*asked, "--overwrite"]) == 0
    for path, record in adopted_records(root).items():
        assert record.state(root / path, verify=True) == "unchanged", path
    assert not (root / own).exists()


def test_a_clone_with_nothing_of_its_own_is_restored_without_a_question(clone: Path, restored: Path) -> None:
    """Nor are files that are the run's already, whatever their times: a restore that was killed goes on."""
    assert endangered(clone, adopted_records(clone)) == []
    shutil.copytree(restored / "data", clone / "data", copy_function=shutil.copyfile)
    assert endangered(clone, adopted_records(clone)) == []


def test_a_lock_of_another_run_than_the_records_is_refused(clone: Path, adopted: Path) -> None:
    """As after a merge, or a checkout of one of the two files: what came would be taken for damaged."""
    lock = yaml.safe_load((clone / "dvc.lock").read_text())
    (report,) = [out for out in lock["stages"]["figures"]["outs"] if out["path"] == "results/report.html"]
    report["md5"] = "0" * 32
    (clone / "dvc.lock").write_text(yaml.safe_dump(lock))
    with pytest.raises(
        InputError, match="report.html has another hash in dvc.lock than in docs/results/jobs"
    ):
        restore(clone, str(adopted.parent / "inversescope-store"))
    assert not (clone / "data").exists()


def test_a_checkout_without_results_is_not_adopted(clone: Path) -> None:
    lock = (clone / "dvc.lock").read_bytes()
    with pytest.raises(InputError, match="no output of a stage of dvc.yaml is here"):
        keep(clone)
    assert (clone / "dvc.lock").read_bytes() == lock


def test_restoring_needs_a_lock_and_a_remote(clone: Path) -> None:
    with pytest.raises(InputError, match="neither a remote nor a directory"):
        restore(clone, "nowhere")
    (clone / "dvc.lock").unlink()
    with pytest.raises(InputError, match="no run has been adopted.*make adopt"):
        restore(clone)


def test_dvc_repro_records_what_adopting_does(adopted: Path, tmp_path: Path) -> None:
    """DVC runs every stage through Snakemake, which finds nothing to do; dvc.lock is then the same."""
    root = tmp_path / "repro"
    shutil.copytree(adopted, root, ignore=shutil.ignore_patterns("cache", "tmp"))
    (root / "dvc.lock").unlink()
    ran = re.findall(r"^(?:local)?rule (\w+):", dvc(root, "repro"), flags=re.M)
    assert set(ran) <= {"study"}, "a target, which is empty here"
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
    assert found.fine and found.state == "unchanged"
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
        "data set ioi: draws from its prior, by seed 0",
        f"target model {MODEL}: source trained, candidate s3, seed 7",
        f"processor: {processor()}",
    ):
        assert words in text
    assert found.nodes["compute_exact"].config["kernel.distance"] == "cosine"
    assert found.nodes["compute_exact"].code["src/inversescope/fcr/estimators.py"].startswith("sha256:")
    commit_now = shell(adopted, "git", "rev-parse", "--short", "HEAD").strip()
    assert f"git commit {commit_now}" in text and f"dvc.lock of {commit_now}" in text
    assert all(len(f["hash"]) == 32 for node in found.nodes.values() for f in node.files)
    copy = audit(adopted, f"docs/{FIGURE}")
    assert copy.fine and copy.hash == found.hash and copy.nodes == found.nodes


def test_one_number_is_traced_by_way_of_its_row(adopted: Path) -> None:
    lines = (adopted / RESULTS / "fcr.csv").read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if line.startswith("L1H1,"))
    found = audit(adopted, f"{RESULTS}/fcr.csv:{number}")
    assert found.fine and found.row["site"] == "L1H1"
    assert found.row_from == str(RESULTS / "fcr/L1H1.csv")
    # What the job of the row's site has read.
    assert len(found.nodes["sample_prompts"].files) == 18 and "collect_tables" in found.nodes
    assert [f["path"] for f in found.nodes["estimate_fcr"].files] == [str(RESULTS / "fcr/L1H1.csv")]
    assert len(audit(adopted, f"{RESULTS}/fcr.csv").nodes["estimate_fcr"].files) == 9
    copy = audit(adopted, f"docs/{TABLE}:3")
    assert copy.fine and copy.row == {"site": "L1H0", "text": "two"} and "plot_figures" in copy.nodes


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
    path = f"{RESULTS}/fcr/L1H0.csv"
    lines = (root / path).read_text().splitlines(keepends=True)
    (root / path).unlink()  # not through a link to the cache
    (root / path).write_text("".join(lines[: len(lines) // 2]))
    assert len(read_table(root / path)) == len(lines) // 2 - 1  # reads as a table
    assert main(["audit", path, "--root", str(root)]) == 1


def test_a_flipped_byte_is_found_though_size_and_time_are_the_same(adopted: Path, tmp_path: Path) -> None:
    root = tmp_path / "flipped"
    shutil.copytree(adopted, root)
    path = f"{RESULTS}/cells/L1H0.parquet"
    md5 = adopted_records(root)[path].md5
    flip(root / path)
    flip(root / ".dvc/cache/files/md5" / md5[:2] / md5[2:])
    found = audit(root, path, verify=True)
    assert found.state == "changed" and not found.fine
    assert [Path(p).name for p in found.damaged_objects] == [md5[2:]]
    assert "CHANGED" in render(found) and "DAMAGED" in render(found)


def test_every_large_file_is_hashed_only_when_asked(adopted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With files counted as large, the time of its record is believed, and the flipped byte missed; --verify reads the bytes."""
    file, record = adopted / PROMPTS, adopted_records(adopted)[PROMPTS]
    monkeypatch.setattr("inversescope.lineage.records.SMALL", 0)
    original, stat = file.read_bytes(), file.stat()
    flip(file)
    try:
        assert record.state(file, verify=False) == "unchanged"
        assert record.state(file, verify=True) == "changed"
        file.touch()
        assert record.state(file, verify=False) == "unchecked"
    finally:
        file.write_bytes(original)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_missing_files_edited_values_and_edited_code_are_told(adopted: Path, tmp_path: Path) -> None:
    root = tmp_path / "changed"
    shutil.copytree(adopted, root)
    (root / RESULTS / "exact/L1H0.parquet").unlink()
    edit_config(root, {"fcr": {"mcmc_evaluations": 7}})
    source = root / "src/inversescope/kernel/kernel.py"
    source.write_text(source.read_text() + "\n# edited\n")
    found = audit(root, FIGURE)
    assert not found.fine and not found.nodes["compute_exact"].present
    why = {name: "; ".join(node.why) for name, node in found.nodes.items()}
    assert "exact/L1H0.parquet is missing" in why["estimate_fcr"]
    assert "configuration fcr.mcmc_evaluations was 8, now 7" in why["run_mcmc"]
    assert "src/inversescope/kernel/kernel.py is not what it was" in why["compute_exact"]
    assert found.nodes["make_prompts"].fine and found.nodes["train_target"].fine
    assert re.search(r"exact/L1H0.parquet  md5:\w{32}  missing", render(found))
    assert "uncommitted edits" in render(found)
    assert main(["audit", FIGURE, "--root", str(root)]) == 1


def test_a_node_is_recomputed_and_compared(adopted: Path) -> None:
    path = PROMPTS
    found = audit(adopted, FIGURE, rerun=path)
    assert found.rerun == {path: "identical"} and found.fine
    original = (adopted / path).read_bytes()
    (adopted / path).write_bytes(original[:-1])
    try:
        assert audit(adopted, path, rerun=path).rerun == {path: "different"}
    finally:
        (adopted / path).write_bytes(original)
    with pytest.raises(InputError, match="make_prompts stands for 3 recorded jobs"):
        audit(adopted, FIGURE, rerun="make_prompts")
    with pytest.raises(InputError, match="elsewhere is not a recorded job"):
        audit(adopted, FIGURE, rerun="elsewhere")


def test_a_job_finds_its_inputs_and_none_of_its_outputs(tmp_path: Path) -> None:
    def job(output: str, *inputs: str) -> Record:
        return Record(output, inputs, f"inversescope {output}", {}, {}, 0, 1)

    root, folder = tmp_path / "run", tmp_path / "elsewhere/study"
    for path in (
        "config/config.yaml",
        "upstream.yaml",
        "data/in.csv",
        "data/t/target.json",
        "data/t/more.json",
        "data/t/score.csv",
        "results/behind.csv",
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    (root / "config/config.yaml").write_text("seed: 0\n")
    (root / "data/out.csv").touch()
    page = job("results/deep/out.csv", "data/in.csv", "data/t/target.json")
    score = job("data/t/score.csv", *page.inputs)  # beside a description that it reads
    link_inputs(root, folder, [page, score], {"data/in.csv": job("data/in.csv", "results/behind.csv")})
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {
        "data/in.csv",
        "data/t/target.json",
        "data/t/more.json",
        "upstream.yaml",
        "results/behind.csv",
    } <= found
    assert not {"data/out.csv", "data/t/score.csv"} & found and (folder / "results/deep").is_dir()


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


def test_a_fresh_clone_knows_every_job(clone: Path, adopted: Path) -> None:
    """Git holds the records; of the files, only the copies are there."""
    found, whole = audit(clone, f"docs/{FIGURE}"), audit(adopted, FIGURE)
    assert found.state == "unchanged" and not found.fine and found.hash == whole.hash
    assert set(found.nodes) == set(whole.nodes) and not found.nodes["make_prompts"].present
    for name, node in found.nodes.items():
        assert node.commands == whole.nodes[name].commands and node.code == whole.nodes[name].code
        assert [(f["path"], f["hash"]) for f in node.files] == [
            (f["path"], f["hash"]) for f in whole.nodes[name].files
        ]
    text = render(found)
    assert "make restore" in text and "MISSING" in text
    assert main(["audit", f"docs/{FIGURE}", "--root", str(clone)]) == 1
    flip(clone / "docs" / FIGURE)
    assert audit(clone, f"docs/{FIGURE}").state == "changed"


def rerecord(root: Path, output: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change what Snakemake has recorded here of the job that wrote an output."""
    file = _record_path(root, output)
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def test_what_ran_since_is_told_from_what_was_adopted(adopted: Path, tmp_path: Path) -> None:
    root = tmp_path / "since"
    shutil.copytree(adopted, root)
    rerecord(root, FIGURE, lambda values: values | {"shellcmd": values["shellcmd"] + " --threads 9"})
    here, copy = (audit(root, name).nodes["plot_figures"].commands[0] for name in (FIGURE, f"docs/{FIGURE}"))
    assert here == f"{copy} --threads 9", "a copy in git is of the adopted run"
    (root / ADOPTED).unlink()
    found = audit(root, FIGURE)
    assert found.state == "unrecorded" and not found.fine and found.nodes["compute_exact"].reproducible


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


def test_a_damaged_record_is_one_clear_error(clone: Path) -> None:
    folder = clone / ".snakemake/metadata"
    folder.mkdir(parents=True)
    (folder / "QQ==").write_text("{")
    with pytest.raises(InputError, match="QQ== is not a record of Snakemake.*make restore"):
        audit(clone, FIGURE)
    shutil.rmtree(folder)
    (clone / ADOPTED).write_bytes(b"x")
    with pytest.raises(InputError, match="jobs.json.xz cannot be read.*restore it from git"):
        audit(clone, FIGURE)
    (clone / ADOPTED).unlink()
    with pytest.raises(InputError, match="no recorded job.*make adopt"):
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
