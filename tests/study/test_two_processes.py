"""Training shared by two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from test_training import make_model, run

UNIT = Path(__file__).parents[1] / "unit"
SHARED = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_training import SCHEDULE, make_model, loss_of
from inversescope import device
from inversescope.training import train
model, process = make_model(), device.process()
index, of = process.process_index, process.num_processes
assert of == 2

def loss(step):
    import numpy as np
    rng = np.random.default_rng([3, step])
    x = torch.from_numpy(rng.standard_normal((16, 4)).astype(np.float32))
    y = x[:, :1] - 0.5 * x[:, 1:2]
    # Uneven shares, the second process without the first three rows; all 16 rows count alike.
    part = slice(0, 3) if index == 0 else slice(3, 16)
    # Every third step reads a parameter more, in the first process alone.
    seldom = 0.01 * model[0].seldom.square().sum() if step % 3 == index == 0 else 0.0
    return ((model(x[part]) - y[part]) ** 2).sum() / 16 + seldom, {"twice": 2.0 * step, "rare": float("nan")}

log = train(model, loss, SCHEDULE, name="t", tokens_per_step=1, log_every=5, log_path=Path(sys.argv[2]) / "log.csv")
torch.save(model.state_dict(), Path(sys.argv[2]) / f"{index}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    (tmp_path / "shared.py").write_text(SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "shared.py"), str(UNIT), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = make_model()
    log = run(alone)
    first, second = (torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in (0, 1))
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    assert done.stdout.count("t: 30/30") == 1, "the first alone speaks"
    np.testing.assert_allclose(pd.read_csv(tmp_path / "log.csv")["loss"], log["loss"], rtol=1e-4)
