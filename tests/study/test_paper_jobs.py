"""Every job of the paper's configurations, at the paper's widths, with little to do (`paper_cases`): it runs, writes what its rule
says, and takes the operations and the memory that the formulas of docs/cost.md say, within 30%.

Snakemake tells the jobs and their commands; each runs in a process of its own. `make test` runs part of IOI, `make test-paper` all
jobs of all. `pytest -s` prints what each job took.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bench import cost
from measured import GATE_SAMPLES, Measured, measured, private_bytes
from paper_cases import CASES, DRAWS, PER_SITE, SMALL, STEPS, TARGETS, set_up, small, write_corpora
from project import copy_workflow, snakemake
from random_models import WIDTHS
from safetensors import safe_open

from inversescope.config import Config
from inversescope.context import Context
from inversescope.generator.prior import longest_prompt
from inversescope.lineage.planned import graph
from inversescope.sites import Site
from inversescope.store import read_activations, read_table
from inversescope.targets.sources import load_tokenizer
from inversescope.tasks import get_task

#: What `make test` runs.
PART = "part of ioi"
#: Width of a head of a GPT-2.
HEAD = 64
#: How far what is measured may be from a formula.
NEAR = 0.3
#: Bytes that a process takes beside what the formulas count: objects of Python's.
BESIDE = 16 << 20


@dataclass(frozen=True)
class Job:
    """A job that was run: its stage, the options of its command, and what it took."""

    stage: str
    options: dict[str, list[str]]
    took: Measured

    def __str__(self) -> str:
        names = [
            value for key in ("model", "split", "variant", "site") for value in self.options.get(key, [])
        ]
        return " ".join([self.stage, *names])


@dataclass(frozen=True)
class Run:
    """A case of which every job has run.

    Attributes:
        outputs: files that the rules say their jobs write; of a part none is told.
        longest: tokens of the longest prompt of the prior.
    """

    name: str
    root: Path
    config: Config
    outputs: list[str]
    longest: int
    jobs: list[Job]

    def of(self, stage: str) -> list[Job]:
        """Jobs of a stage."""
        return [job for job in self.jobs if job.stage == stage]

    def context(self, job: Job) -> Context:
        """The experiment of a job as its stage sees it."""
        (task,), (model,) = job.options["task"], job.options["model"]
        return Context(self.root, self.config.of(task, model), task, model, self.config)


@pytest.fixture(
    scope="module", params=[PART, *(pytest.param(name, marks=pytest.mark.paper) for name in CASES)]
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A case of which every job has run, in an order that Snakemake gives; or some of the first one.

    Its folder, gigabytes of models, goes after its tests.
    """
    name = "ioi" if request.param == PART else request.param
    root = copy_workflow(tmp_path_factory.mktemp("paper") / name)
    try:
        yield every_job_run(request.param, name, root)
    finally:
        shutil.rmtree(root)


def every_job_run(case: str, name: str, root: Path) -> Run:
    """Run the jobs of a case in a folder."""
    config = set_up(name, root)
    options = ("--resources", "gpu=0", "--configfile", *CASES[name].files, "--", "all")
    told = " ".join(snakemake(root, "--dry-run", "--printshellcmds", *options).split())
    summary = "" if case == PART else snakemake(root, "--summary", *options)
    outputs = re.findall(r"^((?:data|results)/\S+)\t", summary, flags=re.M)
    about = config.experiments[next(iter(CASES[name].parts))]
    task = get_task(about.task, config.of(about.task, about.model), root)
    longest = longest_prompt(task, load_tokenizer(root / "models/backbone"))
    run = Run(case, root, config, outputs, longest, [])
    for command in re.findall(r"\binversescope (\w+ --.*? --log \S+)", told):
        stage, *words = shlex.split(command)
        options_of: dict[str, list[str]] = {}
        for flag, value in zip(words[::2], words[1::2], strict=True):
            options_of.setdefault(flag.removeprefix("--"), []).append(value)
        if case == PART and not of_the_part(stage, options_of):
            continue
        job = Job(stage, options_of, measured(root, [stage, *words, "--device", "cpu"]))
        took = f"{job.took.seconds:.1f} s of processor time, {job.took.bytes / 2**20:.0f} MiB"
        print(f"{job}: {took}, {job.took.operations:.2e} operations", file=sys.stderr)
        assert job.took.status == 0, f"{job}: {job.took.said[-3000:]}"
        run.jobs.append(job)
    return run


