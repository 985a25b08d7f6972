"""The command line: `inversescope STAGE ...`, each stage by the name of its rule.

Stages are imported only once they are asked for, after the number of threads is fixed, so that each job pays for its own
imports alone.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from inversescope import __version__, device
from inversescope.errors import InputError, neutral
from inversescope.workflow.paths import ALL_SPLITS
from inversescope.workflow.stages import STAGES

if TYPE_CHECKING:
    from inversescope.config import Config
    from inversescope.context import Context


class Command(NamedTuple):
    """A command that is no stage: what it does, what it takes of `OPTIONS`, and its function, which may return a status."""

    help: str
    takes: tuple[str, ...]
    run: Callable[[argparse.Namespace], int | None]


#: Everything that a command can take, by the name under which its function gets it; without `flag` that name is the option.
OPTIONS: dict[str, dict[str, Any]] = {
    "task": {"default": "ioi", "help": "task, as in 'experiments' of the configuration"},
    "model": {"required": True, "help": "target model, as in 'models'"},
    "split": {"required": True, "choices": ALL_SPLITS},
    "candidate": {"required": True},
    "generator": {"default": "inversescope"},
    "variant": {"required": True},
    "variants": {"flag": "--variant", "action": "append", "required": True, "help": "may be repeated"},
    "site": {"required": True, "help": "label (L9H6) or TransformerLens name"},
    "sites": {"flag": "--site", "action": "append", "required": True, "help": "may be repeated"},
    "out": {
        "default": "",
        "choices": ("", "study", "frontier", "baseline"),
        "help": "sub-folder for further variants",
    },
    "log": {"type": Path, "help": "also write the progress to this file"},
    "threads": {"type": int, "default": 1, "help": "threads of this process"},
    "device": {
        "default": "auto",
        "metavar": "DEVICE",
        "help": "cpu, cuda, cuda:N, or auto: a GPU if this process sees one (default)",
    },
    "config": {"action": "append", "help": "YAML file, may be repeated; later ones win"},
    "root": {"type": Path, "default": Path("."), "help": "where data/ and results/ lie"},
    "study": {"flag": "study", "help": "a task, or the beginning of its name"},
    "action": {
        "flag": "action",
        "nargs": "?",
        "choices": ("check", "show", "schema"),
        "default": "check",
        "help": "show: print every value and where it comes from; schema: write config/schema.json",
    },
    "key": {
        "flag": "key",
        "nargs": "?",
        "default": "",
        "help": "of show: a dotted key (variants.default.steps)",
    },
    "path": {
        "flag": "path",
        "help": "a file, or the file and line of a row: results/ioi/gpt2-embedded/fcr.csv:12",
    },
    "verify": {"action": "store_true", "help": "hash every byte; ask Snakemake what it would run"},
    "rerun": {"metavar": "NODE", "help": "recompute a stage or an output elsewhere and compare"},
    "json": {"action": "store_true", "help": "print everything as JSON"},
    "targets": {"flag": "targets", "nargs": "*", "help": "what must be up to date (default: all study)"},
    "prompt": {"flag": "prompt", "help": "the prompt that is asked about"},
    "prompts": {
        "type": Path,
        "metavar": "FILE",
        "help": "no study: prompts to compare with (.txt, .jsonl, .csv, .parquet); --model: folder, .gguf file, hub repository",
    },
    "template": {"help": "the prompt of a row of --prompts: its columns in braces; they are features"},
    "features": {
        "flag": "--feature",
        "action": "append",
        "metavar": "NAME[=REGEX]",
        "help": "with --prompts: a further feature, a column or what a regular expression's group finds; may be repeated",
    },
    "folder": {"type": Path, "help": "with --prompts: where files are kept for the next time"},
    "hypotheses": {"action": "store_true", "help": "also what the samples share, named without a human"},
    "html": {
        "type": Path,
        "metavar": "FILE",
        "help": "also write a page that shows the reading in a browser",
    },
    "read_sites": {
        "flag": "--site",
        "action": "append",
        "required": True,
        "help": "label (L9H6; L10 = after layer 10), TransformerLens name or pattern (L9H*, L* = each layer); may be repeated",
    },
    "share": {"type": float, "help": "bandwidth as a share of the prior (default: the study's)"},
    "epsilon": {"type": float, "help": "bandwidth as a radius"},
    "cached": {"action": "store_true", "help": "cached neighbours alone: no candidates of a generator"},
    "cores": {
        "flag": "--threads",
        "type": int,
        "help": "threads (default: 1 for a study, as its jobs; else all cores)",
    },
    "of_task": {"flag": "task", "help": "task of an experiment"},
    "of_model": {"flag": "model", "help": "its target model"},
    "out_folder": {"flag": "--out", "type": Path, "required": True, "help": "empty folder that is filled"},
    "examples": {"type": int, "default": 1000, "help": "cached prompts that are given with activations"},
    "predictions": {"flag": "predictions", "type": Path, "help": "answers as docs/score.md says"},
    "drawn": {"flag": "--out", "type": Path, "help": "folder for table and figure"},
    "remote": {"help": "a remote's name, a directory or a URL; the default remote if absent"},
    "overwrite": {"action": "store_true", "help": "replace or delete results that were made here since"},
}
#: What every stage takes beside its own options.
OF_STAGES = ("task", "model", "log", "threads", "device", "config", "root")


def _parser() -> argparse.ArgumentParser:
    about = __doc__.splitlines()[0] if __doc__ else ""
    parser = argparse.ArgumentParser(prog="inversescope", description=about)
    parser.add_argument("--version", action="version", version=f"inversescope {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, stage in STAGES.items():
        dashed = [name.replace("_", "-")] if "_" in name else []
        command = commands.add_parser(name, aliases=dashed, help=f"rule {name} of the workflow")
        command.set_defaults(run=_run_stage, stage=name)
        _add_options(command, (*OF_STAGES, *stage.takes), stage.may_lack)
    for name, (what, takes, run) in COMMANDS.items():
        command = commands.add_parser(name, help=what)
        command.set_defaults(run=run)
        _add_options(command, takes)
    return parser


def _add_options(
    command: argparse.ArgumentParser, names: Sequence[str], may_lack: Sequence[str] = ()
) -> None:
    for name in names:
        about = dict(OPTIONS[name])
        if name in may_lack:
            about |= {"required": False, "default": []}
        flag = about.pop("flag", f"--{name}")
        if flag.startswith("-"):
            about["dest"] = name
        command.add_argument(flag, **about)


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


def _threads(arguments: argparse.Namespace) -> int:
    """How many threads a command works with: one, unless it is asked for more or runs a model on many prompts.

    A study is read as its jobs work. Its products are small, and threads that wait for one another would take longer.
    """
    given = vars(arguments)
    several = given.get("prompts") is not None
    return given.get("cores") or given.get("threads") or ((os.cpu_count() or 1) if several else 1)


def _limit_threads(threads: int) -> None:
    """Fix the number of threads of every numerical library, before any of them is imported: results depend on it."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _run_stage(arguments: argparse.Namespace) -> None:
    from inversescope.context import Context

    whole = _load(arguments)
    config = whole.of(arguments.task, arguments.model)
    context = Context(arguments.root, config, arguments.task, arguments.model, whole)
    options = {name: getattr(arguments, name) for name in STAGES[arguments.stage].takes}
    if "site" in options:
        options["site"] = context.site(options["site"]).label
    if "sites" in options:
        options["sites"] = [context.site(site).label for site in options["sites"]]
    for variant in options.get("variants") or filter(None, [options.get("variant")]):
        config.variant(variant)
    run_stage(context, arguments.stage, **options)


