"""Every stage gives the same on the processor and on another device, up to rounding; exact values and neighbours bit for bit.

The comparisons are in `devices.py`, which runs in a process of its own for each device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inversescope import device
from inversescope.cli import main
from inversescope.errors import InputError

COMPARISONS = Path(__file__).with_name("devices.py")
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")


@pytest.mark.parametrize("name", ["twin:0", pytest.param("cuda", marks=NO_GPU)])
def test_another_device_gives_the_same(study: Path, name: str) -> None:
    options = ("-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(COMPARISONS)],
        env={**os.environ, "STUDY": str(study), "DEVICE": name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cpu:0", "mps", "cuda:-1"])
def test_a_device_that_is_none_is_refused_before_work(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["make_prompts", "--model", "any", "--split", "train", "--device", name]) == 2
    assert f"'{name}' is no device. choose auto, cpu, cuda or cuda:N" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch sees a GPU here")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_refused(name: str) -> None:
    device.choose(name)
    try:
        with pytest.raises(InputError, match=f"there is no device {name}: PyTorch sees 0 GPUs"):
            device.device()
    finally:
        device.choose("cpu")


def test_a_job_without_a_gpu_loads_no_pytorch(study: Path) -> None:
    """Where no driver shows one, distances are NumPy's alone."""
    code = (
        "import sys; from pathlib import Path; from inversescope import device; device._DRIVERS = ();"
        "from inversescope.cli import main;"
        f"assert main(['compute_exact', '--model', 'tiny', '--site', 'L0H0', '--root', r'{study}',"
        f"'--config', r'{study / 'config/config.yaml'}']) == 0;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
