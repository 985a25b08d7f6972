"""A second device in main memory: it stands in for a GPU where there is none.

PyTorch takes its tensors for another device's, as it takes those of a GPU: they turn into NumPy's only by way of `cpu()`, and an
operation on tensors of two devices is refused. Behind that, the processor computes. So a tensor that some stage forgets on the
processor, or a device that it takes for granted, fails here as it would on a GPU.

It is one for all of a process, so tests that use it run in a process of their own (`devices.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from inversescope import device

NAME = "twin"
DEVICE = f"{NAME}:0"
aten = torch.ops.aten
# Before the first gradient of this process is computed: PyTorch counts its devices then.
_setup_privateuseone_for_python_backend(NAME)
#: What moves numbers from device to device.
_MOVES = (aten._to_copy, aten.to, aten.copy_)
_CPU = torch.device("cpu")
#: Operations that take indices of the processor for a tensor of another device.
_INDEXED = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)


class Twin(Tensor):
    """A tensor of the second device; `held` is the processor's tensor that holds its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Twin:
        about: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        return Tensor._make_wrapper_subclass(cls, held.shape, **about, dtype=held.dtype, device=DEVICE)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, *_: object, **__: object) -> str:
        return f"twin of {self.held!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What is a view of a usual tensor must be a usual one too.
        with torch.inference_mode(False):
            return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves, _ = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    asked = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    there = asked[0].type == NAME if asked else True
    if func.overloadpacket not in _MOVES:
        _check(func, args, tensors)
    if func is aten.copy_.default:
        there = isinstance(args[0], Twin)
    of = {id(one.held): one for one in tensors if isinstance(one, Twin)}

    def held(leaf: Any) -> Any:
        return leaf.held if isinstance(leaf, Twin) else _CPU if isinstance(leaf, torch.device) else leaf

    def back(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        known = of.get(id(leaf))
        if not there:
            return leaf if known is None else leaf.clone()
        return Twin(leaf) if known is None else known

    args, kwargs = tree_map(held, (args, kwargs))
    return tree_map(back, func(*args, **kwargs))


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Refuse tensors of two devices, as PyTorch does on a GPU; a single number may come from the processor."""
    if func.overloadpacket in _INDEXED and isinstance(args[0], Twin):
        tensors = [one for one in tensors if not any(one is index for index in args[1])]
    strangers = [one for one in tensors if not isinstance(one, Twin) and one.dim()]
    if strangers:
        shapes = [tuple(one.shape) for one in strangers]
        raise RuntimeError(f"{func}: tensors of shapes {shapes} lie on the processor, others on {NAME}")


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    target.held.copy_(source.held if isinstance(source, Twin) else source)  # type: ignore[attr-defined]
    return target


#: What makes tensors by a device's name, and fills them where PyTorch goes round `Twin`.
_LIBRARY = torch.library.Library("aten", "IMPL")


def _counted(*args: Any, **about: Any) -> Twin:
    return Twin(torch.arange(*args, dtype=about.get("dtype")))


for name, make in {
    **dict.fromkeys(("arange", "arange.start", "arange.start_step"), _counted),
    "empty.memory_format": lambda size, **about: Twin(torch.empty(size, dtype=about.get("dtype"))),
    "empty_strided": lambda size, stride, **about: Twin(
        torch.empty_strided(size, stride, dtype=about.get("dtype"))
    ),
    "_copy_from": _copied,
}.items():
    _LIBRARY.impl(name, make, "PrivateUse1")


@contextmanager
def second_device() -> Iterator[None]:
    """Let `--device twin:0` be asked for, for the length of a block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_NAMES", re.compile(f"cpu|{DEVICE}"))
        # As on a GPU, weights that two modules share stay one when they move.
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
            device.choose("cpu")
