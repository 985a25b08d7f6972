"""Activations of many sites in one forward pass of the plain Hugging Face model.

What is computed is what is asked for, once: the pass stops at the last site that is read, only the
positions asked for are kept, equal prompts run once, and prompts that begin with the same tokens share the
keys and values of that beginning (in a causal model these depend on nothing later). The blocks themselves
are run by transformers, hooked from outside, so every architecture of `ARCHITECTURES` comes for free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from inversescope.errors import InputError
from inversescope.ops import even_rows
from inversescope.sites import HEAD_KINDS, Site
from inversescope.targets.models import Target
from inversescope.targets.speed import fast_linear_layers, short_attention

Progress = Callable[[int, int], None]

#: Order in which a block computes its components; the pass may stop after any of them.
_ORDER = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")
#: Costs of a cut, in positions computed (measured on one core; see `_segments`): copying one position of a
#: shared beginning, times d_model as it grows more slowly than computing one; and a further pass, for each
#: distinct prompt.
_COPY_COST = 6.0
_PASS_COST = 0.05
#: Cuts are made only if they save this share of the work: a single causal pass has the faster attention.
_LEAST_GAIN = 0.15


class _Done(Exception):
    """Raised by the last hook that is needed: the rest of the forward pass would be thrown away."""


@dataclass(frozen=True)
class _Point:
    """A component of one block."""

    layer: int
    component: str

    @property
    def order(self) -> tuple[int, int]:
        return self.layer, _ORDER.index(self.component)


def result_basis(target: Target, site: Site) -> tuple[np.ndarray, np.ndarray]:
    """Factor a head's output map W_O[h] = L Q: z L are orthonormal coordinates of the result z W_O[h].

    The rows of Q span the head's output space. Inner products, norms and therefore cosines of z L (head_dim
    numbers) equal those of z W_O[h] (d_model numbers), and (z L) Q is the result itself.

    Args:
        target: the model.
        site: one of kind `result`.

    Returns:
        L, (head_dim, r) lower triangular with a positive diagonal, and Q, (r, d_model), in float64, where
        r = site_dim.
    """
    if site.kind != "result" or site.head is None:
        raise InputError(f"Site {site.label} has no output map", "Ask for a head's result, such as L9H6")
    w_o = target.w_o(site.layer, site.head).to("cpu", torch.float64).numpy()
    q, r = np.linalg.qr(w_o.T)
    sign = np.where(np.diag(r) < 0, -1.0, 1.0)
    return np.ascontiguousarray(r.T * sign), np.ascontiguousarray(q.T * sign[:, None])


def capture(
    target: Target,
    token_ids: Sequence[np.ndarray] | np.ndarray,
    sites: Sequence[Site],
    batch_tokens: int = 8192,
    progress: Progress | None = None,
    positions: Mapping[str, np.ndarray] | None = None,
    width: int = 0,
) -> dict[str, np.ndarray]:
    """Compute activations of prompts at sites.

    A batch holds prompts of one length (nothing is padded), in the order of their tokens, and a fixed
    number of them: the same prompts in any order give the same bits, and so does any choice of sites.

    Args:
        target: the model.
        token_ids: N prompts as integer arrays, or an (N, T) matrix.
        sites: what to read. Position `last` is the last token, digits are a token index, `any` stands for all
            tokens; other names are looked up in `positions`.
        batch_tokens: how many tokens one forward pass computes, at most (one prompt at least).
        progress: called with the number of prompts done and N.
        positions: name -> (N,) token index in each prompt, -1 where it has no such position.
        width: P of sites at `any`, at least the tokens of the longest prompt; that number if absent.

    Returns:
        site label -> (N, site_dim) float32; row i belongs to prompt i. Heads' results are in the
        coordinates of `result_basis`. At `any` it is (N, P, site_dim); a prompt of fewer than P tokens repeats its
        activations from the first one on, so that nothing but its own tokens is there.

    Raises:
        InputError: if a site, a position or a token is out of the model's range.
    """
    plain = [site for site in sites if site.position == "last" or site.position.isdecimal()]
    if len(plain) == len(sites):
        return _capture(target, token_ids, sites, batch_tokens, progress)
    lengths = np.fromiter((len(one) for one in token_ids), np.int64, len(token_ids))
    names = sorted({site.position for site in sites if site not in plain} - {"any"})
    where = {name: _positions_of(name, positions, lengths, sites) for name in names}
    whole = max(width, int(lengths.max(initial=0)))
    out: dict[str, np.ndarray] = {}
    for site in sites:
        shape = (whole, target.site_dim(site)) if site.position == "any" else (target.site_dim(site),)
        out[site.label] = np.empty((len(token_ids), *shape), np.float32)
    key = np.stack([lengths, *(where[name] for name in names)], 1)
    groups, group_of = np.unique(key, axis=0, return_inverse=True)
    order = np.argsort(group_of.ravel(), kind="stable")
    done = 0
    for rows in np.split(order, np.cumsum(np.bincount(group_of.ravel(), minlength=len(groups)))[:-1]):
        length = int(lengths[rows[0]])
        # In a group every named position is one and the same token index.
        at = {
            site: range(length)
            if site.position == "any"
            else [int(where[site.position][rows[0]])]
            if site.position in where
            else [site.position]
            for site in sites
        }
        fixed = {
            (site, place): Site(site.layer, site.kind, site.head, str(place))
            for site, places in at.items()
            for place in places
        }
        values = _capture(target, [token_ids[row] for row in rows], list(fixed.values()), batch_tokens, None)
        for site, places in at.items():
            if site.position == "any":
                stacked = np.stack([values[fixed[site, place].label] for place in places], 1)
                out[site.label][rows] = stacked[:, np.arange(whole) % length]
            else:
                out[site.label][rows] = values[fixed[site, places[0]].label]
        done += len(rows)
        if progress:
            progress(done, len(token_ids))
    return out


def _positions_of(
    name: str, positions: Mapping[str, np.ndarray] | None, lengths: np.ndarray, sites: Sequence[Site]
) -> np.ndarray:
    """Token index (N,) of a named position. Raises `InputError` if it is unknown, or if a prompt has none."""
    label = next(site.label for site in sites if site.position == name)
    if positions is None or name not in positions:
        raise InputError(
            f"Site '{label}' has position '{name}', neither 'last', 'any' nor a token index, nor one of the task's",
            "Use a position such as @4, or leave it out for the last token",
        )
    where = np.asarray(positions[name], np.int64)
    missing = np.flatnonzero((where < 0) | (where >= lengths))
    if missing.size:
        raise InputError(
            f"{missing.size} of {len(where)} prompts (the first is prompt {missing[0]}) have no position '{name}', "
            f"which site '{label}' reads",
            "Choose a position that all prompts of the task have",
        )
    return where


def _capture(
    target: Target,
    token_ids: Sequence[np.ndarray] | np.ndarray,
    sites: Sequence[Site],
    batch_tokens: int,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """`capture` at the last token and at token indices."""
    plan = _Plan(target, sites)
    out = {site.label: np.empty((len(token_ids), target.site_dim(site)), np.float32) for site in plan.sites}
    done = 0
    with torch.inference_mode(), fast_linear_layers(target.body), short_attention(target.model):
        for rows, tokens in _equal_lengths(token_ids):
            plan.check(rows, tokens)
            for members, values in _run_group(plan, tokens, batch_tokens):
                for label, value in values.items():
                    out[label][rows[members]] = value
                done += len(members)
                if progress:
                    progress(done, len(token_ids))
    return out


def iter_capture(
    target: Target,
    token_ids: Sequence[np.ndarray] | np.ndarray,
    sites: Sequence[Site],
    shard_rows: int = 100_000,
    batch_tokens: int = 8192,
    progress: Progress | None = None,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Capture shard by shard, so that memory holds one shard and a job can go on after the last one it wrote.

    Args:
        target: the model.
        token_ids: N prompts, as in `capture`.
        sites: what to read.
        shard_rows: prompts a shard. It is part of the result's identity to the last bit.
        batch_tokens: as in `capture`.
        progress: as in `capture`.

    Yields:
        the index of the shard's first prompt, and `capture`'s result for its prompts.
    """
    for start in range(0, len(token_ids), shard_rows):
        shard = token_ids[start : start + shard_rows]
        shift = (lambda done, _, first=start: progress(first + done, len(token_ids))) if progress else None
        yield start, capture(target, shard, sites, batch_tokens, shift)


