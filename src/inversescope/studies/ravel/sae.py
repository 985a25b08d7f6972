"""Sparse autoencoders with JumpReLU features: Gemma Scope's release files, and features as classifiers of attributes.

f(x) = z * 1[z > theta] with z = x W_enc + b_enc,   x^ = f W_dec + b_dec                    (Rajamanoharan et al., 2024, eq. 2)
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inversescope.errors import InputError, first_line
from inversescope.kernel.arrays import fetched, placed

if TYPE_CHECKING:
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
        z = fetched(placed(x.astype(np.float32)) @ placed(self.W_enc)) + self.b_enc
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
        return fetched(placed(features) @ placed(self.W_dec)) + self.b_dec

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def from_arrays(arrays: dict[str, np.ndarray], d: int | None, source: str) -> JumpReLU:
    """Make an autoencoder of named arrays for activations of width `d`; of whatever width they are for, if it is not known.

    Raises:
        InputError: an array is missing, not finite, or of another shape than the site asks for; names `source` and the array.
    """
    remedy = "check the layer, width and model that the file belongs to"
    names = [field.name for field in fields(JumpReLU)]
    for name in names:
        if name not in arrays:
            raise InputError(f"{source} has no array '{name}'", remedy)
    width = int(arrays["threshold"].size)
    d = int(arrays["b_dec"].size) if d is None else d
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


def read_gemma_scope(path: Path, d: int | None) -> JumpReLU:
    """Read a file `params.npz` of Gemma Scope's release, for activations of width `d` if that is known; nothing is unpickled.

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
    name = config.file(layer)
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
