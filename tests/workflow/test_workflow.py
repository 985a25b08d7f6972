"""The workflow as Snakemake sees it: which jobs there are, what reruns after an edit, and that it is well written."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from project import FILES, MODEL, ROOT, copy_workflow, edit_config, planned, snakemake

from inversescope.cli import STAGES, _parser
from inversescope.config import Config, ExperimentConfig, load_config
from inversescope.lineage.planned import Graph, figures, graph
from inversescope.lineage.records import CONFIG_FILE, configured, read_records
from inversescope.sites import expand_sites
from inversescope.workflow.figures import of_the_paper
from inversescope.workflow.plan import ExperimentPlan, Plan
from inversescope.workflow.sources import source_files
from inversescope.workflow.stages import stage_of

STUDY_TARGETS = ("all", "study")


def jobs(output: str) -> Counter[str]:
    """Number of jobs by stage in a dry run; what a loop adds to a rule's name is left out."""
    _, _, table = output.rpartition("Job stats:")
    found: Counter[str] = Counter()
    for name, count in re.findall(r"^([a-z]\w*) +(\d+)$", table, flags=re.M):
        if name != "total":
            found[stage_of(name)] += int(count)
    return found


def layer(root: Path, values: dict, name: str = "delta") -> list[str]:
    """Write a delta and give the options that lay it over the default configuration."""
    file = root / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return ["--configfile", "config/config.yaml", file.name]


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workflow in which nothing has run."""
    return copy_workflow(tmp_path_factory.mktemp("workflow"))


def as_if_run(root: Path, *targets: str) -> Path:
    """Make all outputs of a copy of the workflow, empty, and have Snakemake record its jobs as done."""
    for output in planned(root, *targets):
        (root / output).parent.mkdir(parents=True, exist_ok=True)
        (root / output).touch()
    snakemake(root, "--touch", "--forceall", "--quiet", "all", "--", *targets)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the workflow in which the smallest study has run, as far as Snakemake's records say; the files are empty."""
    root = copy_workflow(tmp_path_factory.mktemp("finished"))
    edit_config(root, yaml.safe_load((root / FILES[-1]).read_text()))
    return as_if_run(root, "all")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which all studies of the default configuration have run, likewise: the real model's at the sites of its study."""
    root = copy_workflow(tmp_path_factory.mktemp("everything"))
    sites = load_config([ROOT / "config/config.yaml"]).variant("paper_wide_s0_x1").sites
    variants = {"paper_share0.01": {"sites": sites}}
    change = {"sites": sites, "patched": sites, "settings": {"variants": variants}}
    edit_config(root, {"experiments": {"ioi_smollm2": change}})
    return as_if_run(root, *STUDY_TARGETS)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config([ROOT / "config" / "config.yaml"])


# Jobs that a task has once, for all of its experiments.
ONCE = {"ioi": {"make_report": 1}, "ravel": {"plot_ravel": 1}}


# Jobs of a case study.
CAUSES = {"check_causes": 1, "plot_causes": 1}
CASE = {**CAUSES, "compare_distances": 1, "check_completeness": 1, "plot_cases": 1}


def further(experiment: ExperimentConfig, config: Config, n_sites: int, n_blocks: int) -> dict[str, int]:
    """Jobs that an experiment has beside what every task has, by task."""
    general = config.sae.general
    few_shot = {"patch_task_vectors": 1, "plot_icl": 1, "label_tasks": int(config.labeller is not None)}
    if config.labeller is not None and config.labeller.targets:
        few_shot |= {"rate_labels": 1, "plot_labels": 1}
    ioi = {
        **dict.fromkeys(("plot_layers", "plot_heads", "draw_exact", "plot_figures"), 1),
        **(CAUSES if experiment.patched else {}),
    }
    return {
        "ioi": ioi,
        "ioi_small": ioi,
        "counting": CASE,
        "addition": {**CASE, "trace_answers": 1, "plot_answers": 1},
        "ravel": {
            # Its targets are no prompts of the prior.
            "extract_activations": 2 if experiment.n_reference == "all" else 1,
            "collect_positions": n_blocks,
            "train_sae": n_blocks,
            "classify_attributes": n_sites,
            "fetch_general_text": int(general is not None and general.source == "hub"),
            # Released autoencoders.
            "fetch_autoencoder": n_sites if config.models[experiment.model].gemma_scope else 0,
        },
        "icl_translation": few_shot,
        "icl_words": few_shot,
    }[experiment.task]