def of_the_part(stage: str, options: dict[str, list[str]]) -> bool:
    """Whether a job is run by `make test`: of what takes operations, one generator and one head."""
    one = {"variant": ["paper"], "site": ["L1H3"]}
    known = {"make_prompts", "fetch_target", *OPERATIONS}
    return stage in known and all(options.get(key, value) == value for key, value in one.items())


# ------------------------------------------------------------------------------------------------------------ sizes
@dataclass(frozen=True)
class Weights:
    """Tensors of a saved model.

    Attributes:
        shapes: name -> shape, matrices of the blocks alone.
        embedding: shape of the token embedding.
        bytes: of all.
    """

    shapes: dict[str, tuple[int, int]]
    embedding: tuple[int, int]
    bytes: int

    @classmethod
    def of(cls, folder: Path) -> Weights:
        """Those of a model in a folder."""
        file = folder / "model.safetensors"
        with safe_open(file, "pt") as tensors:
            every = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        blocks = {
            n: (shape[0], shape[1])
            for n, shape in every.items()
            if re.search(r"\.(h|layers)\.", n) and len(shape) == 2
        }
        embedding = next(shape for n, shape in every.items() if re.search(r"(wte|embed_tokens)", n))
        return cls(blocks, (embedding[0], embedding[1]), file.stat().st_size)

    def parameters(self, layer: int | None = None, part: str = "") -> int:
        """Parameters of the blocks, of one of them, or of a part of it by the beginning of its name."""
        here = "." if layer is None else f".{layer}."
        return sum(a * b for name, (a, b) in self.shapes.items() if here in name and part in name)

    def share(self, sites: list[Site]) -> float:
        """The share of the blocks up to the last of some sites: heads stand before the attention's output projection."""
        part = {"resid_post": "", "attn_out": "attn"}
        read = [
            sum(map(self.parameters, range(site.layer)))
            + self.parameters(site.layer, part.get(site.kind, "c_attn"))
            for site in sites
        ]
        return max(read) / self.parameters()


def target(run: Run, job: Job) -> Weights:
    """The target of a job."""
    return Weights.of(run.root / "models" / job.options["model"][0])


def sites(run: Run, job: Job) -> list[Site]:
    """Sites that a job reads: those that it names, or all of its experiment."""
    return [Site.parse(label) for label in job.options.get("site", run.context(job).plan.labels)]


def decoder(run: Run) -> cost.Decoder:
    """The backbone."""
    V, D = Weights.of(run.root / "models/backbone").embedding
    return cost.Decoder.gpt2(1, D, V)


def control(run: Run, job: Job) -> cost.Control:
    """Control layers of a job's generator."""
    variant = run.context(job).config.variant(job.options["variant"][0])
    width = target(run, job).embedding[1]
    return cost.Control(decoder(run), variant.n_heads, variant.d_head, variant.d_condition or width)


# ------------------------------------------------------------------------------------------------------- operations
def checked_tokens(job: Job) -> float:
    """Tokens on which faster ways of running the target were compared with plain attention."""
    eager = job.options["model"][0].startswith("gemma")
    return sum(cost.check_target(length, eager) for length in job.took.checked)


def of_target(run: Run, job: Job) -> float:
    """Running the target up to the last site, and before that a check through all of it; nothing if it was not run."""
    weights, before = target(run, job), checked_tokens(job)
    P, tokens = weights.parameters(), job.took.tokens[weights.embedding]
    return cost.run_target(before, P, 1.0) + cost.run_target(
        tokens - before, P, weights.share(sites(run, job))
    )


def of_backbone(run: Run, job: Job) -> float:
    """Training, and the texts that are written behind it."""
    model = decoder(run)
    written = GATE_SAMPLES * (run.longest + 2)
    tokens = job.took.tokens[model.V, model.D] - written
    return cost.train_backbone(tokens, model) + 2 * written * (model.P + model.P_o)


