"""The configuration: what the hand-written form stands for, and that each fault ends in one error that names file and line."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from inversescope.cli import main
from inversescope.config import Config, load_config, merge, parse_config, show, to_schema
from inversescope.config.load import read_layers
from inversescope.errors import InputError
from inversescope.workflow.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config"
WRITTEN = read_layers([CONFIG / "config.yaml"])
FILES = sorted(path.relative_to(CONFIG).as_posix() for path in CONFIG.rglob("*.yaml"))
#: What a file is laid over beside config.yaml.
BELOW = {
    "test/smallest_study.yaml": ("test/smallest.yaml",),
}


@pytest.fixture(scope="module")
def whole() -> Config:
    """The default configuration."""
    return load_config([CONFIG / "config.yaml"])


def with_delta(folder: Path, text: str) -> Config:
    """The default configuration with a file laid over it."""
    (folder / "delta.yaml").write_text(text)
    return parse_config(merge(WRITTEN, read_layers([folder / "delta.yaml"])))


# ------------------------------------------------------------------------------------------------------------------- files
def test_the_schema_has_not_drifted() -> None:
    found, text = (CONFIG / "schema.json").read_text(), to_schema()
    difference = "\n".join(
        difflib.unified_diff(
            found.splitlines(), text.splitlines(), "config/schema.json", "models", lineterm=""
        )
    )
    assert found == text, f"run `inversescope config schema`:\n{difference}"


def test_every_setting_is_described() -> None:
    parts = json.loads(to_schema())
    for name, part in {"Config": parts, **parts["$defs"]}.items():
        for key, about in part.get("properties", {}).items():
            assert "description" in about or "$ref" in about, f"{name}.{key}"


def test_the_schema_forbids_unknown_keys() -> None:
    schema = json.loads(to_schema())
    assert schema["additionalProperties"] is False
    assert all(part.get("additionalProperties") in (False, None) for part in schema["$defs"].values())


@pytest.mark.parametrize("file", FILES)
def test_every_file_is_valid_and_short_and_points_editors_at_the_schema(file: str) -> None:
    load_config([CONFIG / name for name in ("config.yaml", *BELOW.get(file, ()), file)])
    text = (CONFIG / file).read_text()
    up = "../" * file.count("/")
    assert text.splitlines()[0] == f"# yaml-language-server: $schema={up}schema.json"
    assert len(text.splitlines()) <= 250
    # As JSON, where keys are words.
    jsonschema.validate(json.loads(json.dumps(yaml.safe_load(text))), json.loads(to_schema()))


# ------------------------------------------------------------------------------------------------------------------ layers
def test_deltas_are_layered_key_by_key(tmp_path: Path, whole: Config) -> None:
    (tmp_path / "a.yaml").write_text("kernel: {epsilon: 0.2}\n")
    (tmp_path / "b.yaml").write_text("kernel: {distance: euclidean}\nseed: 3\n")
    config = load_config([CONFIG / "config.yaml", tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert (config.kernel.epsilon, config.kernel.distance, config.seed) == (0.2, "euclidean", 3)
    assert config.kernel.epsilons == whole.kernel.epsilons


def test_merge_replaces_lists_and_leaves_its_arguments_alone() -> None:
    base = {"a": {"b": [1, 2], "c": 3}}
    assert merge(base, {"a": {"b": [4]}}) == {"a": {"b": [4], "c": 3}}
    assert base == {"a": {"b": [1, 2], "c": 3}}


def test_a_delta_on_a_base_reaches_its_descendants(tmp_path: Path, whole: Config) -> None:
    config = with_delta(
        tmp_path, "variants: {default: {per_site: 5}, mine: {base: default_small, steps: 10}}\n"
    )
    changed = {name for name, variant in config.variants.items() if variant.per_site == 5}
    assert changed == {n for n, v in config.variants.items() if v.base == "default" or n == "mine"}
    assert {"default", "default_sparse", "default_s0_x1", "default_heads_s0_short"} <= changed
    mine, small = config.variants["mine"], config.variants["default_small"]
    told = {"base", "change", "study", "steps"}
    assert mine.model_dump(exclude=told) == small.model_dump(exclude=told)
    assert (mine.base, mine.change, mine.study, mine.steps) == ("default_small", "", "", 10)
    for name in whole.variants.keys() - changed:
        assert config.variants[name] == whole.variants[name]


#: Section 3.1 and Appendix C, whatever is said of it; AdamW is PyTorch's.
PLAIN_ADAMW = {
    "learning_rate": 1e-5,
    "weight_decay": 0.01,
    "decay_all": True,
    "betas": (0.9, 0.999),
    "clip": None,
}
CONTROL = {
    "n_heads": 32,
    "d_head": 64,
    "d_condition": None,
    "warmup": 1000,
    "schedule": "constant",
    "site_map_blocks": 0,
}
CONTROL |= dict.fromkeys(("normed_queries", "scaled_scores", "scaled_inputs", "zero_biases"), False)
CONTROL |= {
    "pairs": "noise",
    "noise_space": "model",
    "norm_band": 0.1,
    "see_norm": True,
    "freeze_backbone": True,
}


@pytest.mark.parametrize("name", ["paper", "paper_ravel"])
def test_paper_is_to_the_letter_at_the_papers_size(name: str) -> None:
    config = load_config([CONFIG / "config.yaml", CONFIG / f"{name}.yaml"])
    for experiment in config.experiments:
        view = config.view(experiment)
        own = [v for v in (*view.studied_variants, *view.study_variants) if v.startswith("paper")]
        assert "paper" in own
        for variant in own:
            found = view.variants[variant].model_dump()
            assert {key: found[key] for key in (PLAIN_ADAMW | CONTROL)} == PLAIN_ADAMW | CONTROL, variant
        found = view.backbone.model_dump()
        backbone = PLAIN_ADAMW | {
            "init": "hub",
            "targets": "samples",
            "tilt": 0.0,
            "warmup": 0,
            "schedule": "constant",
        }
        # Nothing of ours ends a run that follows the paper.
        backbone |= {"gate_in_prior": 0.0, "gate_repeated_name": 1.0}
        assert {key: found[key] for key in backbone} == backbone


def test_the_letter_is_said_once_and_paper_stays_as_it_was(whole: Config) -> None:
    letter, paper = whole.variants["letter"], whole.variants["paper"]
    told = {"base", "change", "study", "steps", "sites", "label", "colour"}
    assert whole.variants["paper_letter"].model_dump(exclude=told) == letter.model_dump(exclude=told)
    rate = whole.variants["paper_letter_rate"].model_dump(exclude=told | {"learning_rate"})
    assert rate == letter.model_dump(exclude=told | {"learning_rate"})
    fitted = dict.fromkeys(("normed_queries", "scaled_scores", "scaled_inputs", "zero_biases"), True)
    fitted |= {"decay_all": False, "betas": (0.9, 0.98), "clip": 1.0, "learning_rate": 3e-3, "d_head": 16}
    assert {key: getattr(paper, key) for key in fitted} == fitted
    assert (whole.backbone.betas, whole.backbone.clip, whole.backbone.decay_all) == ((0.9, 0.98), 1.0, False)


def test_a_file_is_laid_over_what_it_includes_and_its_own_entries_come_first(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("models: {b: {source: local}}\nseed: 1\nsave_every: 7\n")
    (tmp_path / "own.yaml").write_text("include: [below.yaml]\nseed: 2\nmodels: {a: {}, b: {path: here}}\n")
    read = read_layers([tmp_path / "own.yaml"])
    assert (read["seed"], read["save_every"]) == (2, 7)
    assert list(read["models"]) == ["a", "b"] and read["models"]["b"] == {"source": "local", "path": "here"}
    with pytest.raises(InputError, match="gone.yaml does not exist"):
        (tmp_path / "own.yaml").write_text("include: [gone.yaml]\n")
        read_layers([tmp_path / "own.yaml"])


def test_a_delta_runs_some_experiments_alone(tmp_path: Path) -> None:
    config = with_delta(tmp_path, "only: [ravel_64]\n")
    assert list(config.experiments) == ["ravel_64"]
    assert list(config.of("ravel", "gemma2-embedded-64").experiments) == ["ravel_64"]


# ----------------------------------------------------------------------------------------------------------- base, studies
def test_a_base_may_have_a_base_and_values_are_the_nearest(whole: Config) -> None:
    wide, noised = (whole.variants[f"inversionview_noised{suffix}"] for suffix in ("_wide", ""))
    assert (wide.generator, wide.pairs, wide.learning_rate, wide.d_condition) == (
        "inversionview",
        "noise",
        2e-3,
        120,
    )
    assert noised.d_condition is None
    # What tells of an entry alone is not taken over.
    assert wide.label != noised.label and wide.colour != noised.colour
    assert whole.models["llama-icl-plain"].shape.architecture == "llama"
    assert whole.models["llama-icl-plain"].training.curriculum == [12, 40, 156]
    addition = whole.of("addition", "addition-embedded")
    assert (addition.fcr.features, addition.fcr.bootstrap) == (["A1", "T1"], 1000)


def test_a_study_is_its_runs_by_seed_and_times(whole: Config) -> None:
    runs = {name: v for name, v in whole.variants.items() if v.study == "dimension"}
    assert list(runs) == [
        f"{base}_s{seed}_x{times}" for base in ("paper", "default") for seed in (0, 1, 2) for times in (1, 3)
    ]
    third = runs["default_s2_x3"]
    told = {"study", "seed", "steps", "sites"}
    assert (third.base, third.seed, third.steps) == ("default", 2, 720)
    assert third.model_dump(exclude=told) == whole.variants["default"].model_dump(
        exclude=told | {"label"}
    ) | {
        "label": "",
        "colour": None,
    }
    short = whole.variants["inversionview_s0_short"]
    assert (short.steps, short.settings, short.study) == (340, ["noise1"], "frontier")
    assert "inversionview_wide_s0" in whole.variants and "inversionview_wide_s1" not in whole.variants


def test_an_experiment_names_studies_or_single_runs(tmp_path: Path, whole: Config) -> None:
    ioi = whole.of("ioi", "gpt2-embedded")
    assert {whole.variants[name].study for name in ioi.study_variants} == {
        "baseline",
        "dimension",
        "ablation",
        "claims",
        "sparse",
        "frontier",
    }
    chosen = with_delta(tmp_path, "experiments: {ioi: {studies: [sparse, paper_s1_x3]}}\n")
    assert chosen.of("ioi", "gpt2-embedded").study_variants == [
        "default_sparse_own",
        "default_sparse_skip",
        "default_sparse_widen",
        "paper_s1_x3",
    ]


def test_a_study_with_sweeps_is_compared_by_seed_and_steps(tmp_path: Path, whole: Config) -> None:
    """No code names it. Ablations, claims and the frontier are told otherwise; so is a run that changes something."""
    swept = {one.study for name, one in whole.variants.items() if whole.is_swept(name)}
    assert swept == {"dimension", "misleads", "misleads_words"}
    runs = {
        "narrow": {"base": "paper", "epsilon": 0.05},
        "all": {"base": "default"},
        "one": {"base": "default", "change": "one head", "n_heads": 1},
    }
    study = {"sweeps": [{"name": "{run}_mine_s{seed}", "seeds": [0, 1]}], "runs": runs}
    delta = {"studies": {"mine": study}, "experiments": {"ioi": {"studies": ["mine"]}}}
    own = with_delta(tmp_path, yaml.safe_dump(delta, sort_keys=False)).of("ioi", "gpt2-embedded")
    assert [name for name in own.study_variants if own.is_swept(name)] == [
        f"{run}_mine_s{seed}" for run in ("narrow", "all") for seed in (0, 1)
    ]
    read = {name: [one.value for one in own.bandwidths_of(f"{name}_mine_s0")] for name in runs}
    assert read == {"narrow": [0.05], "all": [0.05, 0.1], "one": [0.1]}


def test_an_entry_with_the_name_of_a_run_changes_the_run(tmp_path: Path) -> None:
    config = with_delta(tmp_path, "variants: {paper_s0_x1: {steps: 7}}\n")
    assert [config.variants[name].steps for name in ("paper_s0_x1", "paper_s1_x1")] == [7, 320]
    assert config.variants["paper_s0_x1"].study == "dimension"


def test_decoders_of_other_sizes_are_default_but_for_their_size(whole: Config) -> None:
    """They are read by the case studies alone, and grow in order."""
    sized = [name for name, variant in whole.variants.items() if variant.study == "capacity"]
    assert sized == ["default_small", "default_large"]
    ioi = whole.of("ioi", "gpt2-embedded")
    assert not set(sized) & {*ioi.studied_variants, *ioi.study_variants}
    for task in ("counting", "addition"):
        (model,) = [e.model for e in whole.experiments.values() if e.task == task]
        own = whole.of(task, model)
        small, default, large = (own.variant(f"default{suffix}") for suffix in ("_small", "", "_large"))
        grown = ["n_heads", "d_head", "d_condition", "site_map_blocks"]
        for field in grown:
            assert getattr(small, field) <= getattr(default, field) <= getattr(large, field)
        told = {*grown, "change", "study", "label", "colour"}
        assert (
            small.model_dump(exclude=told)
            == default.model_dump(exclude=told)
            == large.model_dump(exclude=told)
        )


# ------------------------------------------------------------------------------------------------------ what is an experiment's
def two_experiments(settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Two experiments, the second of which sets something for itself."""
    second = {"model": "other", "sites": ["L0H0"], "settings": settings, **more}
    return {
        "variants": {"paper": {}, "default": {"pairs": "kernel"}, "mine": {"base": "default", "seed": 1}},
        "models": {"one": {}, "other": {}},
        "experiments": {"first": {"model": "one", "sites": ["L0H0"]}, "second": second},
    }