def expected(config: Config) -> Counter[str]:
    """Jobs of the target `all`, from the configuration alone; of small models a job reads several sites."""
    tasks = {experiment.task for experiment in config.experiments.values()}
    counts = Counter(make_prompts=3 * len(tasks), all=1)
    if tasks - {"ioi"}:
        counts.update(make_studies=1)
    for task in tasks:
        counts.update(ONCE.get(task, {}))
    # Validation prompts, of tasks that need any; weights of a GGUF file, once for all tasks.
    counts.update(make_prompts=len({e.task for e in config.experiments.values() if e.n_val}))
    read = {e.model for e in config.experiments.values()}
    counts.update(import_gguf=sum(config.models[model].gguf is not None for model in read))
    plans = (ExperimentPlan(config.of(e.task, e.model), e.task, e.model) for e in config.experiments.values())
    counts.update(fetch_models=sum(bool(plan.from_hub) for plan in plans))
    if config.ravel.source != "embedded" and "ravel" in tasks:
        counts.update(fetch_ravel=1)
    if config.icl_translation.words == "lists" and "icl_translation" in tasks:
        counts.update(fetch_word_lists=1)
    for experiment in config.experiments.values():
        counts.update(expected_of(experiment, config.of(experiment.task, experiment.model)))
    return counts


