"""Sparse autoencoders with JumpReLU features: Gemma Scope's release files, and training by Gemma Scope's recipe.

    f(x) = z * 1[z > theta] with z = x W_enc + b_enc,   x^ = f W_dec + b_dec                    (Rajamanoharan et al., 2024, eq. 2)
    loss = mean ||x - x^||^2 + lambda * mean ||f||_0, x at unit mean squared norm               (Lieberum et al., 2024, section 3)

The loss is a staircase in theta, so theta learns from pseudo-gradients: steps are smeared out by a rectangle of width `bandwidth`.
What is read and written works on raw activations: the scale is folded into weights and thresholds after training.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inversescope.errors import InputError, first_line

if TYPE_CHECKING:
    from inversescope.config.methods import SaeConfig
    from inversescope.config.targets import GemmaScopeConfig


@dataclass(frozen=True)
class JumpReLU:
    """A trained autoencoder, in the arrays of a Gemma Scope file, float32.

    Attributes:
        W_enc: (d, width).
        W_dec: (width, d).
        b_enc: (width,).
        b_dec: (d,).
        threshold: (width,).
    """

    W_enc: np.ndarray
    W_dec: np.ndarray
    b_enc: np.ndarray
    b_dec: np.ndarray
    threshold: np.ndarray

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.threshold)

    def features(self, x: np.ndarray) -> np.ndarray:
        """Feature activations (N, width) of activations (N, d); 0 = not active."""
        z = x.astype(np.float32) @ self.W_enc + self.b_enc
        z[z <= self.threshold] = 0.0
        return np.maximum(z, 0.0, out=z)

    def only(self, features: np.ndarray) -> JumpReLU:
        """The autoencoder of some of the features (n,), in their order; they may repeat."""
        return JumpReLU(
            self.W_enc[:, features],
            self.W_dec[features],
            self.b_enc[features],
            self.b_dec,
            self.threshold[features],
        )

    def reconstruct(self, features: np.ndarray) -> np.ndarray:
        """Activations (N, d) from features (N, width)."""
        return features @ self.W_dec + self.b_dec

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def from_arrays(arrays: dict[str, np.ndarray], d: int, source: str) -> JumpReLU:
    """Make an autoencoder of named arrays for activations of width `d`.

    Raises:
        InputError: an array is missing, not finite, or of another shape than the site asks for; names `source` and the array.
    """
    remedy = "check the layer, width and model that the file belongs to"
    names = [field.name for field in fields(JumpReLU)]
    for name in names:
        if name not in arrays:
            raise InputError(f"{source} has no array '{name}'", remedy)
    width = int(arrays["threshold"].size)
    wanted = {
        "W_enc": (d, width),
        "W_dec": (width, d),
        "b_enc": (width,),
        "b_dec": (d,),
        "threshold": (width,),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise InputError(
                f"{source}: '{name}' has shape {arrays[name].shape}, but the site of width {d} needs {shape}",
                remedy,
            )
        if not np.isfinite(arrays[name]).all():
            raise InputError(f"{source}: '{name}' holds NaN or infinity", "fetch the file again")
    return JumpReLU(**{name: np.asarray(arrays[name], np.float32) for name in names})


def read_gemma_scope(path: Path, d: int) -> JumpReLU:
    """Read a file `params.npz` of Gemma Scope's release, for activations of width `d`; nothing is unpickled.

    Raises:
        InputError: the file is missing or broken, or does not fit the site (see `from_arrays`).
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist", "check models.*.gemma_scope: path, width and l0")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no file of plain arrays ({error})", "fetch the file again") from error
    return from_arrays(arrays, d, str(path))


def gemma_scope_path(config: GemmaScopeConfig, layer: int) -> Path:
    """Where the release file of a layer lies: in a local folder, or in the hub's cache after its download at the pinned revision.

    Raises:
        InputError: no L0 is configured for the layer, or the file cannot be fetched.
    """
    if layer not in config.l0:
        raise InputError(
            f"no Gemma Scope file is named for layer {layer}", f"add {layer}: L0 to models.*.gemma_scope.l0"
        )
    name = f"layer_{layer}/width_{config.width}/average_l0_{config.l0[layer]}/params.npz"
    if config.source == "local":
        return Path(config.path) / name
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(config.path, name, revision=config.revision))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise InputError(
            f"{config.path}/{name} at revision {config.revision} cannot be fetched ({first_line(error)})",
            "set gemma_scope.source: local and path to a folder that holds it",
        ) from error


