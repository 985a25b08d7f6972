"""Kills: with KILL=STAGE:write:N the N-th file that STAGE writes is left unfinished, with KILL=STAGE:time:S it gets S
seconds of processor time (or ends, unrecorded). The whole process group dies by SIGKILL, Snakemake with it.
Python imports this as it starts.
"""

import atexit
import os
import signal
import sys
from typing import Any

_stage, _, _rest = os.environ.get("KILL", "").partition(":")


def _kill(*_: Any) -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


if _stage and _stage in sys.argv[1:2] or _stage and _stage in sys.orig_argv[2:4]:
    _how, _, _number = _rest.partition(":")
    if _how == "time":
        signal.signal(signal.SIGPROF, _kill)
        signal.setitimer(signal.ITIMER_PROF, float(_number))
        atexit.register(_kill)
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
        atexit.register(_kill)
