"""The page's data as bytes: a description in JSON, then arrays, their bytes sorted by significance, all of it compressed.

`document.data.js` reads this. Distances are stored without loss, log q to a hundredth of a nat.
"""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from inversescope.reader.browser.data import BrowserData, Draws
from inversescope.sites import KINDS, Site

#: Bytes of a page at most.
LIMIT = 8_000_000
#: Log q is stored in steps of so many nats; `NO_Q` = none.
STEP, NO_Q = 0.01, -(2**31)
FOUR_DIGITS = 0.0001  # steps in which exact rates of single targets are stored; -1: none
_RATES = ("fcr", "ci_low", "ci_high", "ess")
_REFUSAL = ("refusal_rate", "ci_low", "ci_high", "parse_refusal", "distance_refusal", "entropy_gap")
_EFFECTS = ("effect", "effect_low", "effect_high", "share")
_TYPES = {"<f4": "f4", "<f8": "f8", "<u4": "u4", "<i4": "i4", "<u2": "u2", "<i2": "i2", "|u1": "u1"}


class Pack:
    """Arrays one after the other, and where each is."""

    def __init__(self) -> None:
        self.described: dict[str, Any] = {}
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, name: str, values: Any, dtype: str) -> None:
        """Add an array, flat: all first bytes of its numbers, then all second ones; what is alike compresses."""
        flat = np.ascontiguousarray(values, dtype=dtype).ravel()
        self.described[name] = {"type": _TYPES[flat.dtype.str], "length": len(flat), "at": self.size}
        self.parts.append(flat.view(np.uint8).reshape(len(flat), flat.itemsize).T.tobytes())
        self.size += flat.nbytes

    def bytes(self, about: dict[str, Any]) -> bytes:
        """Length of the description (uint32), description, arrays."""
        text = json.dumps(about | {"arrays": self.described}, allow_nan=False, separators=(",", ":")).encode()
        return len(text).to_bytes(4, "little") + text + b"".join(self.parts)


@dataclass(frozen=True)
class Samples:
    """All samples of all sources, one source after the other, in each by site and target.

    Attributes:
        rank: (n,) place of each among those of its source, site and target, from 0.
        total: (sources, sites, targets) how many there are.
        reach: (sources, sites, targets) distance up to which all cached prompts near a target are among these.
    """

    cell: np.ndarray
    text: np.ndarray
    distance: np.ndarray
    log_q: np.ndarray
    rank: np.ndarray
    total: np.ndarray
    reach: np.ndarray


def encode(data: BrowserData, room: int = LIMIT) -> str:
    """The data in base64, with as many samples of each source, site and target as there is room for.

    Args:
        room: characters.
    """
    samples = gather(data)
    most = int(samples.total.max(initial=0))
    keep = most
    while True:
        text = base64.b64encode(gzip.compress(pack(data, samples, keep, most), 9, mtime=0)).decode("ascii")
        if len(text) <= room or keep <= 1:
            return text
        # What is left out at the least; samples are most of it.
        keep = max(1, min(keep - 1, int(keep * room / len(text) * 0.99)))


