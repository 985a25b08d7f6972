"""What a command takes: it runs in a process of its own, whose operations, tokens and memory are measured.

The process is forked from one in which everything is imported, so that it starts at once and its memory is that of its work.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from inversescope.workflow.stages import STAGES

#: Seconds between two looks at the memory.
EVERY = 0.004
#: Texts that the backbone writes after its training, instead of 2,048.
GATE_SAMPLES = 32
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "inversescope.cli",
        "transformers.models.gemma2.modeling_gemma2",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.models.llama.modeling_llama",
        "torch.utils.flop_counter",
        *{f"inversescope.{stage.module}" for stage in STAGES.values()},
    ]
)


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
        status: that it ended with.
        said: what it wrote to standard error.
        operations: of matrix products of PyTorch's.
        distances: operations of the inner products behind distances.
        tokens, most: shape of an embedding (rows, width) -> rows that were read of it, and rows at a time.
        checked: lengths at which faster ways of running the target were compared with plain attention.
        seconds: of processor time.
        bytes: largest private memory, beyond that at the start; 0 where the system does not tell. Files that are mapped do not
            count: the system takes their pages back where it needs them.
    """

    status: int
    said: str
    operations: int
    distances: int
    tokens: Counter[tuple[int, ...]]
    most: Counter[tuple[int, ...]]
    checked: list[int]
    seconds: float
    bytes: int


def private_bytes(pid: int | str = "self") -> int:
    """Private memory of a process; 0 where the system does not tell, or the process has ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def measured(folder: Path, command: Sequence[str]) -> Measured:
    """Run a command of the package in a folder, and measure it."""
    receiver, sender = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=_run, args=(sender, str(folder), list(command)))
    process.start()
    sender.close()
    most = 0
    while not receiver.poll(EVERY):
        most = max(most, private_bytes(process.pid or 0))
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"{command[0]} ended with {process.exitcode} and said nothing") from None
    process.join()
    return Measured(bytes=max(0, most - found.pop("start")), **found)


def _run(sender: Connection, folder: str, command: list[str]) -> None:
    import torch
    from bench.cost import Operations, search

    from inversescope import cli
    from inversescope.activations import proof
    from inversescope.generator import backbone, inversionview, prior
    from inversescope.kernel import distances

    os.chdir(folder)
    torch.set_num_threads(1)
    prior.GATE_SAMPLES = GATE_SAMPLES
    # A step's rows are not filled up to a number that the processor likes: of few rows that is most of the work.
    backbone.even_rows = inversionview.even_rows = lambda rows: rows
    # Gigabytes are written that need not outlive a power cut.
    os.fsync = lambda descriptor: None
    compared, checked = list[float](), list[int]()
    products, check = distances.products, proof._proven

    def counted(queries: Any, keys: Any) -> Any:
        compared.append(search(*queries.shape[:1], *keys.shape))
        return products(queries, keys)

    def heard(target: Any, length: int, ways: Any) -> Any:
        checked.append(length)
        return check(target, length, ways)

    distances.products, proof._proven = counted, heard
    said, start = io.StringIO(), private_bytes()
    with contextlib.redirect_stderr(said), Operations() as found:
        status = cli.main(command)
    told = {"status": status, "said": said.getvalue(), "start": start}
    told |= {
        "operations": found.total,
        "distances": int(sum(compared)),
        "tokens": found.tokens,
        "most": found.most,
    }
    told |= {"checked": checked, "seconds": time.process_time()}
    sender.send(told)
