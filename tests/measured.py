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
        tokens, sizes: shape of an embedding (rows, width) -> rows that were read of it, and numbers of rows at a time.
        checked: lengths at which faster ways of running the target were compared with plain attention.
        batches: of prompts that the target ran together, their tokens, and of each pass the distinct beginnings that it ran.
        seconds: of processor time.
        bytes: largest private memory, beyond that at the start; 0 where the system does not tell. Files that are mapped do not
            count: the system takes their pages back where it needs them.
    """

    status: int
    said: str
    operations: int
    distances: int
    tokens: Counter[tuple[int, ...]]
    sizes: dict[tuple[int, ...], set[int]]
    checked: list[int]
    batches: list[tuple[int, list[int]]]
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
    from inversescope.activations import capture, proof
    from inversescope.generator import backbone, inversionview, prior
    from inversescope.kernel import distances

    os.chdir(folder)
    torch.set_num_threads(1)
    prior.GATE_SAMPLES = GATE_SAMPLES
    # A step's rows are not filled up to a number that the processor likes: of few rows that is most of the work.
    backbone.even_rows = inversionview.even_rows = lambda rows: rows
    # Gigabytes are written that need not outlive a power cut.
    os.fsync = lambda descriptor: None
    compared, checked, batches = list[float](), list[int](), list[tuple[int, list[int]]]()
    products, check, run_batch = distances.products, proof._proven, capture._run_batch

    def counted(queries: Any, keys: Any) -> Any:
        compared.append(search(*queries.shape[:1], *keys.shape))
        return products(queries, keys)

    def heard(target: Any, length: int, ways: Any) -> Any:
        checked.append(length)
        return check(target, length, ways)

    def passed(plan: Any, tokens: Any, shared: Any, cuts: Sequence[int], buffers: Any) -> Any:
        batches.append((tokens.shape[1], [int((shared < end).sum()) for end in cuts[1:]]))
        return run_batch(plan, tokens, shared, cuts, buffers)

    distances.products, proof._proven, capture._run_batch = counted, heard, passed
    said, start = io.StringIO(), private_bytes()
    with contextlib.redirect_stderr(said), Operations() as found:
        status = cli.main(command)
    told = {"status": status, "said": said.getvalue(), "start": start}
    told |= {
        "operations": found.total,
        "distances": int(sum(compared)),
        "tokens": found.tokens,
        "sizes": found.sizes,
    }
    told |= {"checked": checked, "batches": batches, "seconds": time.process_time()}
    sender.send(told)