def run_stage(context: Context, stage: str, **options: object) -> None:
    """Run a stage in this process, by the name of its rule."""
    module = importlib.import_module(f"inversescope.{STAGES[stage].module}")
    _quiet()
    getattr(module, stage)(context, **options)


def _load(arguments: argparse.Namespace) -> Config:
    from inversescope.config import load_config

    return load_config(arguments.config or [arguments.root / "config/config.yaml"])


def _quiet() -> None:
    """Keep libraries' own progress bars out of the logs."""
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()


def _show(arguments: argparse.Namespace) -> None:
    from inversescope.lineage.records import made_otherwise
    from inversescope.report.show import show_task

    root, config = arguments.root, _load(arguments)
    show_task(root, config, arguments.study, otherwise=partial(made_otherwise, root, config))


def _config(arguments: argparse.Namespace) -> None:
    from inversescope.config import load_config, show, to_schema

    files = arguments.config or [arguments.root / "config/config.yaml"]
    if arguments.action == "show":
        print(show(files, arguments.key))
    elif arguments.action == "schema":
        file = arguments.root / "config/schema.json"
        file.write_text(to_schema(), encoding="utf-8")
        print(f"wrote {file}")
    else:
        load_config(files)
        print("the configuration is valid")


def _audit(arguments: argparse.Namespace) -> int:
    """Print a lineage: 0 if all is fine, 1 if something is missing, changed or not reproducible."""
    from inversescope.lineage.audit import audit
    from inversescope.lineage.render import render

    result = audit(arguments.root, arguments.path, arguments.verify, arguments.rerun)
    print(result.to_json() if arguments.json else render(result))
    return 0 if result.fine else 1