class _Plan:
    """What to hook, where to stop, and how to turn what the hooks saw into activations."""

    def __init__(self, target: Target, sites: Sequence[Site]) -> None:
        if not sites:
            raise InputError("No sites to capture", "Name at least one, such as L0H0")
        self.target = target
        self.sites = list(dict.fromkeys(sites))
        for site in self.sites:
            for what, value, count in (
                ("layer", site.layer, target.n_layers),
                ("head", site.head or 0, target.n_heads),
            ):
                if value >= count:
                    raise InputError(
                        f"Site '{site.label}' has {what} {value}, "
                        f"but {target.name}'s {what}s are 0 to {count - 1}",
                        f"Choose a {what} in that range",
                    )
        self.layers = target.layers
        self.stop = max((self._point(site) for site in self.sites), key=lambda point: point.order)
        self.basis = {
            site: torch.from_numpy(result_basis(target, site)[0].astype(np.float32)).to(
                target.out_proj(site.layer).device
            )
            for site in self.sites
            if site.kind == "result"
        }

    @staticmethod
    def _point(site: Site) -> _Point:
        return _Point(site.layer, "z" if site.kind in HEAD_KINDS else site.kind)

    def check(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """Refuse prompts that are empty, too long, out of the vocabulary, or too short for a site's
        position."""
        config, length = self.target.model.config, tokens.shape[1]
        if length == 0:
            raise InputError(f"Prompt {rows[0]} is empty", "Remove it")
        if length > config.max_position_embeddings:
            raise InputError(
                f"Prompt {rows[0]} has {length} tokens, "
                f"but {self.target.name} takes {config.max_position_embeddings}",
                "Shorten the prompts, or use a model with more positions",
            )
        outside = ((tokens < 0) | (tokens >= config.vocab_size)).any(axis=1)
        if outside.any():
            raise InputError(
                f"Prompt {rows[outside.argmax()]} has a token outside {self.target.name}'s vocabulary",
                "Encode the prompts with the model's own tokenizer",
            )
        for site in self.sites:
            if site.position != "last" and int(site.position) >= length:
                raise InputError(
                    f"Prompt {rows[0]} has {length} tokens, none at the position of site '{site.label}'",
                    f"Choose a position from 0 to {length - 1}",
                )

    def sites_within(self, first: int, last: int, length: int) -> dict[Site, int]:
        """Sites that are read at positions first ... last - 1 of prompts of a length -> offset from first."""
        at = {site: length - 1 if site.position == "last" else int(site.position) for site in self.sites}
        return {site: position - first for site, position in at.items() if first <= position < last}

    def forward(
        self, tokens: Tensor, cache: Cache | None, sites: dict[Site, int], more: bool
    ) -> dict[Site, Tensor]:
        """Run the blocks on tokens (B, S) that follow what the cache holds.

        Args:
            tokens: token ids.
            cache: keys and values of earlier positions, to be extended.
            sites: those to read in this pass -> which of the S positions.
            more: whether later passes need the keys and values of this one.

        Returns:
            site -> (B, site_dim) float32.
        """
        points = [self._point(site) for site in sites]
        if more:
            # Later positions attend to this one in every layer up to the last: its keys and values must
            # exist.
            points.append(min(self.stop, _Point(self.stop.layer, "z"), key=lambda point: point.order))
        stop = max(points, key=lambda point: point.order)
        seen: dict[tuple[_Point, int], Tensor] = {}
        wanted: dict[_Point, set[int]] = {point: set() for point in points}
        for site, offset in sites.items():
            wanted[self._point(site)].add(offset)

        def hook(point: _Point, tensor: Tensor) -> None:
            for offset in wanted[point]:
                seen[point, offset] = tensor[:, offset].float().contiguous()
            if point == stop:
                raise _Done

        with self._hooks(wanted, hook):
            try:
                self.target.body(input_ids=tokens, past_key_values=cache, use_cache=False)
            except _Done:
                pass
        return {
            site: self._site_value(site, seen[self._point(site), offset]) for site, offset in sites.items()
        }

    @contextmanager
    def _hooks(self, points: dict[_Point, set[int]], see: Callable[[_Point, Tensor], None]) -> Iterator[None]:
        """Hook the modules of some points for the length of a block."""
        handles = []
        for point in points:
            component = self.target.arch.components[point.component]
            module = self.layers[point.layer].get_submodule(component.module)

            def before(
                _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], point: _Point = point
            ) -> None:
                see(point, args[0] if args else kwargs["hidden_states"])

            def after(
                _: nn.Module, args: Any, output: Tensor | tuple[Tensor, ...], point: _Point = point
            ) -> None:
                see(point, output[0] if isinstance(output, tuple) else output)

            if component.side == "input":
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _site_value(self, site: Site, value: Tensor) -> Tensor:
        """A site's activation from its component's (B, dim)."""
        if site.head is None:
            return value
        width = self.target.head_dim
        z = value[:, site.head * width : (site.head + 1) * width]
        # One product a head, whatever else is asked for: a batched one may round otherwise.
        return z @ self.basis[site] if site.kind == "result" else z


