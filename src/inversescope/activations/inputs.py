"""Prompts to run, where their positions are, and which of them run together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from inversescope.errors import InputError

#: Tokens of a forward pass, at most, unless somebody asks for others.
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Inputs:
    """Prompts to run, and where the named positions of each are.

    Args:
        token_ids: N prompts as integer arrays, of any lengths, or an (N, T) matrix.
        positions: name -> token index in each prompt, (N,); sites and cuts refer to the names (`L2.resid_post@query`).
    """

    token_ids: Sequence[np.ndarray] | np.ndarray
    positions: Mapping[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each prompt, int64 (N,)."""
        return np.fromiter((len(ids) for ids in self.token_ids), np.int64, len(self.token_ids))

    def resolve(self, position: str) -> np.ndarray:
        """Token index (N,) of a position: `last`, digits, or a name.

        Raises:
            InputError: the name is unknown, or a prompt has no such token.
        """
        lengths = self.lengths
        if position == "last":
            found = lengths - 1
        elif position.isdecimal():
            found = np.full(len(lengths), int(position), np.int64)
        elif position in self.positions:
            found = np.asarray(self.positions[position], np.int64)
        else:
            known = ", ".join(["last", "a token index", *self.positions])
            raise InputError(f"Unknown position '{position}'", f"Use one of: {known}")
        if found.shape != lengths.shape:
            raise InputError(
                f"Position '{position}' is given for {len(found)} prompts, but there are {len(lengths)}",
                "Give one token index a prompt",
            )
        outside = (found < 0) | (found >= lengths)
        if outside.any():
            row = int(outside.argmax())
            raise InputError(
                f"{outside.sum()} of {len(lengths)} prompts have no position '{position}'; "
                f"the first is prompt {row}, of {lengths[row]} tokens",
                "Choose a position that every prompt has",
            )
        return found


def groups(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Rows, ascending, of each distinct row of keys (N, K), in the order of the keys."""
    if not len(keys):
        return
    group = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(group, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
