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
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inversescope import device
from inversescope.errors import InputError
from inversescope.progress import Progress
from inversescope.store import load_state, save_state, write_table

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
    decay_all: bool = False

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then constant or cosine to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.shape == "constant":
            return self.learning_rate
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


class _Optimised:
    """A model and its optimiser, on the device and among the processes that the job has."""

    def __init__(self, model: nn.Module, schedule: Schedule) -> None:
        from accelerate import Accelerator

        self.model, self.clip = model, schedule.clip
        device.process()  # before accelerate decides by itself
        self.accelerator = Accelerator(cpu=device.on_cpu())
        model.to(self.accelerator.device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in self.parameters if p.dim() > 1], "weight_decay": schedule.weight_decay},
            {
                "params": [p for p in self.parameters if p.dim() <= 1],
                "weight_decay": schedule.weight_decay if schedule.decay_all else 0.0,
            },
        ]
        optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=schedule.betas, fused=True)
        self.optimizer: Any = self.accelerator.prepare(optimizer)

    def minimise(self, loss: LossFunction, step: int, rate: float) -> dict[str, float]:
        """Take a step along the gradient of the processes' losses together; returns what there is to log."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        value, extra = loss(step)
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(value)
        if self.accelerator.num_processes > 1:
            value = self.accelerator.reduce(value.detach(), reduction="sum")
            known = torch.tensor([p.grad is not None for p in self.parameters], device=value.device)
            known = self.accelerator.reduce(known.int(), reduction="sum") > 0
            for parameter, somewhere in zip(self.parameters, known.tolist(), strict=True):
                if (
                    somewhere
                ):  # not a site that the step does not read; this process alone may have no example of one
                    own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    parameter.grad = self.accelerator.reduce(own, reduction="sum")
        if self.clip is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return {"loss": float(value.detach()), **extra}

    def tensors(self) -> dict[str, np.ndarray]:
        """Weights and moments by name, for a state."""
        tensors = {f"model.{k}": v.detach().cpu().numpy() for k, v in self.model.state_dict().items()}
        for index, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{index}.{key}"] = np.atleast_1d(value.detach().cpu().numpy())
        return tensors

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Put weights and moments back."""
        weights = {
            k.removeprefix("model."): torch.from_numpy(v)
            for k, v in tensors.items()
            if k.startswith("model.")
        }
        self.model.load_state_dict(weights)
        for index, parameter in enumerate(self.parameters):
            name = f"optimizer.{index}."
            if name + "exp_avg" in tensors:
                moments = {key: torch.from_numpy(tensors[name + key]) for key in ("exp_avg", "exp_avg_sq")}
                step = torch.tensor(float(tensors[name + "step"][0]))
                self.optimizer.state[parameter] = {
                    key: value.to(parameter.device) for key, value in {"step": step, **moments}.items()
                }