def expected_of(experiment: ExperimentConfig, config: Config) -> Counter[str]:
    """Jobs of one experiment."""
    model = config.models[experiment.model]
    trained = model.source == "trained"
    enumerated = experiment.n_reference == "all"
    if trained:
        shape = next(iter(model.candidates.values())).shape
        n_layers, n_heads = shape.n_layers, shape.n_heads
    else:
        assert model.n_layers is not None and model.n_heads is not None
        n_layers, n_heads = model.n_layers, model.n_heads
    n_sites = len(expand_sites(experiment.sites, n_layers, n_heads))
    n_read = [
        len(expand_sites(config.variants[v].sites or experiment.sites, n_layers, n_heads))
        for v in config.studied_variants
    ]

    def jobs_of(n: int) -> int:
        """One a site of a large model; of a small one one for ten sites, or for more, if there would be more than ten."""
        return n if model.is_large else -(-n // max(10, -(-n // 10)))

    n_blocks = jobs_of(n_sites)
    counts = Counter(
        extract_activations=1 if enumerated else 3,
        train_backbone=1,
        train_generator=len(config.studied_variants),
        sample_prompts=sum(map(jobs_of, n_read)),
        run_mcmc=n_blocks if config.fcr.mcmc_evaluations else 0,
        compute_exact=n_blocks,
        estimate_fcr=n_blocks,
        collect_tables=1,
        score_readers=1,
        plot_readers=1,
        make_browser=1,
    )
    counts.update(further(experiment, config, n_sites, n_blocks))
    for name in (v for v in config.study_variants if config.variants[v].study == "baseline"):
        n_shown = jobs_of(len(expand_sites(config.variants[name].sites or [], n_layers, n_heads)))
        counts.update(train_generator=1, sample_prompts=n_shown, estimate_fcr=n_shown, plot_baseline=1)
    if not config.studied_variants:
        # A control, shown beside another model: exact values and patching alone.
        extracted = 1 if enumerated else 2
        counts = Counter(extract_activations=extracted, compute_exact=n_blocks, patch_task_vectors=1)
    counts.update(choose_bandwidths=int(bool(config.shares)))
    counts.update(find_hypotheses=n_blocks, collect_hypotheses=1)
    if trained:
        counts.update(train_target=len(model.candidates), score_target=len(model.candidates), select_target=1)
    else:
        counts.update({"import_checkpoint" if model.source == "checkpoint" else "fetch_target": 1})
    return counts


def test_embedded_study_has_the_right_jobs(workflow: Path, config: Config) -> None:
    assert jobs(snakemake(workflow, "--dry-run")) == expected(config)


def test_study_uses_the_same_rules(workflow: Path, config: Config) -> None:
    found = jobs(snakemake(workflow, "--dry-run", "--", "study"))
    views = [config.of(e.task, e.model) for e in config.experiments.values()]
    # Figure 5's generator is among the main job's.
    of_view = [{v for v in view.study_variants if view.variant(v).study != "baseline"} for view in views]
    studied = [variants for variants in of_view if variants]
    # The frontier's readers stand beside `paper` and `default`.
    assert found["train_generator"] == sum(map(len, studied)) + 2 > 90
    assert found["collect_study"] == found["plot_study"] == len(studied) == 3
    assert found["plot_claims"] == 1
    assert "plot_figures" not in found


def with_figures(workflow: Path, files: list[str]) -> tuple[Counter[str], Graph]:
    """Jobs of the target `all` by stage, and the graph of these and of the paper's figures by number."""
    numbers = list(of_the_paper(Plan(load_config([ROOT / file for file in files]))))
    found = graph(workflow, files, "all", *numbers)
    # Of a configuration's own study, each figure by number is among all: nothing more is made for it.
    return Counter(stage for stage in found.stages.values() if stage not in numbers), found


def test_paper_configuration_has_the_right_jobs(workflow: Path) -> None:
    files = ["config/config.yaml", "config/paper.yaml"]
    paper = load_config([ROOT / file for file in files])
    experiment = paper.experiments["ioi"]
    model = paper.models[experiment.model]
    for one in paper.experiments.values():
        assert paper.models[one.model].source == "hub" and paper.models[one.model].revision
    assert {one.model for one in paper.experiments.values()} >= {"gpt2", "gemma-2-2b", "llama-2-7b"}
    found, behind = with_figures(workflow, files)
    assert found == expected(paper)
    heads = [
        s
        for s in expand_sites(experiment.sites, model.n_layers or 0, model.n_heads or 0)
        if s.head is not None
    ]
    assert len(heads) == 144
    assert found["estimate_fcr"] >= 144 and found["sample_prompts"] >= 144 * len({"paper", "default"})
    # Figure 5: InversionView, `paper` and `default`, with all others of the tables that it is drawn from.
    refusal = behind.behind("figure_5")
    assert (refusal["train_generator"], refusal["sample_prompts"]) == (5, 5 * 144)
    assert behind.behind("figure_4")["train_generator"] == 4 and "label_tasks" not in behind.behind(
        "figure_4"
    )
    assert behind.behind("figure_7")["rate_labels"] == behind.behind("figure_11")["patch_task_vectors"] == 1


def test_paper_configuration_of_ravel_has_the_right_jobs(workflow: Path) -> None:
    files = ["config/config.yaml", "config/paper_ravel.yaml"]
    paper = load_config([ROOT / file for file in files])
    assert {e.model for e in paper.experiments.values()} == {"gemma-2-2b", "gemma-2-9b", "gemma-2-27b"}
    assert all(paper.models[e.model].revision for e in paper.experiments.values())
    small = paper.models["gemma-2-2b"]
    assert small.gemma_scope is not None and set(small.gemma_scope.l0) == set(range(26))
    assert (paper.experiments["ravel_2b"].n_train, paper.experiments["ravel_2b"].n_test) == (100_000, 10_000)
    found, behind = with_figures(workflow, files)
    assert found == expected(paper)
    assert found["classify_attributes"] == 26 + 4 + 4
    assert (found["fetch_general_text"], found["fetch_autoencoder"]) == (3, 26)
    assert behind.behind("figure_10") == behind.behind("figure_6")
    assert behind.behind("table_2")["train_sae"] == 26 + 4 + 4


def test_figures_of_the_paper_are_listed_by_number(workflow: Path) -> None:
    """Each with its target, its files and its jobs."""
    told = figures(workflow, FILES)
    assert re.findall(r"^(\w+ \d+) \(target", told, flags=re.M) == [
        "Figure 2",
        "Figure 4",
        "Figure 8",
        "Figure 9",
        "Table 1",
    ]
    files, jobs_behind = re.findall(r"^Figure 4 \(target figure_4\): (.*)\n  (.*)$", told, flags=re.M)[0]
    assert files.split(", ")[0] == f"results/figures/ioi_{MODEL}_fig4.png"
    total, _, counts = jobs_behind.partition(" jobs: ")
    found = dict(re.findall(r"(\w+) (\d+)", counts))
    assert int(total) == sum(map(int, found.values())) and found["plot_figures"] == "1"
    assert list(found)[0] == "make_prompts" and found["make_prompts"] == "3"


# A Snakefile that says of each rule whether its jobs are submitted, how many GPUs they ask for, and in which group they come.
TOLD = """
from snakemake.settings.types import GroupSettings
include: "Snakefile"
workflow.group_settings = GroupSettings(overwrite_groups={"compute_exact": "sites", "estimate_fcr": "sites"})
for one in workflow.rules:
    asked = one.resources["gpu"].raw or "asked" if "gpu" in one.resources else "none"
    where = "here" if one.name in workflow._localrules else "submitted"
    print("RULE", one.name, where, asked, one._group and one._group({}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Rule -> what `TOLD` says of it, on a cluster; three GPUs are given to a stage of several rules."""
    root = copy_workflow(tmp_path_factory.mktemp("told"))
    (root / "told.smk").write_text(TOLD)
    options = [
        "--snakefile",
        "told.smk",
        "--profile",
        "profiles/slurm",
        "--set-resources",
        "estimate_fcr:gpu=3",
    ]
    files = ["config/config.yaml", "config/paper.yaml", "config/paper_text.yaml", "upstream.yaml"]
    (root / files[-1]).write_text(
        "ravel: {source: upstream}\nonly: [ioi, icl_gemma2, ioi_smollm2, ravel_smollm2, factual]\n"
        f"text: {{source: hub, path: some/pages, revision: {'a' * 40}}}\n"
    )
    said = snakemake(root, "--dry-run", *options, "--configfile", *files, "--", "prompts")
    return {name: rest for name, *rest in map(str.split, re.findall(r"^RULE (.*)$", said, flags=re.M))}


def test_what_a_profile_says_of_a_stage_holds_for_all_of_its_rules(told: dict[str, list[str]]) -> None:
    in_groups = [name for name in told if stage_of(name) in ("compute_exact", "estimate_fcr")]
    assert {"compute_exact_ioi", "estimate_fcr_ioi", "estimate_fcr_ioi_baseline"} <= set(in_groups)
    for name in in_groups:
        gpus = "3" if stage_of(name) == "estimate_fcr" else "none"
        assert told[name] == ["submitted", gpus, "sites"]


def test_a_gpu_is_asked_for_where_a_model_runs(told: dict[str, list[str]]) -> None:
    """Stages that load PyTorch run a model, but for one that copies weights, those that fetch, and one that gathers what
    others proposed."""
    asked = {stage_of(name) for name, (_, gpus, _) in told.items() if gpus == "asked"}
    submitted = {stage_of(name) for name, (where, _, _) in told.items() if where == "submitted"}
    loads = {
        stage
        for stage in submitted & STAGES.keys()
        for file in source_files(stage, None)
        if re.search(r"^ *(import|from) torch\b", (ROOT / file).read_text(), flags=re.M)
    }
    # Trained targets have rules too, whatever is read here.
    assert (
        asked
        == loads - {"select_target", "collect_hypotheses"}
        >= {"train_target", "score_target", "sample_prompts"}
    )
    grouped = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())["groups"]
    assert not asked & {entry.partition("=")[0] for entry in grouped}, "a group would ask for all its GPUs"


