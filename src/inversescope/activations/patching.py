"""Activation patching: what a model predicts when activations of another run, or other values, stand at some of its sites.

A *source* run is recorded at sites; a *target* run gets what was recorded written in, and its prediction is read (paper, D.3.1;
Hendel et al. 2023). Sites are those of `sites.py`: residual stream, attention output, MLP output, single heads; positions are the
last token, a token index, or a name that each prompt resolves for itself. Attention from a position to another can be ablated in
either run (attention knock-out, Geva et al. 2023). The model is the plain Hugging Face one, hooked from outside.

One source pass records all sites of all interventions that leave the source run alone, and one target pass writes all sites of an
intervention. Where all write at the last token alone, the tokens before it run once for all, and a pass begins at the first block
that is written, with what enters it in the plain run. Where attention is cut in source runs, the tokens before the cuts run once.
Interventions are not packed into one pass as further rows: a row's last bits depend on its place in the batch, and patching a run
with itself must change no bit of it; on full batches packing would save nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from inversescope.activations.inputs import BATCH_TOKENS, Inputs, groups
from inversescope.activations.proof import LINEAR, PREFIXES, prepared, proven
from inversescope.errors import InputError
from inversescope.sites import HEAD_KINDS, Site
from inversescope.targets.architectures import Component
from inversescope.targets.hooks import Done, entered, hooked, run_body, without_attention
from inversescope.targets.models import Target

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Patch:
    """What is read in the source run and written into the target run.

    Args:
        read: site of the source run.
        write: site of the target run; the same as `read` if absent. Widths must be equal.
    """

    read: Site
    write: Site | None = None

    @property
    def to(self) -> Site:
        """Site that is written."""
        return self.write or self.read


@dataclass(frozen=True)
class Cut:
    """Attention that is ablated: scores of minus infinity before the softmax, so that the other weights grow in proportion.

    Args:
        key: position that is no longer attended to.
        query: position that attends.
        layers: blocks where this holds; all if absent.
    """

    key: str
    query: str = "last"
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Intervention:
    """One way to run the target prompts: sites written together, and attention ablated in either run. Empty: the plain run."""

    patches: tuple[Patch, ...] = ()
    cut_source: tuple[Cut, ...] = ()
    cut_target: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """What source runs left to write, for any number of calls of `patch`.

    Attributes:
        inputs: the N prompts that were run.
        values: attention that was cut meanwhile -> site -> (N, width), float32.
    """

    inputs: Inputs
    values: Mapping[tuple[Cut, ...], Mapping[Site, np.ndarray]]


@dataclass(frozen=True)
class Readout:
    """Predictions of K interventions on N prompts.

    Attributes:
        top: token with the largest logit, int64 (K, N).
        logits: logits of the tokens asked for, float32 (K, N, C); C = 0 if none were.
    """

    top: np.ndarray
    logits: np.ndarray


def record(target: Target, inputs: Inputs, sites: Sequence[Site]) -> dict[Site, np.ndarray]:
    """Record activations as the model holds them: what `patch` writes (unlike `capture`, a head is its z, not z W_O).

    Args:
        target: the model.
        inputs: N prompts.
        sites: what to read, all in one pass.

    Returns:
        site -> (N, width) float32.

    Raises:
        InputError: a site, position or token is out of range.
    """
    _check(target, sites, ())
    ways = _proven(target, inputs)
    return _record(target, inputs, {(): set(sites)}, BATCH_TOKENS, ways, begins=False)[()]


def record_sources(
    target: Target,
    sources: Inputs,
    targets: Inputs,
    interventions: Sequence[Intervention],
    read_at: str = "last",
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[], None] | None = None,
) -> Recorded:
    """Record all that interventions read in source runs, in the very passes in which `patch` runs the target prompts.

    `patch` does so by itself, and anew in each call; other interventions that read no more may be given what this returns.

    Args:
        progress: called now and then.

    Raises:
        InputError: numbers of prompts differ, or a site, position or token is out of range.
    """
    if len(sources.token_ids) != len(targets.token_ids):
        raise InputError(
            f"{len(sources.token_ids)} source prompts for {len(targets.token_ids)} target prompts",
            "Give one source a target prompt",
        )
    sites: dict[tuple[Cut, ...], set[Site]] = {}
    for one in interventions:
        _check_intervention(target, one)
        sites.setdefault(one.cut_source, set()).update(item.read for item in one.patches)
    ways = _proven(target, targets, sources)
    begins = _begins(ways, read_at, interventions)
    return Recorded(sources, _record(target, sources, sites, batch_tokens, ways, begins, progress))


def patch(
    target: Target,
    sources: Inputs | Recorded | Mapping[Site, np.ndarray] | None,
    targets: Inputs,
    interventions: Sequence[Intervention],
    tokens: np.ndarray | None = None,
    read_at: str = "last",
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Readout:
    """Run the target prompts under each intervention and read the next-token prediction.

    Prompt i of the target takes what is written from source i. With `sources == targets` and the same site read and written,
    predictions equal the plain run's (`Intervention()`) bit for bit.

    Args:
        target: the model.
        sources: N prompts to record; or what was recorded of them; or site -> (N, width) values to write (means, zeros, ... or the
            result of `record`); None if nothing is patched.
        targets: N prompts to patch and read.
        interventions: K of them.
        tokens: token ids (N, C) whose logits are returned for each prompt: two of them make a logit difference.
        read_at: position of the target prompts after which the prediction is read.
        batch_tokens: tokens of a pass, at most (one prompt at least).
        progress: called with the number of runs done and K N.

    Raises:
        InputError: nothing to record from, numbers of prompts or widths differ, or a site, position or token is out of range.
    """
    n = len(targets.token_ids)
    wanted = np.zeros((n, 0), np.int64) if tokens is None else np.asarray(tokens, np.int64)
    _check_wanted(target, wanted, n)
    for one in interventions:
        _check_intervention(target, one)
    total = len(interventions) * n
    if isinstance(sources, Inputs):
        waited = partial(progress, 0, total) if progress else None
        sources = record_sources(target, sources, targets, interventions, read_at, batch_tokens, waited)
    run = [sources.inputs] if isinstance(sources, Recorded) else []
    found: Mapping[tuple[Cut, ...], Mapping[Site, np.ndarray]]
    found = sources.values if isinstance(sources, Recorded) else {(): sources or {}}
    for one in interventions:
        _check_values(target, one, found.get(one.cut_source), n)
    ways = _proven(target, targets, *run)
    begins = _begins(ways, read_at, interventions)
    top = np.zeros((len(interventions), n), np.int64)
    logits = np.zeros((len(interventions), n, wanted.shape[1]), np.float32)
    read = targets.resolve(read_at)
    done = 0
    with torch.inference_mode(), _ready(target, ways):
        for rows in _batches(targets, batch_tokens):
            chosen = torch.from_numpy(wanted[rows])
            begun = _begin(target, targets, rows) if begins else None
            for k, one in enumerate(interventions):
                final = _run(target, one, found[one.cut_source], targets, rows, read[rows], begun)
                top[k, rows] = final.argmax(-1).cpu().numpy()
                logits[k, rows] = final.gather(-1, chosen.to(final.device)).float().cpu().numpy()
                done += len(rows)
                if progress:
                    progress(done, total)
    return Readout(top, logits)


def width(target: Target, site: Site) -> int:
    """Numbers that are recorded and written at a site (a head: its z)."""
    return target.head_dim if site.kind in HEAD_KINDS else target.site_dim(site)


# ------------------------------------------------------------------------------------------------------------------ checks


def _check(target: Target, sites: Sequence[Site], cuts: Sequence[Cut]) -> None:
    target.check_sites(sites)
    for site in sites:
        if site.kind == "resid_mid":
            raise InputError(
                f"Site '{site.label}' is read by two parts of its block, so that it cannot be replaced",
                f"Patch L{site.layer}.resid_pre, L{site.layer}.attn_out or L{site.layer}.resid_post",
            )
    for cut in cuts:
        if cut.layers is not None and not all(0 <= layer < target.n_layers for layer in cut.layers):
            raise InputError(
                f"Attention is cut in layers {list(cut.layers)}, but {target.name}'s are 0 to {target.n_layers - 1}",
                "Choose layers in that range",
            )


def _check_wanted(target: Target, wanted: np.ndarray, n: int) -> None:
    vocabulary = int(target.model.config.vocab_size)
    if (
        wanted.ndim != 2
        or len(wanted) != n
        or (wanted.size and not 0 <= wanted.min() <= wanted.max() < vocabulary)
    ):
        raise InputError(
            f"Tokens to read: shape {wanted.shape}, ids up to {wanted.max(initial=0)}, for {n} prompts, {vocabulary} tokens",
            "Give a row of token ids of the model's vocabulary for each prompt",
        )


def _check_intervention(target: Target, one: Intervention) -> None:
    sites = [site for item in one.patches for site in (item.read, item.to)]
    _check(target, sites, [*one.cut_source, *one.cut_target])
    for item in one.patches:
        if width(target, item.read) != width(target, item.to):
            raise InputError(
                f"Site '{item.read.label}' has {width(target, item.read)} numbers, '{item.to.label}' {width(target, item.to)}",
                "Patch between sites of one width",
            )
    if len({item.to for item in one.patches}) < len(one.patches):
        raise InputError("An intervention writes a site twice", "Give each site one patch")


def _check_values(
    target: Target, one: Intervention, values: Mapping[Site, np.ndarray] | None, n: int
) -> None:
    """Check that there is something to write: values by site, None if there is no source run with this attention cut."""
    if values is None:
        raise InputError(
            "Attention is cut in source runs, but there are no source prompts", "Give source prompts"
        )
    for read in (item.read for item in one.patches):
        if read not in values:
            raise InputError(
                f"There is nothing to write for site '{read.label}'", "Give source prompts or values"
            )
        if values[read].shape != (n, width(target, read)):
            raise InputError(
                f"Values of site '{read.label}' have shape {values[read].shape}",
                f"Give {(n, width(target, read))}",
            )


# ----------------------------------------------------------------------------------------------------------------- running


def _batches(inputs: Inputs, batch_tokens: int) -> Iterator[np.ndarray]:
    """Rows of prompts that are run together: of one length."""
    for rows in groups(inputs.lengths[:, None]):
        size = max(1, batch_tokens // max(1, int(inputs.lengths[rows[0]])))
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _proven(target: Target, *some: Inputs) -> tuple[str, ...]:
    """Faster ways of running the model that are equal on all these prompts; its attention is one that is."""
    return proven(target, max(int(inputs.lengths.max(initial=0)) for inputs in some))


def _ready(target: Target, ways: Sequence[str]) -> AbstractContextManager[object]:
    """Prepare the model for what of these ways is of use here."""
    return prepared(target, [way for way in ways if way == LINEAR])


def _tokens(target: Target, inputs: Inputs, rows: np.ndarray) -> Tensor:
    ids = np.stack([np.asarray(inputs.token_ids[row], np.int64) for row in rows])
    target.check_tokens(ids, rows)
    return torch.from_numpy(ids).to(target.model.device)


def _leaves_the_beginning(one: Intervention) -> bool:
    """Whether the last token alone is read and written, so that all others are in the target run what they are without."""
    places = {site.position for item in one.patches for site in (item.read, item.to)}
    return not one.cut_target and places <= {"last"}


def _begins(ways: Sequence[str], read_at: str, interventions: Sequence[Intervention]) -> bool:
    """Whether the tokens before the last one run once for all."""
    return PREFIXES in ways and read_at == "last" and all(map(_leaves_the_beginning, interventions))


def _beginning(target: Target, inputs: Inputs, rows: np.ndarray) -> DynamicCache | None:
    """Keys and values of all tokens but the last of some prompts of one length; None if there is but one."""
    ids = _tokens(target, inputs, rows)[:, :-1]
    if not ids.shape[1]:
        return None
    cache = DynamicCache()
    target.body(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def _crop(cache: DynamicCache | None, length: int) -> None:
    """Leave so many positions in each layer of a cache."""
    for layer in cache.layers if cache else ():
        layer.crop(min(0, length - layer.get_seq_length()))


class _Begun(NamedTuple):
    """What interventions at the last token leave as it is.

    Attributes:
        cache: keys and values of all tokens before it; None if there are none.
        entering: what enters each block at it in the plain run, (B, 1, d).
    """

    cache: DynamicCache | None
    entering: list[Tensor]


def _begin(target: Target, targets: Inputs, rows: np.ndarray) -> _Begun:
    cache = _beginning(target, targets, rows)
    entering: list[Tensor] = []
    with ExitStack() as stack:
        for layer in range(target.n_layers):
            see = entering.append  # a list's append returns None, so that nothing is replaced
            stack.enter_context(hooked(target, layer, target.arch.components["resid_pre"], see))
        run_body(target, _tokens(target, targets, rows)[:, -1:], cache)
    _crop(cache, int(targets.lengths[rows[0]]) - 1)
    return _Begun(cache, entering)


def _run(
    target: Target,
    one: Intervention,
    found: Mapping[Site, np.ndarray],
    targets: Inputs,
    rows: np.ndarray,
    read: np.ndarray,
    begun: _Begun | None,
) -> Tensor:
    """Logits (len(rows), V) of one target pass after positions `read` (len(rows),), with values `found` (N, width) written in.

    What `begun` holds is not run again, and its cache holds the same afterwards.
    """
    cache = begun.cache if begun else None
    skipped = cache.get_seq_length() if cache else 0
    ids = _tokens(target, targets, rows)[:, skipped:]
    positions, inverse = np.unique(read - skipped, return_inverse=True)
    with ExitStack() as stack:
        stack.enter_context(_ablated(target, targets, rows, one.cut_target, skipped))
        if begun and one.patches:
            first = min(item.to.layer for item in one.patches)
            stack.enter_context(entered(target, first, begun.entering[first]))
        for item in one.patches:
            where = targets.resolve(item.to.position)[rows] - skipped
            stack.enter_context(_written(target, item.to, where, torch.from_numpy(found[item.read][rows])))
        keep = torch.from_numpy(positions).to(ids.device)
        logits = target.model(
            input_ids=ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=keep
        ).logits
    _crop(cache, skipped)
    return logits[torch.arange(len(ids)), torch.from_numpy(inverse).to(logits.device)]


def _record(
    target: Target,
    inputs: Inputs,
    wanted: Mapping[tuple[Cut, ...], Collection[Site]],
    batch_tokens: int,
    ways: Sequence[str],
    begins: bool,
    progress: Callable[[], None] | None = None,
) -> dict[tuple[Cut, ...], dict[Site, np.ndarray]]:
    """`record` with several sets of cuts, in the very passes in which `patch` runs its targets.

    If `begins`, the tokens before the last one run once, and of those the ones before all cuts are not run again.
    """
    n = len(inputs.token_ids)
    out = {
        cuts: {site: np.empty((n, width(target, site)), np.float32) for site in sorted(sites)}
        for cuts, sites in wanted.items()
    }
    # Where each prompt's cuts begin; at the last token if there are none.
    first = {
        cuts: np.min([inputs.lengths - 1, *(inputs.resolve(cut.query) for cut in cuts)], axis=0)
        for cuts in out
    }
    with torch.inference_mode(), _ready(target, ways):
        for rows in _batches(inputs, batch_tokens) if any(out.values()) else ():
            cache = _beginning(target, inputs, rows) if begins else None
            # What the cache loses for one set of cuts is not asked for by the next.
            for cuts in sorted(out, key=lambda cuts: -int(first[cuts][rows].min())):
                _crop(cache, int(first[cuts][rows].min()))
                for site, value in _recorded(target, inputs, rows, list(out[cuts]), cuts, cache).items():
                    out[cuts][site][rows] = value.float().cpu().numpy()
                if progress:
                    progress()
    return out


def _recorded(
    target: Target,
    inputs: Inputs,
    rows: np.ndarray,
    sites: Sequence[Site],
    cuts: Sequence[Cut],
    cache: DynamicCache | None,
) -> dict[Site, Tensor]:
    """Values (len(rows), width) of sites in one run of some prompts of one length behind what the cache holds, in the model's own
    dtype."""
    if not sites:
        return {}
    skipped = cache.get_seq_length() if cache else 0
    ids = _tokens(target, inputs, rows)[:, skipped:]
    out: dict[Site, Tensor] = {}

    def stop(*_: Any) -> None:
        raise Done

    with ExitStack() as stack:
        stack.enter_context(_ablated(target, inputs, rows, cuts, skipped))
        for site in sites:
            where = torch.from_numpy(inputs.resolve(site.position)[rows] - skipped)

            def see(tensor: Tensor, site: Site = site, where: Tensor = where) -> None:
                picked = tensor[torch.arange(len(tensor)), where.to(tensor.device)]
                out[site] = picked[:, _slice(target, site)].clone()

            stack.enter_context(hooked(target, site.layer, _component(target, site), see))
        handle = target.layers[max(site.layer for site in sites)].register_forward_hook(stop)
        stack.callback(handle.remove)
        run_body(target, ids, cache)
    return out


def _component(target: Target, site: Site) -> Component:
    return target.arch.components["z" if site.kind in HEAD_KINDS else site.kind]


def _slice(target: Target, site: Site) -> slice:
    """Columns of a component that belong to a site: all, or a head's."""
    if site.head is None:
        return slice(None)
    return slice(site.head * target.head_dim, (site.head + 1) * target.head_dim)


