"""Training of sparse autoencoders by Gemma Scope's recipe.

    loss = mean ||x - x^||^2 + lambda * mean ||f||_0, x at unit mean squared norm               (Lieberum et al., 2024, section 3)

The loss is a staircase in the thresholds theta, so theta learns from pseudo-gradients: steps are smeared out by a rectangle of
width `bandwidth`. The result works on raw activations: the scale is folded into weights and thresholds after training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inversescope.config.methods import SaeConfig
from inversescope.device import device
from inversescope.studies.ravel.sae import JumpReLU, from_arrays
from inversescope.targets.speed import linear
from inversescope.training import Schedule, train


class Jump(torch.autograd.Function):
    """(z, theta) -> features, and how many are active; pseudo-gradients in theta (Rajamanoharan et al., eq. 11 and 12)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        """Features (B, width), and their number over the batch."""
        on = z > theta
        ctx.save_for_backward(z, theta, on)
        ctx.bandwidth = bandwidth
        return z * on, on.sum(dtype=z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of z and theta."""
        z, theta, on = ctx.saved_tensors
        to_f, to_count = gradients
        near = (z - theta).abs_() < 0.5 * ctx.bandwidth
        pushed = (to_f * near).sum(0) * theta + to_count * near.sum(0, dtype=z.dtype)
        return to_f * on, -pushed / ctx.bandwidth, None


class Autoencoder(nn.Module):
    """An autoencoder in training, of activations of width `d` at unit mean squared norm."""

    def __init__(self, d: int, config: SaeConfig) -> None:
        super().__init__()
        self.bandwidth = config.bandwidth
        decoder = torch.empty(config.width, d)
        nn.init.kaiming_uniform_(decoder)
        decoder = decoder / decoder.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(decoder)
        self.W_enc = nn.Parameter(decoder.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(config.width))
        self.b_dec = nn.Parameter(torch.zeros(d))
        self.log_threshold = nn.Parameter(torch.full((config.width,), math.log(config.initial_threshold)))
        # Rows of W_dec stay at unit norm: what would change the norm is taken out of their gradient.
        self.W_dec.register_hook(self._tangent)

    def _tangent(self, gradient: Tensor) -> Tensor:
        rows = self.W_dec.detach()
        return gradient - (gradient * rows).sum(1, keepdim=True) * rows

    def loss(self, x: Tensor, weight: float) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch x (B, d) at a weight of sparsity, and its parts."""
        z = linear(x, self.W_enc.t(), self.b_enc)
        f, active = Jump.apply(z, self.log_threshold.exp(), self.bandwidth)
        error = (linear(f, self.W_dec.t(), self.b_dec) - x).square().sum() / len(x)
        l0 = active / len(x)
        return error + weight * l0, {"mse": float(error.detach()), "l0": float(l0.detach())}

    @torch.no_grad()
    def arrays(self, scale: float) -> dict[str, np.ndarray]:
        """The autoencoder of raw activations: z, f and x^ of the scaled ones, times the scale."""
        values = {
            "W_enc": self.W_enc,
            "W_dec": self.W_dec,
            "b_enc": self.b_enc * scale,
            "b_dec": self.b_dec * scale,
            "threshold": self.log_threshold.exp() * scale,
        }
        return {key: np.array(value.cpu().numpy()) for key, value in values.items()}


def train_sae(
    batch: Callable[[int], np.ndarray],
    d: int,
    scale: float,
    config: SaeConfig,
    sparsity: float,
    seed: int,
    name: str,
    echo: Callable[[str], None],
    state_path: Path | None = None,
    save_every: int = 5000,
    made_from: Mapping[str, Any] | None = None,
) -> tuple[JumpReLU, Any]:
    """Train an autoencoder on batches of raw activations.

    Args:
        batch: step -> activations (B, d), a function of the step alone.
        d: width of the site.
        scale: root mean squared norm of the activations; they are divided by it.
        sparsity: lambda.
        state_path: the file of the resumable state of a long run; removed by the caller once the result is written.
        save_every: steps between two states.
        made_from: what the activations are; with the settings it tells the state of this training from another's.

    Returns:
        The autoencoder on raw activations, and the log (a row every 50 steps: loss, mse, l0).
    """
    here = device()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder(d, config).to(here)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.from_numpy(np.asarray(batch(step), np.float32) / np.float32(scale)).to(here)
        return model.loss(x, sparsity * min(1.0, (step + 1) / config.sparsity_warmup))

    @torch.no_grad()
    def unit_rows(step: int) -> None:
        model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True))

    schedule = Schedule(
        config.steps, config.learning_rate, config.weight_decay, config.betas, config.warmup, "constant", None
    )
    settings = {"settings": config.model_dump(mode="json"), "shape": [d, config.width], "scale": scale}
    log = train(
        model,
        loss,
        schedule,
        name=name,
        tokens_per_step=config.batch_size,
        state_path=state_path,
        made_from={"seed": seed, "sparsity": sparsity, **settings, "activations": made_from},
        save_every=save_every,
        echo=echo,
        on_step=unit_rows,
    )
    return from_arrays(model.arrays(scale), d, name), log