# ----------------------------------------------------------------------------------------------------------------- training


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
    import torch
    from torch import Tensor, nn

    from inversescope.training import Schedule, train

    class Jump(torch.autograd.Function):
        """(z, theta) -> features, and how many are active; pseudo-gradients in theta (Rajamanoharan et al., eq. 11 and 12)."""

        @staticmethod
        def forward(ctx: Any, z: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
            on = z > theta
            ctx.save_for_backward(z, theta, on)
            return z * on, on.sum(dtype=z.dtype)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
            z, theta, on = ctx.saved_tensors
            to_f, to_count = gradients
            near = (z - theta).abs_() < 0.5 * config.bandwidth
            pushed = (to_f * near).sum(0) * theta + to_count * near.sum(0, dtype=z.dtype)
            return to_f * on, -pushed / config.bandwidth

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            decoder = torch.empty(config.width, d)
            nn.init.kaiming_uniform_(decoder)
            decoder = decoder / decoder.norm(dim=1, keepdim=True)
            self.W_dec = nn.Parameter(decoder)
            self.W_enc = nn.Parameter(decoder.T.contiguous())
            self.b_enc = nn.Parameter(torch.zeros(config.width))
            self.b_dec = nn.Parameter(torch.zeros(d))
            self.log_threshold = nn.Parameter(torch.full((config.width,), math.log(config.initial_threshold)))
            # Rows of W_dec stay at unit norm: what would change the norm is taken out of their gradient.
            self.W_dec.register_hook(self.tangent)

        def tangent(self, gradient: Tensor) -> Tensor:
            rows = self.W_dec.detach()
            return gradient - (gradient * rows).sum(1, keepdim=True) * rows

        def loss(self, x: Tensor, weight: float) -> tuple[Tensor, dict[str, float]]:
            z = torch.addmm(self.b_enc, x, self.W_enc)
            f, active = Jump.apply(z, self.log_threshold.exp())
            error = (torch.addmm(self.b_dec, f, self.W_dec) - x).square().sum() / len(x)
            l0 = active / len(x)
            return error + weight * l0, {"mse": float(error.detach()), "l0": float(l0.detach())}

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder().to(device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.from_numpy(np.asarray(batch(step), np.float32) / np.float32(scale)).to(device)
        return model.loss(x, sparsity * min(1.0, (step + 1) / config.sparsity_warmup))

    @torch.no_grad()
    def unit_rows(step: int) -> None:
        model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True))

    schedule = Schedule(
        config.steps, config.learning_rate, config.weight_decay, config.betas, config.warmup, "constant", None
    )
    log = train(
        model,
        loss,
        schedule,
        name=name,
        tokens_per_step=config.batch_size,
        state_path=state_path,
        made_from={
            "seed": seed,
            "sparsity": sparsity,
            "settings": config.model_dump(mode="json"),
            "shape": [d, config.width],
            "scale": scale,
            "activations": made_from,
        },
        save_every=save_every,
        echo=echo,
        on_step=unit_rows,
    )
    with torch.no_grad():
        # z, f and x^ of the scaled activations, times the scale, are those of the raw ones.
        values = {
            "W_enc": model.W_enc,
            "W_dec": model.W_dec,
            "b_enc": model.b_enc * scale,
            "b_dec": model.b_dec * scale,
            "threshold": model.log_threshold.exp() * scale,
        }
        arrays = {key: np.array(value.cpu().numpy()) for key, value in values.items()}
        return from_arrays(arrays, d, name), log


# ------------------------------------------------------------------------------------------------------ features as classifiers


def representatives(
    model: JumpReLU, z: np.ndarray, labels: np.ndarray, n_labels: int, block: int = 8192
) -> tuple[np.ndarray, np.ndarray]:
    """For each label the feature that tells it best by itself, by F1 of "the feature is active" (paper, D.2.3).

    Args:
        z: training activations (N, d), read block by block.
        labels: (N,) label codes, -1 = none.

    Returns:
        feature: (n_labels,) int64; f1: (n_labels,) of each.
    """
    hits, active = np.zeros((n_labels, model.width)), np.zeros(model.width)
    for low in range(0, len(z), block):
        on = (model.features(np.asarray(z[low : low + block])) > 0).astype(np.float32)
        hits += (labels[low : low + block, None] == np.arange(n_labels)).astype(np.float32).T @ on
        active += on.sum(0)
    total = np.bincount(labels[labels >= 0], minlength=n_labels)
    f1 = 2.0 * hits / np.maximum(total[:, None] + active[None, :], 1.0)
    feature = f1.argmax(1)
    return feature, f1[np.arange(n_labels), feature]
