"""The command line: `inversescope STAGE ...`, each stage by the name of its rule.

Stages are imported only once they are asked for, after the number of threads is fixed, so that each job pays for its own
imports alone.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from inversescope import __version__
from inversescope.errors import InputError, neutral
from inversescope.workflow.stages import STAGES

if TYPE_CHECKING:
    from inversescope.context import Context


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inversescope", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--version", action="version", version=f"inversescope {__version__}")
    commands = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")
    for stage in STAGES:
        dashed = [stage.replace("_", "-")] if "_" in stage else []
        command = commands.add_parser(stage, aliases=dashed, help=f"rule {stage} of the workflow")
        command.set_defaults(stage_name=stage)
        command.add_argument("--task", default="ioi", help="task, as in 'experiments' of the configuration")
        command.add_argument("--model", required=True, help="target model, as in 'models'")
        takes = STAGES[stage].takes
        if "split" in takes:
            command.add_argument("--split", required=True, choices=("train", "test", "reference", "val"))
        if "candidate" in takes:
            command.add_argument("--candidate", required=True)
        if "generator" in takes:
            command.add_argument("--generator", default="inversescope")
        if "variant" in takes:
            command.add_argument("--variant", required=True)
        if "variants" in takes:
            command.add_argument(
                "--variant", action="append", dest="variants", required=True, help="may be repeated"
            )
        if "site" in takes:
            command.add_argument("--site", required=True, help="label (L9H6) or TransformerLens name")
        if "sites" in takes:
            command.add_argument(
                "--site", action="append", dest="sites", required=True, help="may be repeated"
            )
        if "out" in takes:
            command.add_argument(
                "--out", default="", choices=("", "study", "frontier"), help="sub-folder for further variants"
            )
        command.add_argument("--log", type=Path, help="also write the progress to this file")
        command.add_argument("--threads", type=int, default=1, help="threads of this process")
        _common(command)
    show = commands.add_parser("show", help="headline numbers of a task beside their goals")
    show.add_argument("task", help="a task, or inversionview for its case studies")
    _common(show)
    config = commands.add_parser("config", help="validate the configuration, show it, or write its schema")
    config.add_argument(
        "action",
        nargs="?",
        choices=("check", "show", "schema"),
        default="check",
        help="show: print every value and where it comes from; schema: write config/schema.json",
    )
    config.add_argument("key", nargs="?", default="", help="of show: a dotted key (variants.default.steps)")
    _common(config)
    audit = commands.add_parser(
        "audit", help="lineage of a figure, a table or one number, and what became of it"
    )
    audit.add_argument(
        "path", help="a file, or the file and line of a row: results/ioi/gpt2-embedded/fcr.csv:12"
    )
    audit.add_argument(
        "--verify", action="store_true", help="hash every byte; ask Snakemake what it would run"
    )
    audit.add_argument("--rerun", metavar="NODE", help="recompute a stage or an output elsewhere and compare")
    audit.add_argument("--json", action="store_true", help="print everything as JSON")
    adopt = commands.add_parser("adopt", help="record a finished run in dvc.lock, if nothing is stale")
    adopt.add_argument("targets", nargs="*", help="targets that must be up to date (default: all study)")
    restore = commands.add_parser("restore", help="fetch, check and date what dvc.lock names")
    restore.add_argument(
        "--remote", help="a remote's name, a directory or a URL; the default remote if absent"
    )
    for command in (audit, adopt, restore):
        command.add_argument("--root", type=Path, default=Path("."), help="where data/ and results/ lie")
    return parser


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", action="append", help="YAML file, may be repeated; later ones win")
    command.add_argument("--root", type=Path, default=Path("."), help="where data/ and results/ lie")


class _Tee:
    """Standard error, and a log file."""

    def __init__(self, *streams: IO[str]) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        """Write to all."""
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush all."""
        for stream in self.streams:
            stream.flush()

    def isatty(self) -> bool:
        """A log is no terminal."""
        return False