def test_what_fetches_runs_where_snakemake_runs(told: dict[str, list[str]]) -> None:
    """Nodes of a cluster often have no network."""
    fetching = {name for name in told if name.startswith(("fetch_", "import_"))}
    here = {name for name, (where, _, _) in told.items() if where == "here"}
    every = {stage for stage in STAGES if stage.startswith(("fetch_", "import_"))}
    assert fetching == every == {name for name in here if name in STAGES}


def test_the_partition_follows_from_what_a_job_asks_for() -> None:
    from snakemake_executor_plugin_slurm.partitions import get_best_partition, read_partition_file

    partitions = read_partition_file(ROOT / "profiles/slurm/partitions.yaml")
    for gpus, partition in ((None, "cpu"), (0, "cpu"), (1, "gpu"), (4, "gpu")):
        asked = {"mem_mb": 64000, "runtime": 2880} | ({} if gpus is None else {"gpu": gpus})
        job = SimpleNamespace(name="one", threads=1, resources=asked)
        assert get_best_partition(partitions, job, logging.getLogger()) == partition  # type: ignore[arg-type]


def test_commands_of_jobs(workflow: Path) -> None:
    """A training with several GPUs has a process each, and all jobs are told the configuration's files in their order."""
    more = ["--dry-run", "--printshellcmds", "--set-resources", "train_generator:gpu=4"]
    options = [*layer(workflow, {"seed": 3}, "told")[:-1], FILES[-1], "told.yaml"]
    shell = snakemake(workflow, *more, *options, "--", "generators")
    several = r"accelerate launch .*--num_processes 4 .*--no_python inversescope train_generator "
    assert len(re.findall(several, shell)) == shell.count("accelerate launch") == len({"paper", "default"})
    assert "inversescope train_backbone " in shell, "which has no GPU, hence no launcher"
    told = " ".join(f"--config {file}" for file in (*FILES, "told.yaml"))
    commands = re.findall(r"^.*\binversescope \w+ --.*$", shell, flags=re.M)
    assert len(commands) > 9 and all(told in " ".join(command.split()) for command in commands)
    # Who was given no GPU touches none.
    for command in commands:
        assert ("--device cpu" in command) == ("train_generator" not in command)


