"""Figures and tables that a configuration can have, read from the decorators in the sources without importing matplotlib."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from inversescope.errors import InputError
from inversescope.workflow.plan import FEW_SHOT, IOI, OWN_STUDIES, SPELLED, ExperimentPlan, Plan
from inversescope.workflow.sources import PACKAGE

#: Stages that draw figures, in the order of pages -> whether one of them draws an experiment.
DRAWS: dict[str, Callable[[ExperimentPlan], bool]] = {
    "plot_layers": lambda e: e.task in IOI,
    "plot_figures": lambda e: bool(e.studied) and e.task in IOI,
    "plot_ravel": lambda e: bool(e.studied) and e.task == "ravel",
    "plot_icl": lambda e: bool(e.studied) and e.task in FEW_SHOT,
    "plot_labels": lambda e: e.labelled,
    "plot_cases": lambda e: bool(e.studied) and e.task not in OWN_STUDIES,
    "plot_baseline": lambda e: bool(e.baseline),
    "plot_readers": lambda e: bool(e.studied),
    "plot_heads": lambda e: e.task in IOI,
    "plot_causes": lambda e: bool(e.settings.patched),
    "plot_answers": lambda e: bool(e.settings.patched) and e.task in SPELLED,
    "plot_study": lambda e: e.ablations != e.claims,
    "plot_claims": lambda e: bool(e.claims),
    "plot_frontier": lambda e: bool(e.frontier),
    "plot_frontier_readers": lambda e: bool(e.rivals),
}
#: Parts of an experiment that are figures and tables of the main study.
DRAWN = ("layers", "heads", "figures", "labels", "baseline", "readers", "causes", "answers")
#: What all figures and tables of a stage need, beside their own `needs`.
STAGE_NEEDS: dict[str, dict[str, list[str]]] = {
    "plot_figures": {"variants": ["paper", "default"]},
    "plot_ravel": {"variants": ["paper", "default"]},
}


@dataclass(frozen=True)
class Shown:
    """A figure or a table.

    Attributes:
        kind: `figure` or `table`.
        name: its file is results/{kind}s/PREFIX{name}, its caption report/{caption}.rst.
        stage: the stage that draws it.
        title: for reports.
        needs: `variants`, `decodings` or `bandwidths` that the configuration must have.
    """

    kind: str
    name: str
    stage: str
    title: str
    needs: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """Stem of the caption's file; all headline tables share one."""
        return "headline" if self.name.endswith("headline") else self.name

    @property
    def numbers(self) -> list[str]:
        """What the paper calls it, such as figure_7; two where it shows the same of two models, none if it is ours alone."""
        found = re.match(r"(Figure|Table)s? (\d+)(?: and (\d+))?", self.title)
        return [f"{found[1].lower()}_{n}" for n in found.groups()[1:] if n] if found else []

    def files(self, stem: str) -> list[str]:
        """Its files, the one for reports first; `stem` is how names of the study's files begin: {task}_{model}."""
        suffixes = {"figure": ("png", "pdf", "csv"), "table": ("csv", "md")}[self.kind]
        return [f"results/{self.kind}s/{stem}_{self.name}.{suffix}" for suffix in suffixes]

    def lacks(self, experiment: ExperimentPlan) -> list[str]:
        """What an experiment leaves out of what this one needs, in words."""
        there: dict[str, list[Any]] = {
            "variants": experiment.studied,
            "decodings": experiment.config.sampling.decodings,
            "bandwidths": ["first", "second", "third"][: len(experiment.config.kernel.bandwidths)],
        }
        words = {"variants": "variant {}", "decodings": "decoding {}", "bandwidths": "{} bandwidth"}
        needs: list[tuple[str, list[Any]]] = [*STAGE_NEEDS.get(self.stage, {}).items(), *self.needs.items()]
        return [words[kind].format(one) for kind, wanted in needs for one in wanted if one not in there[kind]]


