"""The paper's figures and tables under a configuration, each with the jobs behind it: a dry run by number."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inversescope.config import load_config
from inversescope.lineage.stale import refuse_failed, snakemake
from inversescope.workflow.figures import of_the_paper
from inversescope.workflow.plan import Plan
from inversescope.workflow.stages import STAGES, stage_of

_JOB = re.compile(r'^\s*(\d+)\[label = "(\w+)')
_EDGE = re.compile(r"^\s*(\d+) -> (\d+)$")


@dataclass(frozen=True)
class Graph:
    """Jobs as Snakemake would run them in a project where nothing has run.

    Attributes:
        stages: number of a job -> its stage, or the name of a target.
        before: number of a job -> jobs whose outputs it reads.
    """

    stages: dict[int, str]
    before: dict[int, set[int]]

    @classmethod
    def parse(cls, dot: str) -> Graph:
        """Read what `snakemake --dag` prints."""
        stages, before = dict[int, str](), dict[int, set[int]]()
        for line in dot.splitlines():
            if job := _JOB.match(line):
                stages[int(job[1])] = stage_of(job[2])
            elif edge := _EDGE.match(line):
                before.setdefault(int(edge[2]), set()).add(int(edge[1]))
        return cls(stages, before)

    def behind(self, target: str) -> Counter[str]:
        """How many jobs of each stage make a target."""
        waiting = [job for job, stage in self.stages.items() if stage == target]
        seen = set(waiting)
        while waiting:
            new = self.before.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        found = Counter(self.stages[job] for job in seen)
        return Counter({stage: found[stage] for stage in STAGES if stage in found})


def graph(root: Path, files: Sequence[str], *targets: str) -> Graph:
    """Ask Snakemake for all jobs behind some targets.

    Args:
        files: configuration files, later ones laid over earlier ones.

    Raises:
        InputError: Snakemake cannot build its graph of jobs; says why.
    """
    done = snakemake(root, "--dag", "--configfile", *files, "--", *targets)
    refuse_failed(done)
    return Graph.parse(done.stdout)


def figures(root: Path, files: Sequence[str]) -> str:
    """A paragraph for each figure and table of the paper: the target to ask for, its files, and the jobs that make them."""
    planned = of_the_paper(Plan(load_config([root / file for file in files])))
    jobs = graph(root, files, *planned) if planned else Graph({}, {})
    told = []
    for number, outputs in planned.items():
        behind = jobs.behind(number)
        counts = ", ".join(f"{stage} {count}" for stage, count in behind.items())
        name = number.replace("_", " ").capitalize()
        told.append(f"{name} (target {number}): {', '.join(outputs)}\n  {behind.total()} jobs: {counts}")
    return "\n".join(told) or "none of the paper's figures is planned"
