"""One training loop for target models, backbones and generators: schedule, gate, resume, log, progress.

Examples are a function of the seed and the step, so a run that was killed goes on from its last saved state to the same weights,
and the processes of one training (`accelerate launch`) each take a share of the same examples.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inversescope.errors import InputError
from inversescope.progress import Progress
from inversescope.store import load_state, save_state, write_table

if TYPE_CHECKING:
    from accelerate import PartialState

LossFunction = Callable[[int], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Schedule:
    """Optimiser settings of one run."""

    steps: int
    learning_rate: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = 100
    shape: str = "cosine"
    clip: float | None = 1.0

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then constant or cosine to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.shape == "constant":
            return self.learning_rate
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def train(
    model: nn.Module,
    loss: LossFunction,
    schedule: Schedule,
    *,
    name: str,
    tokens_per_step: int,
    log_path: Path | None = None,
    state_path: Path | None = None,
    made_from: Mapping[str, Any] | None = None,
    save_every: int = 500,
    log_every: int = 50,
    echo: Callable[[str], None] = print,
    stop: Callable[[int], bool] | None = None,
    rate: Callable[[int], float] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_cpu: bool = False,
) -> pd.DataFrame:
    """Minimise `loss(step)` over the trainable parameters of `model`, on the GPU of this process if there is one.

    Where there are several processes, `loss` gives this one's share, and the sum over processes is what is minimised; the first
    process alone writes and speaks.

    Args:
        loss: step -> (scalar loss, extra values to log); must depend on nothing but the step, the model and the process.
        state_path: the file of the resumable state; removed by the caller once the result is written.
        made_from: what the result depends on beside the schedule. A state of another training is left alone, and training begins
            at step 0; so it does where the state is damaged.
        save_every: steps between two states; makes no difference to the result.
        stop: asked after each step; True ends the run early.
        rate: learning rate at a step, if not the schedule's.
        on_step: called after each step (evaluation, snapshots).
        on_cpu: stay on the processor, whatever there is.

    Returns:
        The log: step, seconds, loss (mean since the last row), learning_rate, tokens_per_second, and the extra values.

    Raises:
        InputError: the loss became NaN or infinite.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=on_cpu or not torch.cuda.is_available())
    together, leading = accelerator.num_processes > 1, accelerator.is_main_process
    if not leading:
        state_writer, log_path, echo = None, None, _silent
    else:
        state_writer = state_path
    model.to(accelerator.device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    decay = [p for p in parameters if p.dim() > 1]
    rest = [p for p in parameters if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": schedule.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=schedule.betas, fused=True)
    optimizer = accelerator.prepare(optimizer)
    first, before = 0, 0.0
    rows: list[dict[str, Any]] = []
    sums: dict[str, list[float]] = {}
    training = json.loads(json.dumps({"schedule": asdict(schedule), "made_from": made_from}, default=str))
    if state_path is not None and state_path.exists():
        try:
            tensors, meta = load_state(state_path)
            if meta["training"] == training:
                first, before, rows, sums = _restore(model, optimizer, parameters, tensors, meta)
                echo(f"{name}: resuming at step {first} of {schedule.steps}")
            else:
                echo(f"{name}: {state_path} is the state of another training; beginning at step 0")
        except InputError as error:
            echo(f"{name}: {error.culprit}; beginning at step 0")
    progress = Progress(name, schedule.steps, echo)
    start = time.monotonic()
    logged = first
    model.train()
    for step in range(first, schedule.steps):
        learning_rate = (rate or schedule.rate)(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        value, extra = loss(step)
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(value)
        if together:
            value = accelerator.reduce(value.detach(), reduction="sum")
            for parameter in parameters:
                # A site that this process has no example of has no gradient here.
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = accelerator.reduce(own, reduction="sum")
        if schedule.clip is not None:
            accelerator.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        for key, number in {"loss": float(value.detach()), **extra}.items():
            if not math.isnan(number) or key == "loss":
                sums.setdefault(key, []).append(number)
        done = step + 1
        if not math.isfinite(sums["loss"][-1] if "loss" in sums else 0.0):
            raise InputError(
                f"{name}: the loss is {sums['loss'][-1]} at step {done}", "lower the learning rate"
            )
        ended = stop is not None and stop(done)
        if done % log_every == 0 or done == schedule.steps or ended:
            seconds = before + time.monotonic() - start
            speed = (
                tokens_per_step
                * (done - logged)
                / max(time.monotonic() - start - (rows[-1]["_run"] if rows else 0.0), 1e-9)
            )
            row: dict[str, Any] = {"step": done, "seconds": round(seconds, 2), "learning_rate": learning_rate}
            row.update({key: float(np.mean(numbers)) for key, numbers in sums.items()})
            row.update({"tokens_per_second": speed, "_run": time.monotonic() - start})
            rows.append(row)
            logged, sums = done, {}
            progress(done, f"loss {row['loss']:.3f}")
        if on_step is not None:
            on_step(done)
        if ended:
            break
        if state_writer is not None and done % save_every == 0 and done < schedule.steps:
            seconds = before + time.monotonic() - start
            logs = {"seconds": seconds, "rows": rows, "sums": sums}
            _save(model, optimizer, parameters, state_writer, done, logs, training)
    model.eval()
    log = pd.DataFrame(rows).drop(columns="_run", errors="ignore")
    if log_path is not None:
        write_table(log, log_path)
    return log


def _silent(line: str) -> None:
    """What processes but the first say."""


def this_process() -> PartialState:
    """Which of the processes of a training this is: `process_index` of `num_processes`, on `device`."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def _save(
    model: nn.Module,
    optimizer: Any,
    parameters: list[nn.Parameter],
    state_path: Path,
    step: int,
    logs: Mapping[str, Any],
    training: Mapping[str, Any],
) -> None:
    tensors = {f"model.{k}": v.detach().cpu().numpy() for k, v in model.state_dict().items()}
    for index, parameter in enumerate(parameters):
        state = optimizer.state.get(parameter, {})
        for key in ("exp_avg", "exp_avg_sq", "step"):
            if key in state:
                tensors[f"optimizer.{index}.{key}"] = np.atleast_1d(state[key].detach().cpu().numpy())
    rows = logs["rows"]
    kept = [{**row, "_run": row["_run"] - rows[-1]["_run"]} for row in rows] if rows else []
    save_state(state_path, tensors, {**logs, "training": training, "step": step, "rows": kept})


def _restore(
    model: nn.Module,
    optimizer: Any,
    parameters: list[nn.Parameter],
    tensors: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
) -> tuple[int, float, list[dict[str, Any]], dict[str, list[float]]]:
    """Put weights and moments back; returns step, seconds, the log, and what its next row is the mean of."""
    state = {k[len("model.") :]: torch.from_numpy(v) for k, v in tensors.items() if k.startswith("model.")}
    model.load_state_dict(state)
    for index, parameter in enumerate(parameters):
        if f"optimizer.{index}.exp_avg" in tensors:
            device = parameter.device
            optimizer.state[parameter] = {
                "step": torch.tensor(float(tensors[f"optimizer.{index}.step"][0]), device=device),
                "exp_avg": torch.from_numpy(tensors[f"optimizer.{index}.exp_avg"]).to(device),
                "exp_avg_sq": torch.from_numpy(tensors[f"optimizer.{index}.exp_avg_sq"]).to(device),
            }
    return int(meta["step"]), float(meta["seconds"]), list(meta["rows"]), dict(meta["sums"])


def next_token_loss(
    logits: Tensor, tokens: Tensor, lengths: Tensor, starts: Tensor | None = None, weight: float = 1.0
) -> Tensor:
    """Mean next-token cross-entropy in nats a token of padded sequences: logits (B, T, V), tokens (B, T).

    With `starts` (B,), tokens from these positions on (answers) count `weight` times.
    """
    loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    position = torch.arange(1, tokens.shape[1], device=tokens.device)[None]
    inside = position < lengths[:, None]
    if starts is None:
        return (loss * inside).sum() / inside.sum()
    share = inside * torch.where(position >= starts[:, None], weight, 1.0)
    return (loss * share).sum() / share.sum()