def test_an_experiment_sets_what_is_its_own() -> None:
    changes = {"kernel": {"epsilon": 0.3}, "variants": {"default": {"steps": 7}}}
    config = parse_config(two_experiments(changes, variants=["mine"]))
    own, rest = config.of("ioi", "other"), config.of("ioi", "one")
    assert (own.kernel.epsilon, own.studied_variants) == (0.3, ["mine"])
    assert own.kernel.epsilons == config.kernel.epsilons
    # The change to `default` reaches what is made of it, in this experiment alone.
    assert own.variants["mine"] == config.variants["mine"].model_copy(update={"steps": 7})
    assert rest.variants == config.variants and rest.kernel == config.kernel
    assert rest.studied_variants == ["paper", "default"]
    assert own.of("ioi", "other") == own


def test_unknown_names_list_what_there_is(whole: Config) -> None:
    with pytest.raises(InputError, match="unknown variant 'nope'.*paper"):
        whole.variant("nope")
    with pytest.raises(InputError, match="no experiment reads model 'nope'"):
        whole.experiment("ioi", "nope")


def test_the_budget_scales_counts() -> None:
    config = Config(budget=0.001)
    assert config.scaled(5000) == 5 and config.scaled(10) == 1


# -------------------------------------------------------------------------------------------------------------------- show
def shown(folder: Path, key: str, text: str = "") -> str:
    (folder / "delta.yaml").write_text(text)
    return show([CONFIG / "config.yaml", folder / "delta.yaml"], key)