def _limit_threads(threads: int) -> None:
    """Fix the number of threads of every numerical library, before any of them is imported: results depend on it."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _run_stage(arguments: argparse.Namespace) -> None:
    from inversescope.config import load_config

    whole = load_config(arguments.config or [arguments.root / "config/config.yaml"])
    config = whole.of(arguments.task, arguments.model)
    from inversescope.context import Context

    module, takes = STAGES[arguments.stage_name]
    context = Context(arguments.root, config, arguments.task, arguments.model)
    if hasattr(arguments, "site"):
        arguments.site = context.site(arguments.site).label
    if hasattr(arguments, "sites"):
        arguments.sites = [context.site(site).label for site in arguments.sites]
    for variant in getattr(arguments, "variants", None) or (
        [arguments.variant] if hasattr(arguments, "variant") else []
    ):
        config.variant(variant)
    stage: Callable[..., None] = getattr(
        importlib.import_module(f"inversescope.{module}"), arguments.stage_name
    )
    _quiet()
    if module == "report.stages":
        stage(context.root, whole)
        return
    if module in ("studies.ioi.plot", "studies.cases.plot"):
        stage(context.root, context.config, context.task_name, context.model_name)
        return
    stage(context, **{name: getattr(arguments, name) for name in takes})


def _quiet() -> None:
    """Keep libraries' own progress bars out of the logs."""
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()


def _show(arguments: argparse.Namespace) -> None:
    from inversescope.config import load_config
    from inversescope.studies.ioi.headline import show_task

    config = load_config(arguments.config or [arguments.root / "config/config.yaml"])
    if arguments.task == "inversionview":
        from inversescope.studies.cases.headline import show_cases

        show_cases(arguments.root, config)
        return
    tasks = {e.task for e in config.experiments.values()}
    if arguments.task not in tasks:  # a beginning that only one has will do: icl
        found = [task for task in tasks if task.startswith(arguments.task)]
        arguments.task = found[0] if len(found) == 1 else arguments.task
    if arguments.task not in tasks:
        raise InputError(
            f"no experiment reads task {arguments.task!r}", "see 'experiments' in the configuration"
        )
    if arguments.task == "ravel":
        from inversescope.studies.ravel.headline import show_ravel

        show_ravel(arguments.root, config)
        return
    show_task(arguments.root, config, arguments.task)


def _config(arguments: argparse.Namespace) -> None:
    from inversescope.config import load_config, show, to_schema

    files = arguments.config or [arguments.root / "config/config.yaml"]
    if arguments.action == "show":
        print(show(files, arguments.key))
    elif arguments.action == "schema":
        file = arguments.root / "config/schema.json"
        file.write_text(to_schema())
        print(f"wrote {file}")
    else:
        load_config(files)
        print("the configuration is valid")


def _audit(arguments: argparse.Namespace) -> int:
    """Print a lineage: 0 if all is fine, 1 if something is missing, changed or not reproducible."""
    from inversescope.lineage.audit import audit, render

    result = audit(arguments.root, arguments.path, arguments.verify, arguments.rerun)
    print(result.to_json() if arguments.json else render(result))
    return 0 if result.fine else 1


def _adopt(arguments: argparse.Namespace) -> None:
    from inversescope.lineage.records import TARGETS, adopt

    names = adopt(arguments.root, arguments.targets or TARGETS)
    print(f"dvc.lock has {', '.join(names)}; now commit it (git commit dvc.lock) and run dvc push")


def _restore(arguments: argparse.Namespace) -> None:
    from inversescope.lineage.records import restore

    count, targets = restore(arguments.root, arguments.remote)
    print(f"{count} files are what dvc.lock says; nothing to be done for {', '.join(targets)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 bad input, 1 a fault of ours, or an audit that finds one."""
    arguments = _parser().parse_args(argv)
    _limit_threads(getattr(arguments, "threads", 1))
    log: Path | None = getattr(arguments, "log", None)
    stderr = sys.stderr
    handle: IO[str] | None = None
    try:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            handle = log.open("w")
            sys.stderr = _Tee(stderr, handle)
        if arguments.stage == "show":
            _show(arguments)
        elif arguments.stage == "config":
            _config(arguments)
        elif arguments.stage == "audit":
            return _audit(arguments)
        elif arguments.stage == "adopt":
            _adopt(arguments)
        elif arguments.stage == "restore":
            _restore(arguments)
        else:
            _run_stage(arguments)
        return 0
    except BrokenPipeError:
        # Who reads the output has seen enough; what is still in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except InputError as error:
        print(neutral(f"error: {error}"), file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return 1
    finally:
        sys.stderr = stderr
        if handle is not None:
            handle.close()


def run_stage(context: Context, stage: str, **options: object) -> None:
    """Run a stage in this process, by the name of its rule (tests, notebooks)."""
    module = importlib.import_module(f"inversescope.{STAGES[stage].module}")
    getattr(module, stage)(context, **options)


if __name__ == "__main__":
    sys.exit(main())
