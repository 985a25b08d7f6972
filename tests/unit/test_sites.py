"""Names, labels, order and patterns of sites."""

from __future__ import annotations

import re

import pytest

from inversescope.errors import InputError
from inversescope.sites import KINDS, LAYER_KINDS, SITE_PATTERN, Site, expand_sites

PAIRS = [
    ("blocks.9.attn.hook_result.6", "L9H6", Site(9, "result", 6)),
    ("blocks.9.attn.hook_z.6", "L9H6.z", Site(9, "z", 6)),
    ("blocks.12.hook_resid_post", "L12.resid_post", Site(12, "resid_post")),
    ("blocks.12.hook_resid_pre", "L12.resid_pre", Site(12, "resid_pre")),
    ("blocks.0.hook_resid_mid", "L0.resid_mid", Site(0, "resid_mid")),
    ("blocks.13.hook_attn_out", "L13.attn_out", Site(13, "attn_out")),
    ("blocks.13.hook_mlp_out", "L13.mlp_out", Site(13, "mlp_out")),
    ("blocks.0.mlp.hook_post", "L0.mlp_post", Site(0, "mlp_post")),
]


@pytest.mark.parametrize(("name", "label", "site"), PAIRS)
@pytest.mark.parametrize("position", ["last", "4", "S2", "any"])
def test_names_and_labels_are_inverse_to_parse(name: str, label: str, site: Site, position: str) -> None:
    suffix = "" if position == "last" else f"@{position}"
    expected = Site(site.layer, site.kind, site.head, position)
    assert Site.parse(name + suffix) == Site.parse(label + suffix) == expected
    assert str(expected) == name + suffix and expected.label == label + suffix
    assert re.fullmatch(SITE_PATTERN, expected.label)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "L9",
        "L9H",
        "H6",
        "L9H6.q",
        "L-1H0",
        "L9.resid",
        "L*H0",
        "blocks.9.attn.hook_result",
        "L9H6@",
        "L9H6@../x",
        "9.6",
    ]
    + ["blocks.0.hook_mlp_post", "L9H6 ", "L٣H1"],
)
def test_unknown_sites_are_refused_and_never_match_the_wildcard(text: str) -> None:
    with pytest.raises(InputError, match="Unknown site"):
        Site.parse(text)
    if text.isascii():
        assert not re.fullmatch(SITE_PATTERN, text)


def test_kind_and_head_must_go_together() -> None:
    for kind, head in (("resid_post", 1), ("result", None), ("hook", None)):
        with pytest.raises(InputError):
            Site(0, kind, head)


def test_heads_come_first_then_layers_by_order_of_computation() -> None:
    patterns = [
        "L*.resid_post",
        "L*.attn_out",
        "L1H*",
        "L0H10.z",
        "L0H10",
        "L0H2",
        "L1.resid_pre@3",
        "L1.resid_pre",
    ]
    assert [site.label for site in expand_sites(patterns, 2, 11)] == (
        ["L0H2", "L0H10", "L0H10.z"]
        + [f"L1H{head}" for head in range(11)]
        + ["L0.attn_out", "L0.resid_post", "L1.resid_pre@3", "L1.resid_pre", "L1.attn_out", "L1.resid_post"]
    )


def test_patterns_expand_over_layers_and_heads_once() -> None:
    assert len(expand_sites(["L*H*", "L0H*", "blocks.*.attn.hook_result.*"], 12, 12)) == 144
    assert [site.label for site in expand_sites(["L*H3@2"], 2, 4)] == ["L0H3@2", "L1H3@2"]
    everything = expand_sites(["L*H*", "L*H*.z", *(f"L*.{kind}" for kind in LAYER_KINDS)], 2, 2)
    assert len(everything) == 2 * (2 * 2 + len(LAYER_KINDS)) and {site.kind for site in everything} == set(
        KINDS
    )


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("L4H0", "Site 'L4H0' has layer 4, but the model's layers are 0 to 3"),
        ("L0H4", "Site 'L0H4' has head 4, but the model's heads are 0 to 3"),
        ("L*H7", "has head 7"),
        ("L9.resid_post", "has layer 9"),
        ("attention", "Unknown site 'attention'"),
    ],
)
def test_sites_out_of_range_are_refused_with_the_range(pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        expand_sites(["L0H0", pattern], 4, 4)