def test_show_says_where_a_value_is_written(tmp_path: Path) -> None:
    delta = "variants:\n  default:\n    steps: 9\n  mine: {base: default}\n"
    assert shown(tmp_path, "variants.default.steps", delta).endswith(
        "steps: 9  # " + f"{tmp_path}/delta.yaml:3"
    )
    assert shown(tmp_path, "variants.mine.steps", delta).endswith("delta.yaml:3 (base default)")
    about, line = shown(tmp_path, "variants.default.norm_band").splitlines()
    assert (about, line) == ("# delta of Appendix B.", "variants.default.norm_band: 0.1  # default")
    assert "# " + str(CONFIG / "config.yaml") + ":" in shown(tmp_path, "variants.default_s0_x1.n_condition")
    # Names may have dots.
    assert "\nvariants.paper_eps0.05.epsilon: 0.05 " in shown(tmp_path, "variants.paper_eps0.05.epsilon")


def test_show_prints_what_an_experiment_sees(tmp_path: Path, whole: Config) -> None:
    for key in (
        "experiments.ravel_96.variants.default.steps",
        "experiments.ravel_96.settings.variants.default.steps",
    ):
        assert ": 1500  # " in shown(tmp_path, key) and shown(tmp_path, key).endswith("(base ravel_48)")
    assert ": 2  # " in shown(tmp_path, "experiments.ravel_96.backbone.shape.n_layers")
    # What it does not set is the shared value, written where that is written.
    own, shared = (
        shown(tmp_path, f"{where}backbone.learning_rate").rpartition("# ")[2]
        for where in ("experiments.ravel_96.", "")
    )
    assert own == shared != "default"
    part = yaml.safe_load(shown(tmp_path, "experiments.icl_llama"))
    view = whole.of("icl_translation", "llama-icl")
    assert part["settings"]["fcr"] == view.fcr.model_dump()
    assert set(part["settings"]["variants"]) == {"paper", "default"} == set(part["variants"])


