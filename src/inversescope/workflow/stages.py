"""The stages of the pipeline: each is a rule, a command and a function of this name, in the order of the data."""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """Where a stage is defined, what its command takes beside --task and --model, and which lists of these may be empty."""

    module: str
    takes: tuple[str, ...] = ()
    may_lack: tuple[str, ...] = ()


#: Name of the rule, the command and the function -> its stage.
STAGES = {
    "fetch_corpus": Stage("prompts.stages"),
    "make_prompts": Stage("prompts.stages", ("split",)),
    "train_target": Stage("targets.stages", ("candidate",)),
    "score_target": Stage("fcr.scan", ("candidate",)),
    "select_target": Stage("targets.stages"),
    "import_gguf": Stage("targets.quantised"),
    "fetch_target": Stage("targets.stages"),
    "fetch_models": Stage("targets.stages"),
    "fetch_word_lists": Stage("studies.icl.stages"),
    "import_checkpoint": Stage("targets.published"),
    "extract_activations": Stage("activations.stages", ("split",)),
    "choose_bandwidths": Stage("kernel.stages"),
    "patch_task_vectors": Stage("studies.icl.patching"),
    "label_tasks": Stage("studies.icl.labels"),
    "rate_labels": Stage("studies.icl.labels"),
    "plot_labels": Stage("studies.icl.plot"),
    "plot_icl": Stage("studies.icl.plot"),
    "train_backbone": Stage("generator.stages"),
    "train_generator": Stage("generator.stages", ("generator", "variant")),
    "sample_prompts": Stage("sampling.stages", ("generator", "variants", "sites")),
    "run_mcmc": Stage("sampling.stages", ("sites",)),
    "fetch_ravel": Stage("studies.ravel.stages"),
    "fetch_general_text": Stage("studies.ravel.stages"),
    "fetch_autoencoder": Stage("studies.ravel.stages", ("site",)),
    "collect_positions": Stage("studies.ravel.stages", ("sites",)),
    "train_sae": Stage("studies.ravel.stages", ("sites",)),
    "classify_attributes": Stage("studies.ravel.attributes", ("site",)),
    "plot_ravel": Stage("studies.ravel.plot"),
    "compute_exact": Stage("fcr.stages", ("sites",)),
    "estimate_fcr": Stage("fcr.stages", ("variants", "sites", "out")),
    "collect_tables": Stage("fcr.stages"),
    "find_hypotheses": Stage("reader.find", ("sites",)),
    "collect_hypotheses": Stage("reader.find"),
    "check_causes": Stage("studies.cases.causes"),
    "trace_answers": Stage("studies.cases.causes"),
    "compare_distances": Stage("studies.cases.distances"),
    "check_completeness": Stage("studies.cases.completeness"),
    "collect_study": Stage("studies.variants.stages"),
    "collect_frontier": Stage("studies.variants.stages"),
    "score_readers": Stage("reader.answers", ("variants", "out"), ("variants",)),
    "plot_cases": Stage("studies.cases.plot"),
    "plot_causes": Stage("studies.cases.plot"),
    "plot_answers": Stage("studies.cases.plot"),
    "draw_exact": Stage("studies.ioi.plot"),
    "plot_heads": Stage("studies.cases.heads"),
    "plot_layers": Stage("studies.ioi.layers"),
    "plot_figures": Stage("studies.ioi.plot"),
    "plot_study": Stage("studies.variants.plot"),
    "plot_baseline": Stage("studies.variants.plot"),
    "plot_claims": Stage("studies.variants.plot"),
    "plot_frontier": Stage("studies.variants.plot"),
    "plot_readers": Stage("reader.shown"),
    "plot_frontier_readers": Stage("reader.shown"),
    "make_browser": Stage("reader.browser.stages"),
    "make_report": Stage("report.page"),
    "make_studies": Stage("report.page"),
}


def stage_of(rule: str) -> str:
    """The stage that a rule runs. A loop adds to the names of its rules; what runs no stage is called by its own name."""
    return next((stage for stage in STAGES if rule == stage or rule.startswith(f"{stage}_")), rule)