def test_gpus_of_jobs(workflow: Path) -> None:
    """Models of others get one, those that were trained here none; what looks up or only counts gets none; `gpu=0` is for all."""
    files = ["config/config.yaml", "config/paper.yaml"]

    def given(*more: str) -> dict[str, bool]:
        options = ["--dry-run", "--printshellcmds", *more, "--configfile", *files]
        shell = " ".join(snakemake(workflow, *options, "--", "ioi").split())
        commands = re.findall(r"inversescope (\w+) (.*?) --log", shell)
        return {stage: "--device cpu" not in rest for stage, rest in commands}

    found = given()
    assert {stage for stage, gpu in found.items() if gpu} >= {
        "extract_activations",
        "sample_prompts",
        "run_mcmc",
    }
    assert not any(
        found[stage] for stage in ("fetch_target", "compute_exact", "estimate_fcr", "plot_figures")
    )
    assert not any(given("--resources", "gpu=0").values())


def test_where_a_job_runs_does_not_make_it_stale(everything: Path) -> None:
    more = ["--set-resources", "train_generator:gpu=4", "make_prompts:slurm_partition=cpu"]
    assert "Nothing to be done" in snakemake(everything, "--dry-run", *more, "--", *STUDY_TARGETS)


def test_the_small_configuration_of_all_tasks_is_whole(workflow: Path) -> None:
    """That of one task alone is run in test_end_to_end.py."""
    files = [FILES[0], "config/test/smallest_tasks.yaml"]
    (workflow / "models" / "chat").mkdir(parents=True, exist_ok=True)  # an input: who runs it makes it
    found = jobs(snakemake(workflow, "--dry-run", "--configfile", *files))
    shown = {e.task for e in load_config([ROOT / file for file in files]).experiments.values() if e.variants}
    assert found["plot_figures"] == found["make_report"] == int("ioi" in shown)
    assert found["plot_ravel"] == int("ravel" in shown)
    assert found["make_studies"] == bool(shown - {"ioi"})


def test_commands_of_a_frontier_without_variants_of_the_main_part(workflow: Path) -> None:
    """All are commands of the package: none lacks an option, as one that names variants where there are none would."""
    files = [FILES[0], "config/test/smallest_tasks.yaml"]
    told = snakemake(workflow, "--dry-run", "--printshellcmds", "--configfile", *files, "--", "study")
    commands = [shlex.split(one) for one in re.findall(r"\binversescope (\w+ --.*)$", told, flags=re.M)]
    run = {_parser().parse_args(command).stage for command in commands}
    assert {"score_readers", "plot_frontier", "plot_study"} <= run


