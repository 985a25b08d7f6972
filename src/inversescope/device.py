"""The device of this process: one place decides it, `--device` says which, and accelerate finds it.

Whatever runs a model, searches neighbours or computes exact values asks here. Nothing is loaded before something asks, and PyTorch
not at all where there is nothing but the processor.
"""

from __future__ import annotations

import os
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inversescope.errors import InputError

if TYPE_CHECKING:
    from accelerate import PartialState

#: A GPU if this process sees one, else the processor.
AUTO = "auto"
CPU = "cpu"
_NAMES = re.compile(r"auto|cpu|cuda(:\d+)?")
#: What drivers of NVIDIA's and AMD's GPUs show, in containers and under Windows' Linux too.
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_asked = AUTO


def choose(name: str = AUTO) -> None:
    """Ask for a device: auto, cpu, cuda or cuda:N. What was decided before is forgotten.

    Raises:
        InputError: the name is none of these.
    """
    global _asked
    if not _NAMES.fullmatch(name):
        raise InputError(f"'{name}' is no device", "choose auto, cpu, cuda or cuda:N")
    forget()
    _asked = name


def forget() -> None:
    """Forget what was decided, in accelerate too."""
    if process.cache_info().currsize:
        process.cache_clear()
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        import_module("accelerate.state").AcceleratorState._reset_state(True)


@cache
def process() -> PartialState:
    """accelerate's state of this process: `device`, and which of the processes of a training it is.

    Raises:
        InputError: there is no such device.
    """
    from accelerate import PartialState

    cuda = import_module("torch").cuda
    if _asked.startswith("cuda"):
        _check(cuda.device_count() if cuda.is_available() else 0)
    if ":" in _asked:
        os.environ["ACCELERATE_TORCH_DEVICE"] = _asked
    state = PartialState(cpu=_asked == CPU or not cuda.is_available())
    if state.device.type == "cuda" and state.device.index:
        cuda.set_device(state.device)  # for what asks PyTorch for its present device
    return state


def _check(there: int) -> None:
    """Raise `InputError` if the GPU that was asked for is not among those that are there."""
    number = int(_asked.partition(":")[2] or 0)
    if number >= there:
        raise InputError(
            f"there is no device {_asked}: PyTorch sees {there} GPUs",
            "choose cpu or auto, or install a build of PyTorch for the GPU and its driver",
        )
    if ":" in _asked and "LOCAL_RANK" in os.environ:
        raise InputError(f"{_asked} is one GPU, but several processes share GPUs", "choose cuda")


def device() -> Any:
    """The device, a `torch.device`."""
    return process().device


def on_cpu() -> bool:
    """Whether this process computes on the processor; PyTorch is asked only where a driver says that there may be more."""
    if _asked == CPU or (_asked == AUTO and not any(Path(driver).exists() for driver in _DRIVERS)):
        return True
    return bool(device().type == CPU)
