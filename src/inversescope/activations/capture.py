"""Activations of many sites in one forward pass of the plain Hugging Face model.

What is computed is what is asked for, once: the pass stops at the last site that is read, only the
positions asked for are kept, equal prompts run once, and prompts that begin with the same tokens share the
keys and values of that beginning (in a causal model these depend on nothing later). The blocks themselves
are run by transformers, hooked from outside, so every architecture of `ARCHITECTURES` comes for free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from inversescope.activations.batches import Batch, Batches
from inversescope.activations.inputs import BATCH_TOKENS, Inputs
from inversescope.activations.prefixes import Buffers, PrefixCache
from inversescope.activations.proof import PREFIXES, prepared, proven
from inversescope.errors import InputError
from inversescope.sites import HEAD_KINDS, Site
from inversescope.targets.hooks import Done, hooked, run_body
from inversescope.targets.models import Target

Progress = Callable[[int, int], None]


def unheard(done: int, total: int) -> None:
    """Progress that nobody asked for."""


#: Order in which a block computes its components; the pass may stop after any of them.
_ORDER = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")


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
    w_o = target.w_o(site.layer, site.head).to("cpu", torch.float64)
    # PyTorch's, as the model's own products: NumPy's differs in its last digits from processor to processor.
    q, r = (factor.numpy() for factor in torch.linalg.qr(w_o.T))
    sign = np.where(np.diag(r) < 0, -1.0, 1.0)
    return np.ascontiguousarray(r.T * sign), np.ascontiguousarray(q.T * sign[:, None])


def capture(
    target: Target,
    token_ids: Sequence[np.ndarray] | np.ndarray,
    sites: Sequence[Site],
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = unheard,
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
    passes = Passes(target, Inputs(token_ids, positions or {}), sites, batch_tokens, width)
    out = {label: np.empty((len(token_ids), *shape), np.float32) for label, shape in passes.shapes.items()}
    done, total = 0, len(token_ids)
    with passes.ready(lambda: progress(done, total)):
        for batch in passes.batches:
            rows, which = passes.order.members(batch)
            for label, values in passes.run(batch).items():
                out[label][rows] = values[which]
            done += len(rows)
            progress(done, total)
    return out


class Passes:
    """Forward passes over prompts, a batch at a time, for those who cannot hold all activations at once.

    Args and raises: as `capture`.

    Attributes:
        ways: faster ways of running the model that were found to be equal.
        order: the order in which prompts are run.
        batches: the batches, in that order.
        shapes: site label -> shape of one prompt's activations.
        buffers: memory for keys and values.
    """

    def __init__(
        self,
        target: Target,
        inputs: Inputs,
        sites: Sequence[Site],
        batch_tokens: int = BATCH_TOKENS,
        width: int = 0,
    ) -> None:
        if not sites:
            raise InputError("No sites to capture", "Name at least one, such as L0H0")
        target.check_sites(sites)
        self.target, self.sites = target, list(dict.fromkeys(sites))
        asked = sorted({site.position for site in sites} - {"last", "any"})
        where = {position: inputs.resolve(position) for position in asked}
        named = {position: at for position, at in where.items() if not position.isdecimal()}
        self.ways = proven(target, int(inputs.lengths.max(initial=0)))
        self.order = Batches(target, inputs, named, batch_tokens, PREFIXES in self.ways)
        self.batches = self.order.batches
        self.width = max(width, int(inputs.lengths.max(initial=0)))
        self.shapes = {
            site.label: (*[self.width] * (site.position == "any"), target.site_dim(site))
            for site in self.sites
        }
        self._basis = {
            (site.layer, site.head): torch.from_numpy(result_basis(target, site)[0].astype(np.float32)).to(
                target.out_proj(site.layer).device
            )
            for site in self.sites
            if site.kind == "result"
        }
        self._plans: dict[tuple[Site, ...], _Plan] = {}
        self._length, self.buffers = 0, Buffers()

    @contextmanager
    def ready(self, tick: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Prepare the model for the length of a block; `tick` is called before each of its blocks."""
        with torch.inference_mode(), ExitStack() as stack:
            stack.enter_context(prepared(self.target, self.ways))
            for layer in self.target.layers:
                stack.callback(layer.register_forward_pre_hook(lambda *_: tick()).remove)
            yield

    def run(self, batch: Batch) -> dict[str, np.ndarray]:
        """Site label -> activations of a batch's distinct prompts, float32 (n, ...)."""
        length = batch.cuts[-1]
        places = {
            site: [replace(site, position=str(place)) for place in range(length)]
            if site.position == "any"
            else [replace(site, position=str(batch.places.get(site.position, site.position)))]
            for site in self.sites
        }
        if length != self._length:  # what was lent to prompts of another length is of no use
            self._length, self.buffers = length, Buffers()
        fixed = tuple(place for some in places.values() for place in some)
        if fixed not in self._plans:
            self._plans[fixed] = _Plan(self.target, fixed, self._basis)
        values = _run_batch(
            self._plans[fixed], self.order.tokens(batch), batch.shared, batch.cuts, self.buffers
        )
        found: dict[str, np.ndarray] = {}
        for site, some in places.items():
            if site.position == "any":
                stacked = np.stack([values[place] for place in some], 1)
                found[site.label] = stacked[:, np.arange(self.width) % length]
            else:
                found[site.label] = values[some[0]]
        return found


