"""Random streams: each (stage, site, target, draw) has its own, whatever the order of jobs."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np

_PAGE = 64  # numbers of a draw that follow each other in a stream


def stream(*parts: int | str) -> np.random.Generator:
    """A random stream of its own for (seed, stage, site, ...): numbers and names."""
    keys = [
        p if isinstance(p, int) else int.from_bytes(hashlib.sha256(p.encode()).digest()[:4], "little")
        for p in parts
    ]
    return np.random.default_rng(keys)


def stream_uniforms(
    seed: int, name: str, target_ids: np.ndarray, draws: np.ndarray, length: int
) -> np.ndarray:
    """Uniforms (targets, draws, length): a stretch of a Philox stream a draw, found by seed, name, target and number of the draw.

    Args:
        draws: consecutive numbers.
    """
    key = [seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(name.encode())]
    first, count = int(draws[0]), len(draws)
    if not np.array_equal(draws, np.arange(first, first + count)):
        raise ValueError("draws must be consecutive numbers")
    result = np.empty((len(target_ids), count, length))
    for i, target in enumerate(target_ids):
        for page, start in enumerate(range(0, length, _PAGE)):
            # A value of Philox's counter gives four numbers.
            bits = np.random.Philox(key=key, counter=[first * _PAGE // 4, page, int(target), 0])
            numbers = np.random.Generator(bits).random((count, _PAGE))
            result[i, :, start : start + _PAGE] = numbers[:, : length - start]
    return result
