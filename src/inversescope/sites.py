"""Where an activation is read: the grammar, the order and the labels of sites."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering

from inversescope.errors import InputError

#: Kinds that belong to one attention head, then kinds that belong to a layer, each in order of computation.
HEAD_KINDS = ("result", "z")
LAYER_KINDS = ("resid_pre", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post")
KINDS = HEAD_KINDS + LAYER_KINDS

#: Regular expression of a site's label, for wildcard constraints: nothing that it matches can leave a folder.
SITE_PATTERN = rf"L\d+(?:H\d+(?:\.z)?|\.(?:{'|'.join(LAYER_KINDS)}))(?:@\w+)?"

_POSITION = r"(?:@(?P<position>\w+))?"
_NUMBER = r"(?:\d+|\*)"
_LABEL = re.compile(
    rf"L(?P<layer>{_NUMBER})(?:H(?P<head>{_NUMBER})(?P<z>\.z)?|\.(?P<kind>{'|'.join(LAYER_KINDS)})){_POSITION}",
    re.ASCII,
)
_NAME = re.compile(
    rf"blocks\.(?P<layer>{_NUMBER})\.(?:attn\.hook_(?P<head_kind>result|z)\.(?P<head>{_NUMBER})"
    rf"|mlp\.hook_(?P<mlp>post)|hook_(?P<kind>resid_pre|attn_out|resid_mid|mlp_out|resid_post)){_POSITION}",
    re.ASCII,
)


@total_ordering
@dataclass(frozen=True)
class Site:
    """One place in a transformer: a layer, a kind of activation, a head where there is one, and a token
    position.

    Sites sort as tables and figures list them: heads first, by layer and head, then layers, each by order
    of computation.

    Args:
        layer: index of the block, from 0.
        kind: one of `KINDS`. `result` is z_h W_O[h], a head's contribution to the residual stream without
            the bias.
        head: index of the head for `result` and `z`, otherwise None.
        position: `last`, or a token index written in digits; other names are resolved by the task that
            defines them.

    Raises:
        InputError: if the kind is unknown, or head and kind do not go together.
    """

    layer: int
    kind: str
    head: int | None = None
    position: str = "last"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"Unknown kind of site '{self.kind}'", f"Use one of {', '.join(KINDS)}")
        if (self.kind in HEAD_KINDS) != (self.head is not None):
            need = "needs a head" if self.kind in HEAD_KINDS else "has no head"
            raise InputError(f"A site of kind '{self.kind}' {need}", "Write L9H6 or L9.attn_out")

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site from its TransformerLens name or its label.

        Args:
            text: e.g. `blocks.9.attn.hook_result.6`, `L9H6`, `L9H6.z`, `L12.resid_post`, each with an
                optional `@position`.

        Raises:
            InputError: if the text is neither.
        """
        layer, kind, head, position = _fields(text)
        if "*" in (layer, head):
            raise _unknown(text)
        return cls(int(layer), kind, None if head is None else int(head), position)

    @property
    def label(self) -> str:
        """The short name that paths, wildcards, tables and figures use."""
        if self.head is None:
            stem = f"L{self.layer}.{self.kind}"
        else:
            stem = f"L{self.layer}H{self.head}" + (".z" if self.kind == "z" else "")
        return stem + self._suffix

    def __str__(self) -> str:
        if self.head is not None:
            stem = f"blocks.{self.layer}.attn.hook_{self.kind}.{self.head}"
        elif self.kind == "mlp_post":
            stem = f"blocks.{self.layer}.mlp.hook_post"
        else:
            stem = f"blocks.{self.layer}.hook_{self.kind}"
        return stem + self._suffix

    def __lt__(self, other: Site) -> bool:
        return self._key < other._key

    @property
    def _suffix(self) -> str:
        return "" if self.position == "last" else f"@{self.position}"

    @property
    def _key(self) -> tuple[bool, int, int, int, str]:
        return self.head is None, self.layer, self.head or 0, KINDS.index(self.kind), self.position


def expand_sites(patterns: list[str], n_layers: int, n_heads: int) -> list[Site]:
    """List the sites that patterns such as `L*H*`, `L2H*` and `L*.resid_post` name, sorted and each once.

    Args:
        patterns: labels or TransformerLens names; a layer or head may be `*`.
        n_layers: number of blocks of the target model.
        n_heads: number of query heads of a block.

    Raises:
        InputError: if a pattern is no site, or a layer or head is out of the model's range.
    """
    sites: set[Site] = set()
    for pattern in patterns:
        layer, kind, head, position = _fields(pattern)
        layers = _range(pattern, "layer", layer, n_layers)
        heads = [None] if head is None else _range(pattern, "head", head, n_heads)
        sites.update(Site(one, kind, which, position) for one in layers for which in heads)
    return sorted(sites)


def _fields(text: str) -> tuple[str, str, str | None, str]:
    """Layer, kind, head and position of a site or a pattern, the numbers as text."""
    if match := _LABEL.fullmatch(text):
        kind = match["kind"] or ("z" if match["z"] else "result")
    elif match := _NAME.fullmatch(text):
        kind = match["kind"] or match["head_kind"] or "mlp_post"
    else:
        raise _unknown(text)
    return match["layer"], kind, match["head"], match["position"] or "last"


def _unknown(text: str) -> InputError:
    return InputError(
        f"Unknown site '{text}'",
        f"Write a head as L9H6 (or L9H6.z), a layer as L12.KIND with KIND one of {', '.join(LAYER_KINDS)}, "
        "or a TransformerLens name such as blocks.9.attn.hook_result.6",
    )


def _range(pattern: str, what: str, number: str, count: int) -> list[int]:
    """The indices that a number or `*` stands for."""
    if number == "*":
        return list(range(count))
    check_range(pattern, what, int(number), count, "the model")
    return [int(number)]


def check_range(site: str, what: str, number: int, count: int, model: str) -> None:
    """Raise `InputError` if a site's layer or head is not one of the model's `count`."""
    if number >= count:
        raise InputError(
            f"Site '{site}' has {what} {number}, but {model}'s {what}s are 0 to {count - 1}",
            f"Choose a {what} in that range",
        )