class _Plan:
    """What to hook, where to stop, and how to turn what the hooks saw into activations."""

    def __init__(
        self, target: Target, sites: Sequence[Site], basis: Mapping[tuple[int, int | None], Tensor]
    ) -> None:
        self.target, self.basis = target, basis
        self.sites = list(dict.fromkeys(sites))
        self.stop = max((self._point(site) for site in self.sites), key=lambda point: point.order)

    @staticmethod
    def _point(site: Site) -> _Point:
        return _Point(site.layer, "z" if site.kind in HEAD_KINDS else site.kind)

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
                raise Done

        with ExitStack() as stack:
            for point in wanted:
                component = self.target.arch.components[point.component]
                stack.enter_context(hooked(self.target, point.layer, component, partial(hook, point)))
            run_body(self.target, tokens, cache)
        return {
            site: self._site_value(site, seen[self._point(site), offset]) for site, offset in sites.items()
        }

    def _site_value(self, site: Site, value: Tensor) -> Tensor:
        """A site's activation from its component's (B, dim)."""
        if site.head is None:
            return value
        width = self.target.head_dim
        z = value[:, site.head * width : (site.head + 1) * width]
        # One product a head, whatever else is asked for: a batched one may round otherwise.
        return z @ self.basis[site.layer, site.head] if site.kind == "result" else z


def _run_batch(
    plan: _Plan, tokens: np.ndarray, shared: np.ndarray, cuts: Sequence[int], buffers: Buffers
) -> dict[Site, np.ndarray]:
    """Capture a batch of distinct sorted prompts (B, T), segment by segment."""
    device = plan.target.model.device
    values: dict[Site, np.ndarray] = {}
    cache: PrefixCache | None = None
    nodes = np.zeros(len(tokens), np.int64)
    for begin, end in zip(cuts, cuts[1:], strict=False):
        # A node is a distinct beginning of `end` tokens, stood for by the first prompt that has it.
        heads = np.flatnonzero(shared < end)
        parents = torch.from_numpy(nodes[heads]).to(device)
        nodes = np.cumsum(shared < end) - 1
        more = bool(plan.sites_within(end, tokens.shape[1], tokens.shape[1]))
        if begin or more:
            cache = PrefixCache(plan.target.n_layers, buffers, cache, begin, tokens.shape[1], parents, more)
        ids = torch.from_numpy(np.ascontiguousarray(tokens[heads, begin:end])).to(device)
        sites = plan.sites_within(begin, end, tokens.shape[1])
        for site, value in plan.forward(ids, cache, sites, more).items():
            found = value.cpu().numpy()
            values[site] = found if len(found) == len(nodes) else found[nodes]
        if not more:
            break
    return values