def _equal_lengths(token_ids: Sequence[np.ndarray] | np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Prompts by length: their rows, and their tokens as (n, T) int64."""
    if isinstance(token_ids, np.ndarray) and token_ids.ndim == 2:
        yield np.arange(len(token_ids)), token_ids.astype(np.int64)
        return
    lengths = np.fromiter((len(one) for one in token_ids), np.int64, len(token_ids))
    order = np.argsort(lengths, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        if len(rows):
            flat = np.concatenate([token_ids[row] for row in rows]).astype(np.int64)
            yield rows, flat.reshape(len(rows), -1)


def _run_group(
    plan: _Plan, tokens: np.ndarray, batch_tokens: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Capture prompts of one length, (N, T): rows of the group, and label -> values, batch by batch."""
    order, fresh = _sorted_prefixes(tokens)
    # Rows of `order` that begin a new prompt; equal prompts follow each other.
    first = np.flatnonzero(fresh < tokens.shape[1])
    unique, fresh = tokens[order[first]], fresh[first]
    ends = np.append(first[1:], len(order))
    cuts = _segments(fresh, tokens.shape[1], _COPY_COST / plan.target.d_model)
    buffers = _Buffers()
    size = max(1, batch_tokens // (cuts[-1] - cuts[-2]))
    size -= size % 128 if size > 128 else 0  # as `even_rows` would have it
    for start in range(0, len(unique), size):
        stop = min(start + size, len(unique))
        # The first prompt of a batch shares nothing with the one before it.
        shared = fresh[start:stop].copy()
        shared[0] = 0
        values = _run_batch(plan, unique[start:stop], shared, cuts, buffers)
        copies = np.repeat(np.arange(stop - start), ends[start:stop] - first[start:stop])
        members = order[first[start] : ends[stop - 1]]
        yield members, {site.label: value[copies] for site, value in values.items()}


def _sorted_prefixes(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of the rows by their tokens, and for each in that order how many tokens it shares with the one
    before.

    The first row shares 0, a repeated row all T.
    """
    n, length = tokens.shape
    # Several tokens in one key: a sort by few keys is several times as fast as one by T.
    bits = max(1, int(tokens.max()).bit_length())
    per_key = 63 // bits
    keys = []
    for start in range(0, length, per_key):
        key = np.zeros(n, np.int64)
        for column in range(start, min(start + per_key, length)):
            key = (key << bits) | tokens[:, column]
        keys.append(key)
    order = np.lexsort(keys[::-1])
    ranked = tokens[order]
    differs = np.ones((n, length + 1), bool)
    np.not_equal(ranked[1:], ranked[:-1], out=differs[1:, :length])
    shared = differs.argmax(axis=1)
    return order, shared


def _segments(shared: np.ndarray, length: int, copy_cost: float) -> list[int]:
    """Cut positions 0 ... length where prompts of a group branch, so that the whole work is least.

    A segment a ... b runs once for each distinct beginning of b tokens, and copies the keys and values of a
    shared beginning if a > 0. Returned are its ends [0, ..., length], found by dynamic programming over the
    last cut.
    """
    # distinct[p]: number of distinct beginnings of p tokens (of no tokens: 1).
    distinct = np.array([max(1, int((shared < p).sum())) for p in range(length + 1)])
    best = np.full(length + 1, np.inf)
    best[0] = 0.0
    cut = np.zeros(length + 1, int)
    for end in range(1, length + 1):
        for begin in range(end):
            work = distinct[end] * (end - begin + copy_cost * length * (begin > 0))
            cost = best[begin] + work + _PASS_COST * distinct[length] * (begin > 0)
            if cost < best[end]:
                best[end], cut[end] = cost, begin
    if best[length] > (1 - _LEAST_GAIN) * distinct[length] * length:
        return [0, length]
    ends = [length]
    while ends[-1] > 0:
        ends.append(int(cut[ends[-1]]))
    return ends[::-1]


def _run_batch(
    plan: _Plan, tokens: np.ndarray, shared: np.ndarray, cuts: list[int], buffers: _Buffers
) -> dict[Site, np.ndarray]:
    """Capture a batch of distinct sorted prompts (B, T), segment by segment."""
    device = plan.target.model.device
    values: dict[Site, np.ndarray] = {}
    cache: _PrefixCache | None = None
    nodes = np.zeros(len(tokens), np.int64)
    for begin, end in zip(cuts, cuts[1:], strict=False):
        # A node is a distinct beginning of `end` tokens, stood for by the first prompt that has it.
        heads = np.flatnonzero(shared < end)
        heads = np.append(heads, np.repeat(heads[-1:], even_rows(len(heads)) - len(heads)))
        parents = torch.from_numpy(nodes[heads]).to(device)
        nodes = np.cumsum(shared < end) - 1
        more = bool(plan.sites_within(end, tokens.shape[1], tokens.shape[1]))
        if begin or more:
            cache = _PrefixCache(plan.target.n_layers, buffers, cache, begin, tokens.shape[1], parents, more)
        ids = torch.from_numpy(np.ascontiguousarray(tokens[heads, begin:end])).to(device)
        sites = plan.sites_within(begin, end, tokens.shape[1])
        for site, value in plan.forward(ids, cache, sites, more).items():
            values[site] = value.cpu().numpy()[nodes]
        if not more:
            break
    return values


class _Buffers:
    """Memory that passes of one shape use again and again: fresh pages for each pass cost as much as
    filling them."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[Any, ...], Tensor] = {}

    def take(self, name: tuple[Any, ...], shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Lend an uninitialised tensor; the next one of that name takes its place."""
        key = (*name, shape[1:], like.dtype, like.device)
        block = self._blocks.get(key)
        if block is None or len(block) < shape[0]:
            block = self._blocks[key] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return block[: shape[0]]


class _PrefixLayer(DynamicLayer):
    """Keys and values of one layer: those of shared beginnings, then the pass's own.

    They lie head by head, (B, heads, capacity, d), with room for a whole prompt, so that one copy a
    row moves all of a beginning.
    """

    def __init__(self, cache: _PrefixCache, layer: int) -> None:
        super().__init__()
        self.cache, self.layer = cache, layer
        self.blocks: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put each row's own keys and values after those of its beginning; (B, heads, S, d) -> (B, heads, P
        + S, d)."""
        cache = self.cache
        end = cache.length + key_states.shape[2]
        # What later segments copy must outlive this layer; what they do not may be overwritten by the next
        # layer.
        place = (cache.depth, self.layer if cache.keep else None)
        blocks = []
        for which, own in enumerate((key_states, value_states)):
            rows, heads, _, width = own.shape
            block = cache.buffers.take((*place, which), (rows, heads, cache.capacity, width), own)
            if cache.past is not None:
                parents = cache.parents.to(own.device)
                torch.index_select(cache.past.layers[self.layer].blocks[which], 0, parents, out=block)
            block[:, :, cache.length : end] = own
            blocks.append(block)
        if cache.keep:
            self.blocks = blocks
        keys, values = (block[:, :, :end] for block in blocks)
        return keys, values

    def get_seq_length(self) -> int:
        """Number of positions before this pass."""
        return self.cache.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys, and the position of the first."""
        return self.cache.length + query_length, 0


class _PrefixCache(Cache):
    """Keys and values of all layers for one segment.

    Args:
        n_layers: number of blocks.
        buffers: memory to use.
        past: the segment before.
        length: number of positions before this segment.
        capacity: number of positions of a whole prompt.
        parents: row of `past` that each row continues.
        keep: whether a further segment follows.
    """

    def __init__(
        self,
        n_layers: int,
        buffers: _Buffers,
        past: _PrefixCache | None,
        length: int,
        capacity: int,
        parents: Tensor,
        keep: bool,
    ) -> None:
        self.buffers, self.past, self.length, self.capacity = buffers, past, length, capacity
        self.parents, self.keep = parents, keep
        self.depth: int = 0 if past is None else past.depth + 1
        super().__init__(layers=[_PrefixLayer(self, layer) for layer in range(n_layers)])