@functools.cache
def registered() -> tuple[Shown, ...]:
    """All figures and tables: the paper's figures by their number, then ours as the sources list them.

    Raises:
        ValueError: two of them would write the same file.
    """
    found = [
        Shown(decorator.func.id, *map(ast.literal_eval, decorator.args), **_keywords(decorator))
        for folder in ("studies", "reader")
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Name)
        and decorator.func.id in ("figure", "table")
    ]
    names = [(one.kind, one.name, one.stage) for one in found]
    for name in set(names):
        if names.count(name) > 1:
            raise ValueError("two functions draw the {} {} of {}".format(*name))
    return tuple(sorted(found, key=_number))


def _keywords(decorator: ast.Call) -> dict[str, Any]:
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in decorator.keywords}


def _number(one: Shown) -> int:
    number = re.match(r"Figures? (\d+)", one.title)
    return int(number.group(1)) if number else 1000


def planned(stage: str, experiment: ExperimentPlan) -> list[Shown]:
    """Figures and tables that a stage draws of an experiment: all that its configuration allows.

    Raises:
        InputError: none is left; names what is lacking.
    """
    ours = [one for one in registered() if one.stage == stage]
    result = [one for one in ours if not one.lacks(experiment)]
    if not result:
        lacking = ", ".join(dict.fromkeys(reason for one in ours for reason in one.lacks(experiment)))
        raise InputError(
            f"{stage} has nothing to draw of experiment {experiment.name}: there is no {lacking}",
            "add it to the configuration",
        )
    return result


def all_of(experiment: ExperimentPlan) -> list[Shown]:
    """Figures and tables of all stages that draw an experiment; raises what `planned` does."""
    return [one for stage, draws in DRAWS.items() if draws(experiment) for one in planned(stage, experiment)]


def drawn_of(stage: str, plan: Plan) -> list[Shown]:
    """Figures and tables that a stage draws of every experiment that it draws at all, as its rule is one for all of them.

    Raises:
        InputError: of one experiment there is none.
    """
    drawn = [planned(stage, experiment) for experiment in plan.experiments if DRAWS[stage](experiment)]
    return [one for one in registered() if one.stage == stage and all(one in of for of in drawn)]


def of_the_paper(plan: Plan) -> dict[str, list[str]]:
    """The paper's figures and tables, in order: figure_2 -> files, the one for reports first.

    What shows the same of several models has several numbers: they go to a task's experiments, in their order.
    """
    found: dict[str, list[str]] = {}
    for stage, draws in DRAWS.items():
        for task in plan.tasks:
            experiments = [e for e in plan.on(task) if draws(e)]
            for one in drawn_of(stage, plan) if experiments else []:
                several = [f"{e.task}_{e.model}" for e in experiments]
                stems = ["ravel"] if stage == "plot_ravel" else several
                # A figure with one number is of each experiment on the task.
                numbers = one.numbers if len(one.numbers) > 1 else one.numbers * len(stems)
                for number, stem in zip(numbers, stems, strict=False):
                    found.setdefault(number, []).extend(one.files(stem))
    return dict(sorted(found.items(), key=lambda item: (item[0][:3], int(item[0].split("_")[1]))))


def left_out(plan: Plan) -> list[str]:
    """A line for each figure or table that cannot be drawn of an experiment, with the reason."""
    return [
        f"{one.kind} {one.name} of experiment {experiment.name} is left out: there is no {', '.join(reasons)}"
        for experiment in plan.experiments
        for one in registered()
        if DRAWS[one.stage](experiment) and (reasons := one.lacks(experiment))
    ]


def captions_of(*experiments: ExperimentPlan) -> list[str]:
    """Files of the captions of all that is drawn of some experiments."""
    shown = [one for one in registered() for e in experiments if DRAWS[one.stage](e) and not one.lacks(e)]
    return [f"report/{name}.rst" for name in dict.fromkeys(one.caption for one in shown)]