def taken(run: Run, job: Job) -> list[int]:
    """Numbers that each site map of a job's generator takes."""
    context, (name,), width = run.context(job), job.options["variant"], target(run, job).embedding[1]
    # But for kernel pairs, a head's output is a vector of the residual stream, where noise lives.
    kernel = context.config.variant(name).pairs == "kernel"
    return [HEAD if kernel and site.head is not None else width for site in context.plan.sites_of(name)]


def passed(run: Run, job: Job) -> int:
    """Parameters of a job's generator that an activation passes, at its widest site."""
    variant, width = run.context(job).config.variant(job.options["variant"][0]), target(run, job).embedding[1]
    if variant.generator == "inversionview":
        W = width + (variant.d_condition or width)
        return cost.passed_in_blocks(decoder(run), W, variant.site_map_blocks)
    return control(run, job).passed(max(taken(run, job)), variant.site_map_blocks)


def of_generator(run: Run, job: Job) -> float:
    """Steps of training."""
    context, (name,) = run.context(job), job.options["variant"]
    model, variant = decoder(run), context.config.variant(name)
    sequences = STEPS * PER_SITE * len(context.plan.sites_of(name))
    T = job.took.tokens[model.V, model.D] / sequences
    assert T <= run.longest + 1
    return cost.train_generator(sequences, T, model, passed(run, job), variant.freeze_backbone)


def of_candidates(run: Run, job: Job) -> float:
    """Tokens that are written and whose probability is told, what an activation contributes to all, and the target's runs."""
    context, (name,) = run.context(job), job.options["variant"]
    model, H, told = decoder(run), control(run, job).H, 0
    for site in job.options["site"]:
        drawn = read_table(context.samples_path(job.options["generator"][0], name, site))
        for (_, decoding), rows in drawn.groupby(["epsilon", "decoding"], observed=True):
            varies = decoding == "noised" or context.config.sampling.rule(str(decoding)).varies
            told += len(rows) if varies else TARGETS
        # What cached neighbours are worth is asked at each bandwidth once more.
        told += drawn["epsilon"].nunique() * TARGETS
    tokens = job.took.tokens[model.V, model.D]
    return cost.write_candidates(tokens, model, H, told, passed(run, job)) + of_target(run, job)


def of_distances(run: Run, job: Job) -> float:
    """Distances of all targets to all prompts of the reference, at each site."""
    context = run.context(job)
    reference = len(context.prompt_ids("reference"))
    return sum(
        cost.search(TARGETS, reference, context.activations("test", site).shape[1])
        for site in job.options["site"]
    )


def of_autoencoders(run: Run, job: Job) -> float:
    """Training of those that are trained here."""
    context, D = run.context(job), target(run, job).embedding[1]
    sae, corpora = context.config.sae, context.plan.trained_corpora
    runs = len(job.options["site"]) * len(corpora) * len(sae.sparsity)
    return runs * cost.train_sae(sae.steps, sae.batch_size, D, sae.width)


OPERATIONS = {
    "extract_activations": of_target,
    "collect_positions": of_target,
    "run_mcmc": of_target,
    "train_backbone": of_backbone,
    "train_generator": of_generator,
    "sample_prompts": of_candidates,
    "compute_exact": of_distances,
    "train_sae": of_autoencoders,
}