class _Log:
    """Rows of a training's log: means of what was logged since the row before."""

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self.rows: list[dict[str, Any]] = []
        self.sums: dict[str, list[float]] = {}
        self.before = 0.0  # seconds of the processes that were killed
        self.logged = 0  # step of the last row, or of the state
        self.start = self.since = time.monotonic()

    def add(self, values: Mapping[str, float]) -> None:
        """Log one step; a value that is NaN was not computed, but for the loss."""
        for key, number in values.items():
            if not math.isnan(number) or key == "loss":
                self.sums.setdefault(key, []).append(number)

    def close_row(self, step: int, rate: float) -> dict[str, Any]:
        """Write a row up to a step."""
        now = time.monotonic()
        speed = self.tokens_per_step * (step - self.logged) / max(now - self.since, 1e-9)
        row: dict[str, Any] = {"step": step, "seconds": round(self.seconds(), 2), "learning_rate": rate}
        row.update({key: float(np.mean(numbers)) for key, numbers in self.sums.items()})
        row["tokens_per_second"] = speed
        self.rows.append(row)
        self.logged, self.since, self.sums = step, now, {}
        return row

    def seconds(self) -> float:
        """Seconds of training until now, those before a kill too."""
        return self.before + time.monotonic() - self.start

    def state(self) -> dict[str, Any]:
        """What a log of the same training goes on from."""
        return {"seconds": self.seconds(), "rows": self.rows, "sums": self.sums}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Go on with the log of a state."""
        self.rows, self.sums = list(meta["rows"]), dict(meta["sums"])
        self.before, self.logged = float(meta["seconds"]), int(meta["step"])


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
) -> pd.DataFrame:
    """Minimise `loss(step)` over the trainable parameters of `model`, on the device of this process; there the model stays.

    With several processes, `loss` gives this one's share and their sum is minimised; the first one alone writes and speaks.

    Args:
        loss: step -> (scalar loss, extra values to log); depends on nothing but the step, the model and the process.
        state_path: the file of the resumable state; removed by the caller once the result is written.
        made_from: what the result depends on beside the schedule. A state of another training is not gone on from.
        save_every: steps between two states; makes no difference to the result.
        stop: asked after each step; True ends the run early.
        rate: learning rate at a step, if not the schedule's.
        on_step: called after each step (evaluation).

    Returns:
        The log: step, seconds, loss (mean since the last row), learning_rate, tokens_per_second, and the extra values.

    Raises:
        InputError: the loss became NaN or infinite.
    """
    optimised, log = _Optimised(model, schedule), _Log(tokens_per_step)
    leading = optimised.accelerator.is_main_process
    echo = echo if leading else _silent
    training = json.loads(json.dumps({"schedule": asdict(schedule), "made_from": made_from}, default=str))
    first = _resume(optimised, log, state_path, training, lambda line: echo(f"{name}: {line}"))
    if first:
        echo(f"{name}: resuming at step {first} of {schedule.steps}")
    progress = Progress(name, schedule.steps, echo)
    model.train()
    for step in range(first, schedule.steps):
        done, learning_rate = step + 1, (rate or schedule.rate)(step)
        values = optimised.minimise(loss, step, learning_rate)
        if not math.isfinite(values["loss"]):
            raise InputError(
                f"{name}: the loss is {values['loss']} at step {done}", "lower the learning rate"
            )
        log.add(values)
        progress(done, f"loss {np.mean(log.sums['loss']):.3f}")
        ended = stop is not None and stop(done)
        if done % log_every == 0 or done == schedule.steps or ended:
            log.close_row(done, learning_rate)
        if on_step is not None:
            on_step(done)
        if ended:
            break
        if state_path is not None and leading and done % save_every == 0 and done < schedule.steps:
            save_state(state_path, optimised.tensors(), {**log.state(), "training": training, "step": done})
    model.eval()
    table = pd.DataFrame(log.rows)
    if log_path is not None and leading:
        write_table(table, log_path)
    return table


def _resume(
    optimised: _Optimised,
    log: _Log,
    state_path: Path | None,
    training: Mapping[str, Any],
    tell: Callable[[str], None],
) -> int:
    """Go on from the state of the same training, if there is one; returns the step to begin at."""
    if state_path is None or not state_path.exists():
        return 0
    try:
        tensors, meta = load_state(state_path)
    except InputError as error:
        tell(f"{error.culprit}; beginning at step 0")
        return 0
    if meta["training"] != training:
        tell(f"{state_path} is the state of another training; beginning at step 0")
        return 0
    optimised.restore(tensors)
    log.restore(meta)
    return int(meta["step"])


def _silent(line: str) -> None:
    """What processes but the first say."""


def processor() -> str:
    """What the last digits of a training depend on: the device's name or PyTorch's vector instructions, and NumPy's BLAS kernel."""
    from threadpoolctl import threadpool_info

    blas = [
        found.get("architecture", found["internal_api"])
        for found in threadpool_info()
        if found["user_api"] == "blas"
    ]
    here = None if device.on_cpu() else device.device()
    gpu = [torch.cuda.get_device_name(here)] if here is not None and here.type == "cuda" else []
    return ", ".join(
        [*gpu, f"PyTorch {torch.backends.cpu.get_cpu_capability()}", *(f"NumPy {name}" for name in blas[:1])]
    )


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
