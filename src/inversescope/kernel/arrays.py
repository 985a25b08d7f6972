"""Arrays that distances are computed with: NumPy's on the processor, PyTorch's on another device, with the same values.

What follows is exact or rounded as IEEE 754 says, number by number, so that no result depends on the device. Sums are of numbers
on a grid (`distances`), and exact whatever their order. NumPy is kept on the processor: it is the faster one there, and a job that
loads no model need not load PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from inversescope.device import device, on_cpu

#: An array of NumPy's, or a tensor of PyTorch's on the device of this process.
Array = Any


def placed(x: np.ndarray) -> Array:
    """An array where this process computes."""
    if on_cpu():
        return x
    # By name: importing this module loads nothing.
    return import_module("torch").tensor(x, device=device())


def fetched(x: Array) -> np.ndarray:
    """The same in main memory."""
    found: np.ndarray = x if isinstance(x, np.ndarray) else x.cpu().numpy()
    return found


def double(x: Array) -> Array:
    """The same as float64."""
    return x.astype(np.float64) if isinstance(x, np.ndarray) else x.double()


def single(x: Array) -> Array:
    """The same as float32."""
    return x.astype(np.float32) if isinstance(x, np.ndarray) else x.float()


def root(x: Array) -> Array:
    """Square roots."""
    return np.sqrt(x) if isinstance(x, np.ndarray) else x.sqrt()


def one_minus(x: Array) -> Array:
    """1 - x of float64, as float32."""
    if isinstance(x, np.ndarray):
        return np.subtract(1.0, x, out=np.empty(x.shape, np.float32), casting="same_kind")
    return (1.0 - x).float()


def empty(shape: tuple[int, ...], like: Array) -> Array:
    """An uninitialised array beside another one, float32."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, np.float32)
    return like.new_empty(shape, dtype=import_module("torch").float32)


def lowest(x: Array) -> tuple[np.ndarray, np.ndarray]:
    """Where the least number of each row of x (Q, N) stands, the first one of equals, and the number: (Q,) each."""
    at = x.argmin(-1)
    if isinstance(x, np.ndarray):
        return at, x[np.arange(len(x)), at]
    return fetched(at), fetched(x.gather(-1, at[:, None])[:, 0])


def below(x: Array, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and numbers (n,) of those of x (Q, N) that are below their row's limit (Q,), row by row."""
    if isinstance(x, np.ndarray):
        flat = np.flatnonzero(x < limit[:, None])
        row, column = np.divmod(flat, x.shape[1])
        return row, column, x.ravel()[flat]
    inside = x < placed(limit)[:, None]
    row, column = inside.nonzero(as_tuple=True)
    return fetched(row), fetched(column), fetched(x[inside])