def test_all_that_is_shown_is_yaml_with_a_place_for_each_value(tmp_path: Path, whole: Config) -> None:
    text = shown(tmp_path, "")
    values = yaml.safe_load(text)
    assert values["variants"] == {name: v.model_dump(mode="json") for name, v in whole.variants.items()}
    assert values["models"].keys() == whole.models.keys() and values["seed"] == 0
    for line in text.splitlines():
        assert line.rstrip().endswith(":") or re.search(
            r"  # (default|\S+\.yaml:\d+( \(base \S+\))?)$", line
        ), line


def test_a_key_that_is_not_there_lists_what_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no 'kernel\.bandwidth'.*epsilons"):
        shown(tmp_path, "kernel.bandwidth")


# ---------------------------------------------------------------------------------------------------------- documentation
EXAMPLES = [
    pytest.param(block, id=f"{file.name}:{i}")
    for file in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for i, block in enumerate(re.findall(r"^```yaml\n(.*?)^```$", file.read_text(), flags=re.M | re.S))
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_the_documentation_can_be_run(text: str, tmp_path: Path) -> None:
    """Each is a delta: it is valid, and every variant of its experiments has sites that are read."""
    for experiment in Plan(with_delta(tmp_path, text)).experiments:
        assert experiment.labels
        for variant in experiment.variants:
            assert experiment.labels_of([variant])


def test_the_documented_variant_is_default_with_one_change(tmp_path: Path, whole: Config) -> None:
    (text,) = [value for param in EXAMPLES for value in param.values if "default_wide:" in str(value)]
    config = with_delta(tmp_path, str(text))
    told = {"base", "change", "n_heads", "label", "colour"}
    for own, default in (
        (config, whole),
        (config.of("ioi", "gpt2-embedded"), whole.of("ioi", "gpt2-embedded")),
    ):
        wide = own.variants["default_wide"]
        assert wide.model_dump(exclude=told) == default.variants["default"].model_dump(exclude=told)
        assert (wide.base, wide.n_heads) == ("default", 64)
        assert {name: v for name, v in own.variants.items() if name != "default_wide"} == default.variants
    assert "default_wide" in config.of("ioi", "gpt2-embedded").studied_variants


def test_the_documented_ablation_is_one_of_the_others(tmp_path: Path, whole: Config) -> None:
    (text,) = [value for param in EXAMPLES for value in param.values if "default_onehead:" in str(value)]
    own = with_delta(tmp_path, str(text)).of("ioi", "gpt2-embedded")
    told = {"change", "n_heads", "soft_targets"}
    one, other = own.variants["default_onehead"], own.variants["default_hardtargets"]
    assert one.model_dump(exclude=told) == other.model_dump(exclude=told) and one.n_heads == 1
    before = whole.of("ioi", "gpt2-embedded").study_variants
    assert [name for name in own.study_variants if name != "default_onehead"] == before


# ------------------------------------------------------------------------------------------------------------------ faults
#: A delta, the line at fault, and what is said.
BAD: dict[str, tuple[str, int, list[str]]] = {
    "unknown key at the top": ("seed: 1\nsede: 1\n", 2, ["'sede'", "schema.json"]),
    "unknown nested key": ("kernel:\n  bandwith: 0.1\n", 2, ["kernel.bandwith", "schema.json"]),
    "bandwidth of zero": ("kernel: {epsilon: 0}\n", 1, ["kernel.epsilon", "positive"]),
    "negative bandwidth": ("kernel: {epsilon: -0.1}\n", 1, ["kernel.epsilon", "positive"]),
    "bandwidth that is not finite": ("kernel:\n  epsilon: .nan\n", 2, ["kernel.epsilon", "finite"]),
    "one of the bandwidths": ("kernel: {epsilons: [0.1, 0.0]}\n", 1, ["kernel.epsilons", "positive"]),
    "bandwidth of a variant": (
        "variants: {paper: {epsilon: 0.0}}\n",
        1,
        ["variants.paper", "positive and finite, got 0.0"],
    ),
    "bandwidths of a variant": (
        "variants: {default: {eps_range: [0.0, 0.1]}}\n",
        1,
        ["variants.default", "positive"],
    ),
    "bandwidths the wrong way round": (
        "variants: {default: {eps_range: [0.2, 0.1]}}\n",
        1,
        ["eps_range runs from 0.2 down to 0.1"],
    ),
    "no such kernel": ("kernel: {kind: box}\n", 1, ["kernel.kind", "'hard' or 'gaussian'"]),
    "neighbours without their pairs": (
        "variants: {paper: {mean_embedding: true}}\n",
        1,
        ["need pairs: kernel"],
    ),
    "neighbours' tokens without their mean": (
        "variants: {default: {mean_embedding: false}}\n",
        1,
        ["neighbour_logits needs mean_embedding"],
    ),
    "hub model without revision": (
        "models:\n  far: {source: hub, path: org/name}\n",
        2,
        ["models.far", "revision"],
    ),
    "hub model without path": (
        "models:\n  far:\n    source: hub\n    revision: abc\n",
        2,
        ["models.far", "path"],
    ),
    "model without seeds": ("models: {near: {seeds: []}}\n", 1, ["models.near.seeds"]),
    "experiment on an unknown model": (
        "experiments:\n  ioi:\n    model: nobody\n",
        3,
        ["nobody", "'models'"],
    ),
    "experiment without a model": ("experiments: {mine: {sites: [L0H0]}}\n", 1, ["experiments.mine.model"]),
    "variant that is not there": (
        "experiments: {ioi: {variants: [paper, papre]}}\n",
        1,
        ["papre", "'variants'"],
    ),
    "study that is not there": ("experiments: {ioi: {studies: [sprase]}}\n", 1, ["sprase"]),
    "experiment of only that is not there": ("only: [ioi, third]\n", 1, ["'only'"[1:-1], "third"]),
    "name that is a path": ("variants: {../up: {base: paper}}\n", 1, ["../up"]),
    "wrong type": ("sampling:\n  candidates: many\n", 2, ["sampling.candidates"]),
    "share out of range": ("ioi: {held_out_pairs: 1.0}\n", 1, ["ioi.held_out_pairs"]),
    "unknown base": ("variants:\n  mine: {base: defualt}\n", 2, ["defualt", "default"]),
    "circle": (
        "variants:\n  a: {base: b}\n  b: {base: c}\n  c: {base: a}\n",
        4,
        ["circle", "a -> b -> c -> a"],
    ),
    "file that includes itself": ("seed: 1\ninclude: [delta.yaml]\n", 2, ["include", "circle"]),
    "include that is no list": ("include: other.yaml\n", 1, ["include", "a list"]),
    "base of itself": ("models:\n  a: {base: a}\n", 2, ["circle", "a -> a"]),
    "wrong value in a base": ("variants:\n  default:\n    steps: 0\n", 3, ["variants.default.steps"]),
    "list for a mapping": ("variants: [paper]\n", 1, ["variants", "a list"]),
    "list for an entry": ("variants:\n  mine: [paper]\n", 2, ["variants.mine", "a list"]),
    "nothing for an entry": ("experiments:\n  ioi:\n", 2, ["experiments.ioi", "nothing"]),
    "two values for a key": ("kernel:\n  epsilon: 0.1\n  epsilon: 0.2\n", 3, ["'epsilon'", "line 2"]),
    "not YAML": ("a: [1\nb: 2\n", 2, ["not valid YAML"]),
    "a list as the file": ("- a\n", 1, ["a list"]),
    "settings that are shared": ("experiments: {ioi: {settings: {ioi: {}}}}\n", 1, ["settings.ioi"]),
    "settings out of range": (
        "experiments:\n  ioi:\n    settings: {kernel: {epsilon: -1}}\n",
        3,
        ["experiments.ioi.settings.kernel.epsilon", "positive"],
    ),
    "settings of no variant": ("experiments: {ioi: {settings: {variants: {papre: {}}}}}\n", 1, ["papre"]),
    "settings with another base": (
        "experiments: {ioi: {settings: {variants: {default_sparse: {base: paper}}}}}\n",
        1,
        ["base"],
    ),
    "list of variants outside of experiments": ("studied_variants: [paper]\n", 1, ["studied_variants"]),
    "study without base": ("studies:\n  mine:\n    runs:\n      a: {steps: 3}\n", 4, ["'base'"]),
    "study of an unknown base": ("studies: {mine: {runs: {a: {base: x}}}}\n", 1, ["'x'"]),
    "runs of one name": (
        "studies: {mine: {sweeps: [{seeds: [0, 1]}], runs: {a: {base: paper}}}}\n",
        1,
        ["'a'", "sweeps"],
    ),
    "run with the name of a variant": (
        "studies: {mine: {runs: {paper_eps0.05: {base: default}}}}\n",
        1,
        ["paper_eps0.05"],
    ),
    "pattern of names": (
        "studies: {mine: {sweeps: [{name: '{base}'}], runs: {a: {base: paper}}}}\n",
        1,
        ["{run}"],
    ),
    "multiple of no steps": (
        "studies: {mine: {sweeps: [{name: '{run}{times}', times: [2]}], runs: {a: {base: paper}}}}\n",
        1,
        ["steps"],
    ),
    "study written at a variant": ("variants: {mine: {study: sparse}}\n", 1, ["'studies'"]),
    "sizes that differ": (
        "experiments:\n  ravel_64:\n    n_test: 7\n",
        3,
        ["ravel_64.n_test", "is 7, but 240 in experiment ravel_smollm2"],
    ),
    "ravel without validation prompts": (
        "only: [ravel_48]\nexperiments: {ravel_48: {n_val: 0}}\n",
        2,
        ["n_val"],
    ),
    "no site": ("experiments: {ioi: {sites: [L0.residual]}}\n", 1, ["L0.residual"]),
    "no head": ("experiments:\n  ioi: {patched: [L0H99]}\n", 2, ["ioi.patched", "99"]),
    "a site that cannot be replaced": (
        "experiments: {ioi: {patched: [L0.resid_mid]}}\n",
        1,
        ["L0.resid_mid"],
    ),
    "a layer that is not read": ("experiments: {ioi: {representative: [7]}}\n", 1, ["layer 7"]),
    "a head of a figure that is not read": (
        "experiments:\n  ioi:\n    shown: {fig8: [L0.resid_post]}\n",
        3,
        ["ioi.shown.fig8", "'L0.resid_post' is no head"],
    ),
    "a figure that shows no heads": ("experiments: {ioi: {shown: {fig4: [L0H0]}}}\n", 1, ["fig4"]),
    "a variant's site that is not read": (
        "variants:\n  default_sparse: {sites: [L0.mlp_out]}\n",
        2,
        ["default_sparse.sites", "L0.mlp_out", "experiments.ioi.sites"],
    ),
    "a variant's site that its experiment chose": (
        "experiments:\n  ioi:\n    settings: {variants: {paper: {sites: [L0.mlp_out]}}}\n",
        3,
        ["ioi.settings.variants.paper.sites"],
    ),
    "more delayed layers than there are": (
        "models: {llama-icl: {training: {delay_layers: 9}}}\n",
        1,
        ["llama-icl.training.delay_layers"],
    ),
    "a corpus of no task": ("models: {llama-icl: {training: {corpus: {oi: 0.1}}}}\n", 1, ["corpus.oi"]),
    "a feature that the task does not have": (
        "experiments:\n  addition:\n    settings: {fcr: {features: [A1, A4]}}\n",
        3,
        ["addition.settings.fcr.features", "'A4'", "choose from F1, F2, F3"],
    ),
    "a feature that the corpus does not have": (
        "only: [mine]\nfcr: {features: [shape]}\ntext: {prompt: '{form} {country}', features: {initial: {column: i}}}\n"
        "experiments: {mine: {task: text, model: gpt2-embedded, sites: [L0H0]}}\n",
        2,
        ["'shape'", "choose from form, country, initial"],
    ),
    "a prompt that is no template": ("text: {prompt: '{form'}\n", 1, ["text.prompt", "no template"]),
    "two experiments on one model": ("experiments: {mine: {base: ioi}}\n", 1, ["experiment ioi", "merge"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_fault_is_one_clear_error_with_its_line(case: str, tmp_path: Path) -> None:
    text, line, words = BAD[case]
    with pytest.raises(InputError) as error:
        with_delta(tmp_path, text)
    assert error.value.culprit and error.value.remedy
    assert "\n" not in str(error.value)
    for word in [f"delta.yaml:{line}", *words]:
        assert word in str(error.value)


def test_a_fault_that_a_delta_causes_elsewhere_names_the_place_that_is_wrong(tmp_path: Path) -> None:
    """`pairs: noise` cannot do what the default file asks of `default`; a descendant's fault names the base it is from."""
    with pytest.raises(InputError, match=r"variants\.default.*need pairs: kernel"):
        with_delta(tmp_path, "variants: {default: {pairs: noise}}\n")
    with pytest.raises(InputError, match=r"delta\.yaml:2 \(base mine\)|delta\.yaml:2: variants\.mine"):
        with_delta(tmp_path, "variants:\n  mine: {steps: 0}\n  other: {base: mine}\n")


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml does not exist.*--config"):
        load_config([tmp_path / "absent.yaml"])
    with pytest.raises(InputError, match="cannot be read"):
        load_config([tmp_path])
    (tmp_path / "latin.yaml").write_bytes(b"seed: 1\n# caf\xe9\n")
    with pytest.raises(InputError, match=r"latin\.yaml:2 is not UTF-8"):
        load_config([tmp_path / "latin.yaml"])


# ------------------------------------------------------------------------------------------------------------ command line
def test_the_command_checks_shows_and_writes_the_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--config", str(CONFIG / "config.yaml"), "--root", str(tmp_path)]
    (tmp_path / "config").mkdir()
    assert main(["config", *where]) == 0 and "valid" in capsys.readouterr().out
    assert main(["config", "show", "kernel.epsilon", *where]) == 0
    assert "kernel.epsilon: 0.1" in capsys.readouterr().out
    assert main(["config", "show", "kernel.width", *where]) == 2
    assert "kernel has distance" in capsys.readouterr().err
    assert main(["config", "schema", *where]) == 0
    assert (tmp_path / "config/schema.json").read_text() == to_schema()