def _read(arguments: argparse.Namespace) -> None:
    # By name, as stages: a command that loads no model must not import what does.
    importlib.import_module("inversescope.reader.command").read(arguments)


def _questions(arguments: argparse.Namespace) -> None:
    importlib.import_module("inversescope.reader.others").questions(arguments)


def _score(arguments: argparse.Namespace) -> None:
    importlib.import_module("inversescope.reader.others").score(arguments)


def _figures(arguments: argparse.Namespace) -> None:
    from inversescope.lineage.planned import figures

    print(figures(arguments.root, arguments.config or ["config/config.yaml"]))


def _adopt(arguments: argparse.Namespace) -> None:
    from inversescope.lineage.adopt import SHOWN, TARGETS, adopt

    names, left = adopt(arguments.root, arguments.targets or TARGETS)
    print(f"dvc.lock has {', '.join(names)}")
    if left:
        print(f"of an earlier run: {len(left)} files in {SHOWN}, such as {left[0]}")
    print(f"now run git add dvc.lock {SHOWN}, git commit and dvc push")


def _restore(arguments: argparse.Namespace) -> None:
    from inversescope.lineage.adopt import restore

    count = restore(arguments.root, arguments.remote, arguments.overwrite)
    print(f"{count} files are those of the adopted run; of what it made nothing is to be done")


COMMANDS = {
    "show": Command("headline numbers of a task", ("study", "config", "root"), _show),
    "config": Command(
        "validate the configuration, show it, or write its schema",
        ("action", "key", "config", "root"),
        _config,
    ),
    "figures": Command(
        "the paper's figures and tables by number, each with its target, its files and its jobs",
        ("config", "root"),
        _figures,
    ),
    "audit": Command(
        "lineage of a figure, a table or one number, and what became of it",
        ("path", "verify", "rerun", "json", "root"),
        _audit,
    ),
    "read": Command(
        "what the activation of one prompt tells at a site",
        (
            "prompt",
            "task",
            "model",
            "prompts",
            "template",
            "features",
            "folder",
            "read_sites",
            "share",
            "epsilon",
            "cached",
            "hypotheses",
            "json",
            "html",
            "config",
            "root",
            "cores",
            "device",
        ),
        _read,
    ),
    "questions": Command(
        "what another reader needs to be scored: activations, sites and the prior, but no answer",
        ("of_task", "of_model", "out_folder", "examples", "config", "root"),
        _questions,
    ),
    "score": Command(
        "how far another reader's answers are from the exact ones, beside controls and variants",
        ("predictions", "task", "model", "drawn", "json", "config", "root"),
        _score,
    ),
    "adopt": Command(
        "record a finished run in DVC and git, if nothing is stale", ("targets", "root"), _adopt
    ),
    "restore": Command(
        "fetch, check and date what dvc.lock names", ("remote", "overwrite", "root"), _restore
    ),
}


def _drop_output() -> None:
    """Forget what is still to be printed: it must not raise again at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 bad input, 1 a fault of ours, or an audit that finds one."""
    arguments = _parser().parse_args(argv)
    _limit_threads(_threads(arguments))
    log: Path | None = getattr(arguments, "log", None)
    for stream in (sys.stdout, sys.stderr):
        # What the locale cannot write is shown as escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    stderr = sys.stderr
    handle: IO[str] | None = None
    try:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            handle = log.open("w", encoding="utf-8")
            sys.stderr = _Tee(*filter(None, (stderr, handle)))  # standard error may be closed
        device.choose(getattr(arguments, "device", device.CPU))
        status = arguments.run(arguments) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Who reads the output has seen enough.
        _drop_output()
        return 1
    except InputError as error:
        print(neutral(f"error: {error}"), file=sys.stderr)
        return 2
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _drop_output()
            print(
                "error: there is no room for what is written. Make room, then run it again", file=sys.stderr
            )
            return 2
        traceback.print_exc(file=sys.stderr)
        return 1
    finally:
        sys.stderr = stderr
        if handle is not None:
            handle.close()


if __name__ == "__main__":
    sys.exit(main())
