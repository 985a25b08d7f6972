"""The same numbers on processors whose routines for matrix products differ."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MODEL, SITES

#: Runs the stages whose examples, draws and counts come from comparing activations, and prints what NumPy made of a product.
STAGES = """\
import sys
import numpy as np
from inversescope.cli import main
root, site = sys.argv[1:]
for stage in (["extract_activations", "--split", "reference"], ["train_generator", "--variant", "default"],
              ["sample_prompts", "--variant", "default", "--site", site], ["compute_exact", "--site", site]):
    assert main([*stage, "--model", "tiny", "--root", root, "--config", root + "/config/config.yaml"]) == 0
z = np.random.default_rng(0).standard_normal((3, 500, 64), dtype=np.float32)
print((z[0] @ z[1].T @ z[2]).tobytes().hex()[:4000])
"""


def kernels() -> list[str]:
    """Two of the processors that NumPy's OpenBLAS knows, both of which this one can act as."""
    from numpy._core._multiarray_umath import __cpu_features__ as features

    return ["SkylakeX" if features.get("AVX512_SKX") else "Nehalem", "Haswell"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="OpenBLAS of this processor has one kernel")
def test_training_is_the_same_with_the_products_of_another_processor(copied: Callable[..., Path]) -> None:
    products, made = [], []
    for kernel in kernels():
        root = copied()
        done = subprocess.run(
            [sys.executable, "-c", STAGES, str(root), SITES[1]],
            env={**os.environ, "OPENBLAS_CORETYPE": kernel},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        products.append(done.stdout)
        data, results = root / "data/ioi" / MODEL, root / "results/ioi" / MODEL
        files = [
            data / "activations/reference" / f"{SITES[1]}.safetensors",
            data / "checkpoints/inversescope/default/model.safetensors",
            results / "samples/inversescope/default" / f"{SITES[1]}.parquet",
            results / "exact" / f"{SITES[1]}.parquet",
        ]
        made.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    assert products[0] != products[1], "the kernels differ, so that the comparison means something"
    assert made[0] == made[1]