@contextmanager
def _written(target: Target, site: Site, where: np.ndarray, value: Tensor) -> Iterator[None]:
    """Replace a site's activation at positions (B,) by values (B, width) for the length of a block."""

    def write(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        at = torch.arange(len(tensor), device=tensor.device), torch.from_numpy(where).to(tensor.device)
        tensor[(*at, _slice(target, site))] = value.to(tensor)
        return tensor

    with hooked(target, site.layer, _component(target, site), write):
        yield


@contextmanager
def _ablated(
    target: Target, inputs: Inputs, rows: np.ndarray, cuts: Sequence[Cut], skipped: int
) -> Iterator[None]:
    """Take attention edges out of a run of prompts `rows`, of one length, behind some tokens, for the length of a block."""
    removed: dict[int, Tensor] = {}
    length = int(inputs.lengths[rows[0]])
    for cut in cuts:
        query, key = inputs.resolve(cut.query)[rows], inputs.resolve(cut.key)[rows]
        for layer in range(target.n_layers) if cut.layers is None else cut.layers:
            if layer not in removed:
                removed[layer] = torch.zeros(len(rows), 1, length - skipped, length, dtype=torch.bool)
            removed[layer][np.arange(len(rows)), 0, query - skipped, key] = True
    with without_attention(target, removed):
        yield