def gather(data: BrowserData) -> Samples:
    """Samples of all sources as one table."""
    names = {source.name: number for number, source in enumerate(data.sources)}
    places = {site: number for number, site in enumerate(data.sites)}
    shape = len(names), len(places), len(data.targets)
    reach = np.full(shape, np.inf)
    blocks: dict[tuple[int, int], Draws] = {}
    for draws in data.draws:
        at = names[draws.source], places[draws.site]
        blocks[at] = draws
        reach[at] = np.inf if draws.reach is None else draws.reach
    columns: list[list[np.ndarray]] = [[np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [], []]
    for (source, site), draws in sorted(blocks.items(), key=lambda entry: entry[0]):
        columns[0].append((source * shape[1] + site) * shape[2] + draws.target.astype(np.int64))
        columns[1].append(draws.text)
        columns[2].append(draws.distance.astype(np.float32))
        q = draws.log_q
        columns[3].append(np.full(len(draws.text), NO_Q) if q is None else np.round(q / STEP))
    cell = np.concatenate(columns[0])
    if (np.diff(cell) < 0).any():
        raise ValueError("samples are not sorted by target")
    total = np.bincount(cell, minlength=int(np.prod(shape)))
    rank = np.arange(len(cell)) - np.repeat(np.cumsum(total) - total, total)
    distance = np.concatenate([np.zeros(0, np.float32), *columns[2]])
    log_q = np.concatenate([np.zeros(0), *columns[3]]).astype(np.int64)
    return Samples(cell, np.concatenate(columns[1]), distance, log_q, rank, total.reshape(shape), reach)


def pack(data: BrowserData, samples: Samples, keep: int, most: int) -> bytes:
    """The data with the first `keep` samples of each source, site and target, of `most` that there are at most."""
    kept = samples.rank < keep
    used = np.unique(np.concatenate([samples.text[kept], data.targets]).astype(np.int64))
    order = sorted(used.tolist(), key=data.texts.texts.__getitem__)  # neighbours in the alphabet compress
    new = np.zeros(len(data.texts.texts), np.int64)
    new[order] = np.arange(len(order))
    out = Pack()
    out.add("text", new[samples.text[kept]], "<u4")
    out.add("distance", samples.distance[kept], "<f4")
    out.add("log_q", samples.log_q[kept], "<i4")
    out.add("stored", np.minimum(samples.total, keep), "<u2")
    out.add("total", samples.total, "<u4")
    out.add("reach", samples.reach, "<f4")
    out.add("target", new[np.asarray(data.targets, np.int64)], "<u4")
    counted = np.ones(len(data.targets), bool) if data.counted is None else data.counted
    out.add("counted", counted, "|u1")
    out.add("label", data.texts.codes[:, order], "<i2")
    out.add("log_prior", data.texts.log_prior[order], "<f8")
    about = {
        "title": data.title,
        "about": list(data.about),
        "kernel": data.kernel,
        "distance": data.distance,
        "unit": data.unit,
        "headline": data.headline,
        "step": STEP,
        "keep": keep,
        "most": most,
        "sites": [_place(label) for label in data.sites],
        "features": [
            {"name": name, "values": values, "chance": data.chance.get(name)}
            for name, values in data.texts.feature_values.items()
        ],
        "sources": [asdict(source) for source in data.sources],
        "texts": [data.texts.texts[number] for number in order],
        **_tables(data, out),
    }
    return out.bytes(about)


def _place(label: str) -> dict[str, Any]:
    """Where a site stands in a map: its row is the layer, its column the head, or the kind; positions stand apart."""
    site = Site.parse(label)
    at = "" if site.position == "last" else f"@{site.position}"
    head = f"H{site.head}" + (".z" if site.kind == "z" else "")
    column = (site.kind if site.head is None else head) + at
    order = [at, site.head is None, site.head or 0, KINDS.index(site.kind)]
    return {"label": label, "layer": site.layer, "column": column, "order": order}


def _tables(data: BrowserData, out: Pack) -> dict[str, Any]:
    """Tables as arrays, a number for each (key, bandwidth, feature, site), NaN where there is no row; and their keys."""
    sites, features = list(data.sites), list(data.texts.feature_values)
    bandwidths = list(dict.fromkeys(data.bandwidths["bandwidth"]))
    rows = _index(data.bandwidths, bandwidth=bandwidths, site=sites)
    for name in ("epsilon", "share"):
        out.add(name, _dense(rows, data.bandwidths[name], (len(bandwidths), len(sites))), "<f8")
    about: dict[str, Any] = {"bandwidths": bandwidths}
    for table, frame, names, values in (
        ("rates", data.rates, ["estimator", "variant", "decoding"], _RATES),
        ("refusal", data.refusal, ["variant", "decoding"], _REFUSAL),
        ("effects", data.effects, [], _EFFECTS),
    ):
        about[table] = keys = []
        if frame.empty:
            continue
        own = pd.MultiIndex.from_frame(frame[names].drop_duplicates()) if names else pd.Index([""])
        keys += [list(key) if names else [] for key in own]
        where: dict[str, Any] = {}
        if names:
            frame = frame.assign(key=own.get_indexer(pd.MultiIndex.from_frame(frame[names])))
            where |= {"key": range(len(keys)), "bandwidth": bandwidths}
        where |= ({} if table == "refusal" else {"feature": features}) | {"site": sites}
        rows, shape = _index(frame, **where), tuple(map(len, where.values()))
        for name in values:
            out.add(f"{table}.{name}", _dense(rows, frame[name], shape), "<f4")
    if not data.exact.empty:
        shape = len(sites), len(data.targets)
        rows = _index(data.exact, site=sites, target_id=range(shape[1]))
        exact = np.stack([_dense(rows, data.exact[f"fcr_{name}"], shape) for name in features])
        out.add("exact", np.nan_to_num(np.round(exact / FOUR_DIGITS), nan=-1), "<i2")
    told = data.hypotheses
    about["hypotheses"] = {
        "columns": [str(name) for name in told.columns],
        "rows": [[_cell(value) for value in row] for row in told.itertuples(index=False)],
    }
    return about


def _index(frame: pd.DataFrame, **where: Any) -> np.ndarray:
    """Place of each row of a table in a flat array with an axis for each column; -1 if it has none."""
    place = np.zeros(len(frame), np.int64)
    known = np.ones(len(frame), bool)
    for column, values in where.items():
        at = pd.Index(list(values)).get_indexer(pd.Index(frame[column]))
        known &= at >= 0
        place = place * len(values) + at
    return np.where(known, place, -1)


def _dense(rows: np.ndarray, values: pd.Series, shape: tuple[int, ...]) -> np.ndarray:
    table = np.full(int(np.prod(shape)), np.nan)
    known = rows >= 0
    table[rows[known]] = values.to_numpy(float)[known]
    return table


def _cell(value: Any) -> Any:
    """A cell as JSON has it."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float | np.integer | np.floating):
        return float(value) if np.isfinite(value) else None
    return "" if value is None or value is pd.NA else str(value)