def test_bandwidths_by_share_are_chosen_before_anything_is_trained_for_them(workflow: Path) -> None:
    files = ["config/config.yaml", "config/test/smallest.yaml"]
    plain = jobs(snakemake(workflow, "--dry-run", "--configfile", *files))
    delta = {
        "experiments": {"ioi": {"n_val": 5, "settings": {"kernel": {"share": 0.05}}}},
        "variants": {"default": {"share_range": [0.01, 0.1]}},
    }
    _, _, added = layer(workflow, delta, "shares")
    found = jobs(snakemake(workflow, "--dry-run", "--configfile", *files, added))
    assert plain["choose_bandwidths"] == 0 and found["choose_bandwidths"] == 1
    # Of an enumerated prior the validation prompts' activations are looked up.
    assert found - plain == {"choose_bandwidths": 1, "make_prompts": 1}
    trained = "data/ioi/smallest/checkpoints/inversescope/default/meta.json"
    needed = jobs(snakemake(workflow, "--dry-run", "--configfile", *files, added, "--", trained))
    assert needed["choose_bandwidths"] == 1


AFTER_ESTIMATES = {
    "estimate_fcr",
    "collect_tables",
    "draw_exact",
    "plot_figures",
    "make_browser",
    "make_report",
}
# What is edited: the delta, stages that must not rerun, stages that must.
EDITS: dict[str, tuple[dict, set[str], set[str]]] = {
    "intervals": (
        {"fcr": {"confidence": 0.9}},
        {"compute_exact", "sample_prompts", "train_generator"},
        AFTER_ESTIMATES,
    ),
    "sampling": (
        {"sampling": {"temperature": 0.9}},
        {"compute_exact", "run_mcmc", "train_generator", "extract_activations"},
        {"sample_prompts", *AFTER_ESTIMATES},
    ),
    "the chain's budget": (
        {"fcr": {"mcmc_evaluations": 7}},
        {"compute_exact", "sample_prompts", "train_generator"},
        {"run_mcmc", *AFTER_ESTIMATES},
    ),
    "one variant": (
        {"variants": {"default": {"per_site": 5}}},
        {"compute_exact", "run_mcmc", "train_backbone", "extract_activations"},
        {"train_generator", "sample_prompts", "score_readers", "plot_readers", *AFTER_ESTIMATES},
    ),
    "the backbone": (
        {"backbone": {"warmup": 7}},
        {"compute_exact", "run_mcmc", "train_target", "extract_activations"},
        {"train_backbone", "train_generator", "sample_prompts", *AFTER_ESTIMATES},
    ),
    "the number of targets": (
        {"experiments": {"ioi": {"n_test": 7}}},
        {"train_target", "train_backbone", "train_generator", "extract_activations"},
        {
            "make_prompts",
            "compute_exact",
            "sample_prompts",
            "run_mcmc",
            *AFTER_ESTIMATES,
        },
    ),
    "a description": (
        {"variants": {"default": {"change": "nothing"}}},
        {"train_generator", "sample_prompts", *AFTER_ESTIMATES},
        set(),
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_reruns_what_depends_on_it(finished: Path, config: Config, edit: str) -> None:
    values, untouched, rerun = EDITS[edit]
    found = jobs(snakemake(finished, "--dry-run", *layer(finished, values)))
    assert not untouched & set(found), f"rerun without need: {sorted(untouched & set(found))}"
    assert rerun <= set(found), f"missed: {sorted(rerun - set(found))}"
    if edit == "one variant":
        assert found["train_generator"] == len({"default"})
    if edit == "the number of targets":
        assert found["make_prompts"] == 1


def test_an_edit_of_a_base_reruns_it_and_its_descendants_alone(everything: Path, config: Config) -> None:
    """One key of `default`: the variants that take it over by `base` are made again, in every experiment, and no other."""
    delta = layer(everything, {"variants": {"default": {"clip": 0.9}}}, "base")
    output = snakemake(everything, "--dry-run", "--printshellcmds", *delta, "--", *STUDY_TARGETS)
    plan = Plan(config)
    descendants = {
        (e.task, e.model, name)
        for e in plan.experiments
        for name in e.variants
        if e.config.variant(name).base == "default"
    }
    assert len(descendants) > 30
    for stage in ("train_generator", "sample_prompts"):
        shell = re.findall(rf"inversescope {stage} --task (\S+) --model (\S+) .*?--variant (\S+)", output)
        assert set(shell) == descendants, stage
    found = jobs(output)
    assert found["train_generator"] == len(descendants)
    made_before = {"make_prompts", "train_target", "extract_activations", "train_backbone", "run_mcmc"}
    assert not {*made_before, "compute_exact", "check_causes", "train_sae"} & set(found)


def test_a_code_edit_reruns_what_imports_it(finished: Path) -> None:
    """What counts is the content of a source file, not its time."""
    package = finished / "src/inversescope"
    (package / "activations/capture.py").touch()
    source = package / "fcr/exact.py"
    text = source.read_text()
    source.write_text(text + "\n# edited\n")
    try:
        found = jobs(snakemake(finished, "--dry-run"))
    finally:
        source.write_text(text)
    assert {"compute_exact", "estimate_fcr"} <= set(found)
    assert not {"make_prompts", "extract_activations", "train_generator", "sample_prompts"} & set(found)


def test_a_chat_model_in_a_folder_is_an_input_of_hypotheses(workflow: Path) -> None:
    _, _, added = layer(workflow, {"hypotheses": {"proposer": {"path": "chat"}}}, "proposer")
    target = f"results/ioi/{MODEL}/hypotheses.csv"
    command = "--dry-run", "--configfile", *FILES, added, "--", target
    output = snakemake(workflow, *command, check=False)
    assert "MissingInputException" in output and re.search(r"^ *chat$", output, flags=re.M), output[-2000:]


def test_a_lost_file_is_made_again(finished: Path) -> None:
    lost = next((finished / "results").glob("*/*/cells/*.parquet"))
    lost.rename(lost.with_suffix(".away"))
    try:
        found = jobs(snakemake(finished, "--dry-run", "--", str(lost.relative_to(finished))))
    finally:
        lost.with_suffix(".away").rename(lost)
    assert found == {"estimate_fcr": 1}


def test_a_bad_configuration_is_one_clear_error(workflow: Path) -> None:
    values = {"experiments": {"ioi": {"sites": ["L0H99"]}}}
    output = snakemake(workflow, "--dry-run", *layer(workflow, values, "bad"), check=False)
    (message,) = [line for line in output.splitlines() if "L0H99" in line]
    assert message.endswith("."), message
    assert "WorkflowError" in output and "Traceback" not in output


def test_overrides_on_the_command_line_are_refused(workflow: Path) -> None:
    output = snakemake(workflow, "--dry-run", "--config", "seed=3", check=False)
    assert "--config overrides do not reach the jobs" in output


def dvc_stages(root: Path) -> dict[str, Any]:
    """Stages of dvc.yaml by name, as DVC itself resolves its matrix."""
    from dvc.repo import Repo

    shutil.copy2(ROOT / "dvc.yaml", root)
    (root / ".dvc").mkdir(exist_ok=True)
    shutil.copy2(ROOT / ".dvc" / "config", root / ".dvc")
    repo = Repo(str(root), config={"core": {"no_scm": True}})
    return {stage.name: stage for stage in repo.index.stages}


def below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


CODE = {"Snakefile", "rules", "src/inversescope", CONFIG_FILE, "config/embedded.yaml"}


def test_a_finished_study_is_by_its_configuration(everything: Path) -> None:
    """What each job recorded of the configuration is what lineage derives from it, of all rules of all tasks."""
    config = load_config([everything / "config/config.yaml"])
    records = {record.command: record for record in read_records(everything).values()}
    assert len({record.stage for record in records.values()}) > 25
    for record in records.values():
        assert record.used, record.stage
        for key, (recorded, present) in configured(config, record).items():
            assert recorded == present, f"{record.stage}: {key}"


def test_dvc_agrees_with_snakemake(everything: Path) -> None:
    """Outputs, dependencies and commands of dvc.yaml against the jobs that Snakemake recorded for all studies."""
    records = read_records(everything)
    stages = dvc_stages(everything)
    outs = {name: [relative(everything, out) for out in stage.outs] for name, stage in stages.items()}
    needs = {name: [relative(everything, dep) for dep in stage.deps] for name, stage in stages.items()}
    homes = {file: [name for name in stages if below(file, outs[name])] for file in records}
    wrong = {file: names for file, names in homes.items() if len(names) != 1}
    assert not wrong, f"in no stage or in several: {list(wrong.items())[:3]}"
    home = {file: names[0] for file, names in homes.items()}

    read: dict[str, set[str]] = {name: set(CODE) for name in stages}
    for file, record in records.items():
        for needed in record.inputs:
            found = {dep for dep in needs[home[file]] if below(needed, [dep])}
            assert found or home.get(needed) == home[file], (
                f"{home[file]}: {needed} is read, but no dependency"
            )
            read[home[file]] |= found
    for name in stages:
        assert set(needs[name]) == read[name], f"{name}: no job reads {sorted(set(needs[name]) - read[name])}"
        for out in outs[name]:
            assert any(below(file, [out]) for file in records), f"{name}: no job writes {out}"

    targets = {name: str(stage.cmd).partition(" -- ")[2].split() for name, stage in stages.items()}
    asked = sorted({target for words in targets.values() for target in words})
    dry = snakemake(everything, "--dry-run", "--forceall", "--", *asked)
    wanted = dict(re.findall(r"^(?:local)?rule (\w+):\n +input: (.*)$", dry, flags=re.M))
    together: dict[str, set[str]] = {}
    for record in records.values():
        together.setdefault(record.command, set()).add(record.output)
    for name, words in targets.items():
        pending = [file for word in words for file in wanted[word].split(", ")]
        made: set[str] = set()
        while pending:
            file = pending.pop()
            if file in records and file not in made:
                made |= together[records[file].command]
                pending += records[file].inputs
        lost = {file for file in records if home[file] == name} - made
        assert not lost, f"{name}: its command does not make {sorted(lost)[:3]}"


def test_git_ignores_what_a_run_writes(everything: Path) -> None:
    """So that `git status` is clean after it, and no file of git is taken for an output."""
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    files = "\n".join(read_records(everything))
    ignored = subprocess.run(command, cwd=ROOT, input=files, text=True, capture_output=True).stdout
    assert ignored.split() == files.split()
    assert not [file for file in ("dvc.lock", "docs/results/x.csv") if file in ignored]


def test_who_reads_activations_names_their_prompts(everything: Path) -> None:
    """Activations are checked against the prompts that they are of."""

    def splits(paths: tuple[str, ...], pattern: str) -> set[str]:
        return {match[1] for path in paths if (match := re.search(pattern, path))}

    for record in read_records(everything).values():
        activations = splits(record.inputs, r"/activations/(\w+)/")
        assert activations <= splits(record.inputs, r"/prompts/(\w+)\.parquet$"), record.stage


def relative(root: Path, entry: Any) -> str:
    return Path(entry.fs_path).relative_to(root.resolve()).as_posix()


def test_rules_and_commands_have_the_same_names() -> None:
    rules = "".join(file.read_text() for file in (ROOT / "rules").glob("*.smk"))
    assert set(re.findall(r'"inversescope (\w+)', rules)) == set(STAGES)
    named = set(re.findall(r"^ *rule (\w+):|f\"(\w+)_{block.name}\"", rules, flags=re.M))
    assert {a or b for a, b in named} == set(STAGES)


def test_every_work_rule_has_the_same_blocks() -> None:
    order = "input output log benchmark threads resources params message shell".split()
    for file in sorted((ROOT / "rules").glob("*.smk")):
        for rule in re.split(r"^ *(?=(?:use )?rule\b)", file.read_text(), flags=re.M)[1:]:
            blocks = [b for b in re.findall(r"^ +(\w+):", rule, flags=re.M) if b in order]
            # `use rule ... with` names only what it changes.
            full = [b for b in order if b in blocks] if rule.startswith("use") else order
            assert blocks == full, f"{file.name}: {rule.splitlines()[0]}"


def test_no_command_is_a_formatted_string() -> None:
    """Snakemake evaluates a rule's command when the job runs. A loop's variable then has its last value, whatever the rule."""
    for file in sorted((ROOT / "rules").glob("*.smk")):
        for command in re.findall(r"^ +shell:\n((?: +.*\n)+)", file.read_text(), flags=re.M):
            assert not re.search(r"^ +f[\"']", command, flags=re.M), f"{file.name}: {command}"