# ----------------------------------------------------------------------------------------------------------- memory
def in_extraction(run: Run, job: Job) -> float:
    """Of the largest pass and the largest batch, and of all beginnings that batches shared."""
    (model,) = job.options["model"]
    about, shape = run.context(job).config.models[model], WIDTHS[model]
    D, n_heads = shape["d_model"], shape["n_heads"]
    width = shape.get("head_dim", D // n_heads)
    layers = cost.Layers(
        L=about.n_layers,
        D=D,
        d_mlp=shape.get("d_mlp", 4 * D),
        gated="architecture" in shape,
        heads=n_heads * width,
        keys=shape.get("n_kv_heads", n_heads) * width,
        size=2 if about.dtype == "bfloat16" else 4,
    )
    sizes, batches = job.took.sizes[target(run, job).embedding], job.took.batches
    begun = sum(length * sum(beginnings[:-1]) for length, beginnings in batches)
    ended = sum(length * beginnings[-1] for length, beginnings in batches if len(beginnings) > 1)
    attended = max(length * beginnings[-1] for length, beginnings in batches)
    return cost.memory_of_passes(layers, max(sizes), attended, begun, ended, len(sizes))


def tensors_of(folder: Path) -> dict[str, int]:
    """Numbers of each tensor of a checkpoint."""
    with safe_open(folder / "model.safetensors", "numpy") as tensors:
        return {
            name: int(np.prod(tensors.get_slice(name).get_shape()))
            for name in tensors.keys()  # noqa: SIM118
        }


def in_small_tensors(sizes: Iterable[int]) -> int:
    """Numbers of those tensors whose memory need not go back to the system."""
    return sum(size for size in sizes if cost.FLOAT * size < cost.SMALL)


def in_backbone(run: Run, job: Job) -> float:
    """A step's tokens are the batch's; texts are written when its moments are gone."""
    model, sizes = decoder(run), tensors_of(run.context(job).backbone_dir)
    whole = model.P + model.P_o
    held = cost.Trained(
        whole, in_small_tensors(size for name, size in sizes.items() if name != "lm_head.weight")
    )
    step = 3 * model.V * job.took.tokens[model.V, model.D] / STEPS
    return held.memory(step, whole + model.P_o)


def of_generator_alone(run: Run, job: Job) -> dict[str, int]:
    """Numbers of each tensor of a job's generator beside the backbone's."""
    folder = run.context(job).generator_dir(job.options["generator"][0], job.options["variant"][0])
    return {name: size for name, size in tensors_of(folder).items() if not name.startswith("backbone.")}


def in_generator(run: Run, job: Job) -> float:
    """Of one step. The backbone that training begins with stays beside what is trained."""
    context, (name,) = run.context(job), job.options["variant"]
    model, variant, own = decoder(run), context.config.variant(name), of_generator_alone(run, job)
    backbone, mine = model.P + model.P_o, sum(own.values())
    if variant.freeze_backbone:
        held = cost.Trained(mine, in_small_tensors(own.values()), backbone)
    else:
        known = tensors_of(context.backbone_dir)
        shared = in_small_tensors(size for name, size in known.items() if name != "lm_head.weight")
        held = cost.Trained(mine + backbone, in_small_tensors(own.values()) + shared)
    T, kept = run.longest + 1, 2 * model.L * variant.n_heads * model.D
    step = 3 * PER_SITE * len(context.plan.sites_of(name)) * (T * model.V + kept)
    return held.memory(step, mine + backbone + model.P_o, beside=backbone)


def in_candidates(run: Run, job: Job) -> float:
    """All draws of all targets at a time."""
    model, here = decoder(run), control(run, job)
    T, kept = run.longest + 1, 2 * model.L * here.H * model.D
    own = sum(of_generator_alone(run, job).values())
    return cost.memory_of_candidates(model, own, TARGETS * DRAWS, T, TARGETS, kept)


MEMORY = {
    "extract_activations": in_extraction,
    "train_backbone": in_backbone,
    "train_generator": in_generator,
    "sample_prompts": in_candidates,
}


#: Stages that not all cases have.
OWN: dict[str, tuple[str, ...]] = {
    "run_mcmc": ("ioi", PART),
    "collect_positions": ("ravel",),
    "train_sae": ("ravel",),
}


@pytest.mark.parametrize("stage", OPERATIONS)
def test_operations(run: Run, stage: str) -> None:
    jobs = run.of(stage)
    assert bool(jobs) == (run.name in OWN.get(stage, (PART, *CASES)))
    for job in jobs:
        taken = job.took.distances if stage == "compute_exact" else job.took.operations
        assert taken == pytest.approx(OPERATIONS[stage](run, job), rel=NEAR), job


@pytest.mark.skipif(not private_bytes(), reason="the system does not tell a process's private memory")
@pytest.mark.parametrize("stage", MEMORY)
def test_memory(run: Run, stage: str) -> None:
    for job in run.of(stage):
        assert job.took.bytes == pytest.approx(MEMORY[stage](run, job), rel=NEAR, abs=BESIDE), job


def test_every_job_writes_what_its_rule_says(run: Run) -> None:
    if run.name == PART:
        pytest.skip("not all of them are run here")
    assert len(run.outputs) > 50
    assert not [file for file in run.outputs if not (run.root / file).stat().st_size]


@pytest.mark.paper
@pytest.mark.parametrize("name", CASES)
def test_all_stages_of_the_configuration_are_among_these(name: str, tmp_path: Path) -> None:
    """But for what fetches, which has tests of its own: the same sites of the published models are compared."""
    root, case = copy_workflow(tmp_path / name), CASES[name]
    write_corpora(root)
    for model in ("chat", "scope"):
        (root / "models" / model).mkdir(parents=True)
    delta = small(case, root)
    published: dict[str, Any] = {"only": delta["only"], "experiments": {}}
    for part, one in delta["experiments"].items():
        kept = {key: one[key] for key in ("sites", "patched", "shown", "representative") if key in one}
        variants = one["settings"]["variants"].items()
        read = {variant: {"sites": about["sites"]} for variant, about in variants if "sites" in about}
        published["experiments"][part] = {**kept, "settings": {"variants": read}}
    stages = []
    for values in (delta, published):
        (root / SMALL).write_text(yaml.safe_dump(values))
        stages.append(set(graph(root, case.files, "all").stages.values()))
    fetched = {"fetch_models", "fetch_word_lists", "fetch_ravel", "fetch_general_text"}
    assert stages[0] <= stages[1] and stages[1] - stages[0] <= fetched


def test_prompts_and_activations(run: Run) -> None:
    """Those of the paper's prior, of every site, all finite and not all alike."""
    for job in run.of("extract_activations"):
        context, (split,) = run.context(job), job.options["split"]
        assert run.name not in ("ioi", PART) or context.task.size == 3_095_040
        for site in context.plan.sites:
            z, _ = read_activations(context.activations_path(split, site.label))
            width = target(run, job).embedding[1] if site.head is None else HEAD
            assert z.shape == (len(context.prompt_ids(split)), width) and z.dtype == np.float32
            assert np.isfinite(z).all() and len(np.unique(z, axis=0)) > len(z) // 2


def test_generators_are_as_large_as_the_formula_says(run: Run) -> None:
    for job in run.of("train_generator"):
        context, (name,) = run.context(job), job.options["variant"]
        log = read_table(context.training_log(job.options["generator"][0], name))
        assert log["step"].iloc[-1] == STEPS and np.isfinite(log["loss"]).all()
        if job.options["generator"] == ["inversescope"]:
            here, variant = control(run, job), context.config.variant(name)
            assert name != "paper" or (here.H, here.K) == (32, 64)
            own = sum(of_generator_alone(run, job).values())
            told = here.passed(sum(taken(run, job)), variant.site_map_blocks)
            assert own == pytest.approx(told, rel=0.1)


def test_candidates_and_tables(run: Run) -> None:
    parsed = 0
    for job in run.of("sample_prompts"):
        context = run.context(job)
        for site in job.options["site"]:
            drawn = read_table(
                context.samples_path(job.options["generator"][0], job.options["variant"][0], site)
            )
            assert (drawn.groupby(["decoding", "epsilon"], observed=True).size() == TARGETS * DRAWS).all()
            assert np.isfinite(drawn["logq"]).all() and (drawn["logq"] < 0).all()
            parsed += drawn["parsed"].sum()
    assert parsed, "some have their activations computed again"
    for job in run.of("collect_tables"):
        context = run.context(job)
        rates = read_table(context.results / "fcr.csv")
        assert set(rates["site"]) == set(context.plan.labels)
        chains = {"mcmc"} if context.config.fcr.mcmc_evaluations else set()
        assert {"exact", "cache", "combined", *chains} <= set(rates["estimator"])
        assert rates["fcr"].dropna().between(0, 1).all()
        assert read_table(context.results / "refusal.csv")["refusal_rate"].between(0, 1).all()
