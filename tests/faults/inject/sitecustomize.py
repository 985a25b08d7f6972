"""Kills: the folder KILLS has a file STAGE-write-N or STAGE-time-S for each that is to come.

A process of the stage leaves the N-th file that it writes half-written, or gets S seconds of processor time (or ends, unrecorded):
then its whole process group dies by SIGKILL, Snakemake with it, and the file is gone. Python imports this module as it starts.
"""

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

_folder = Path(os.environ.get("KILLS", "/nonexistent"))
_words = {*sys.argv[1:2], *sys.orig_argv[2:4]}
_plan = next((p for p in sorted(_folder.glob("*-*-*")) if p.name.split("-")[0] in _words), None)


def _kill(*_: Any) -> None:
    assert _plan is not None
    _plan.unlink(missing_ok=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if _plan is not None:
    _how, _number = _plan.name.split("-")[1:]
    atexit.register(_kill)
    if _how == "time":
        signal.signal(signal.SIGPROF, _kill)
        signal.setitimer(signal.ITIMER_PROF, float(_number))
    else:
        _left = [int(_number)]
        _fsync = os.fsync

        def _until(handle: Any) -> None:
            _left[0] -= 1
            if _left[0] <= 0:
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
                _kill()
            _fsync(handle)

        os.fsync = _until  # type: ignore[assignment]
