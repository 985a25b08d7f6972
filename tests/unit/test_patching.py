"""Activation patching agrees with what must hold whatever the weights, on every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_capture import VOCABULARY, make_target

from inversescope.activations.capture import capture
from inversescope.activations.patching import Cut, Inputs, Intervention, Patch, patch, record, record_sources
from inversescope.errors import InputError
from inversescope.sites import Site, expand_sites
from inversescope.targets.architectures import ARCHITECTURES
from inversescope.targets.models import Target

LENGTH = 9
PLAIN = Intervention()
PATCHABLE = ["L*H*.z", "L*.resid_pre", "L*.attn_out", "L*.mlp_post", "L*.mlp_out", "L*.resid_post"]


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def target(request: pytest.FixtureRequest) -> Target:
    return make_target(request.param)


def prompts(n: int = 11, seed: int = 0, length: int | None = None) -> Inputs:
    """Prompts of several lengths, or of one, with a named position of each."""
    rng = np.random.default_rng(seed)
    lengths = np.full(n, length) if length else rng.integers(5, LENGTH + 1, n)
    ids = [rng.integers(0, VOCABULARY, size) for size in lengths]
    return Inputs(ids, {"word": lengths - 3, "next": lengths - 2})


def all_tokens(n: int) -> np.ndarray:
    return np.tile(np.arange(VOCABULARY), (n, 1))


def logits_of(target: Target, inputs: Inputs) -> np.ndarray:
    """Hugging Face's own predictions, one prompt at a time."""
    with torch.no_grad():
        rows = [target.model(torch.from_numpy(ids)[None].long()).logits[0, -1] for ids in inputs.token_ids]
    return torch.stack(rows).numpy()


def close(left: np.ndarray, right: np.ndarray, tolerance: float = 3e-5) -> None:
    assert left.shape == right.shape
    assert np.abs(left - right).max() <= tolerance * max(1.0, np.abs(right).max())


def each(patterns: list[str], suffix: str = "") -> list[Intervention]:
    return [Intervention((Patch(site),)) for site in expand_sites([p + suffix for p in patterns], 3, 4)]


def test_patching_a_run_with_itself_changes_no_bit(target: Target) -> None:
    inputs = prompts()
    # Every kind of site at three positions, and several sites together.
    interventions = [PLAIN]
    for suffix in ("", "@word", "@0"):
        interventions += each(PATCHABLE, suffix)
    joint = tuple(Patch(site) for site in expand_sites(["L*H1.z", "L*.mlp_out@word"], 3, 4))
    interventions.append(Intervention(joint))
    got = patch(target, inputs, inputs, interventions, all_tokens(len(inputs.token_ids)))
    close(got.logits[0], logits_of(target, inputs))
    for k in range(1, len(interventions)):
        np.testing.assert_array_equal(got.logits[k], got.logits[0])
    np.testing.assert_array_equal(got.top, got.logits.argmax(-1))


def test_where_only_the_last_token_changes_the_others_run_once(target: Target) -> None:
    sources, targets = prompts(seed=1), prompts(seed=2)
    # A cut that cuts nothing makes the whole prompt run under each intervention.
    whole = Intervention(cut_target=(Cut("last", query="word"),))
    in_place = [
        PLAIN,
        *each(PATCHABLE),
        Intervention((Patch(Site(2, "mlp_out")), Patch(Site(1, "attn_out")))),
    ]
    interventions = [*in_place, Intervention((Patch(Site(0, "resid_post"), Site(2, "resid_post")),))]
    # Attention that is cut in the source runs, from several places on.
    for query in ("word", "next", "last"):
        cut = (Cut("word", query=query), Cut("next", layers=(1,)))
        interventions.append(Intervention((Patch(Site(1, "resid_post")),), cut_source=cut))
    long = patch(target, sources, targets, [whole, *interventions], all_tokens(11)).logits[1:]
    close(patch(target, sources, targets, interventions, all_tokens(11)).logits, long, 1e-5)
    alone = patch(target, targets, targets, in_place, all_tokens(11)).logits
    for k in range(1, len(in_place)):
        np.testing.assert_array_equal(alone[k], alone[0])
    close(alone[0], logits_of(target, targets))
    single = prompts(seed=3, length=1)
    (one,) = patch(target, single, Inputs(single.token_ids), [PLAIN], all_tokens(11)).logits
    close(one, logits_of(target, single))


def test_a_pass_begins_at_the_first_block_that_is_written(target: Target) -> None:
    inputs, ran = prompts(length=6), [0, 0, 0]
    interventions = [
        PLAIN,
        *each(["L*.resid_post"]),
        Intervention((Patch(Site(0, "z", 1), Site(2, "z", 1)),)),
    ]

    def count(layer: int) -> None:
        ran[layer] += 1

    asked = [
        block.get_submodule(target.arch.attention).register_forward_pre_hook(
            lambda *_, layer=layer: count(layer)
        )
        for layer, block in enumerate(target.layers)
    ]
    try:
        patch(target, inputs, inputs, interventions)
    finally:
        for handle in asked:
            handle.remove()
    # Two runs of sources and targets before the last token, one of each at it, the plain run, then those that write.
    assert ran == [5 + 1, 5 + 2, 5 + 4]
    assert "forward" not in vars(target.layers[0])


def test_last_residual_carries_the_whole_prediction(target: Target) -> None:
    sources, targets = prompts(seed=1), prompts(seed=2)
    site = Site(2, "resid_post")
    got = patch(target, sources, targets, [Intervention((Patch(site),)), PLAIN], all_tokens(11))
    close(got.logits[0], logits_of(target, sources))
    close(got.logits[1], logits_of(target, targets))
    # Half of the network's input is enough if it is written everywhere.
    sources, targets = prompts(seed=1, length=6), prompts(seed=2, length=6)
    everywhere = tuple(Patch(Site(0, "resid_pre", position=str(at))) for at in range(6))
    got = patch(target, sources, targets, [Intervention(everywhere)], all_tokens(11))
    close(got.logits[0], logits_of(target, sources))
    half = patch(target, sources, targets, [Intervention(everywhere[:3])], all_tokens(11)).logits[0]
    mixed = [np.r_[a[:3], b[3:]] for a, b in zip(sources.token_ids, targets.token_ids, strict=True)]
    close(half, logits_of(target, Inputs(mixed)))


def test_all_heads_together_are_the_attention_output(target: Target) -> None:
    sources, targets = prompts(seed=1), prompts(seed=2)
    for layer in range(3):
        heads = tuple(Patch(site) for site in expand_sites([f"L{layer}H*.z"], 3, 4))
        both = [Intervention(heads), Intervention((Patch(Site(layer, "attn_out")),)), PLAIN]
        got = patch(target, sources, targets, both, all_tokens(11)).logits
        close(got[0], got[1])
        assert np.abs(got[0] - got[2]).max() > 1e-3
    result = Intervention((Patch(Site(1, "result", 2)),))
    z = Intervention((Patch(Site(1, "z", 2)),))
    got = patch(target, sources, targets, [result, z], all_tokens(11)).logits
    np.testing.assert_array_equal(got[0], got[1])  # a head's result follows from its z


def test_recorded_values_are_captures_and_can_be_written_later(target: Target) -> None:
    sources, targets = prompts(seed=1), prompts(seed=2)
    sites = expand_sites(["L*H*.z", "L*.attn_out", "L*.resid_post", "L*.mlp_post"], 3, 4)
    values = record(target, sources, sites)
    expected = capture(target, sources.token_ids, sites)
    for site in sites:
        close(values[site], expected[site.label])
    interventions = [Intervention((Patch(site),)) for site in sites]
    live = patch(target, sources, targets, interventions, all_tokens(11)).logits
    close(patch(target, values, targets, interventions, all_tokens(11)).logits, live)
    zeros = {sites[0]: np.zeros_like(values[sites[0]])}
    ablated = patch(target, zeros, targets, interventions[:1], all_tokens(11)).logits
    assert np.abs(ablated - live[:1]).max() > 1e-3


def test_sources_that_are_recorded_once_serve_several_calls_to_the_bit(target: Target) -> None:
    sources, targets = prompts(seed=1), prompts(seed=2)
    cut = (Cut("word"),)
    first = [
        PLAIN,
        *each(["L*.resid_post", "L*.attn_out"]),
        *(Intervention(one.patches, cut) for one in each(["L*.resid_post"])),
    ]
    later = [
        Intervention((Patch(Site(layer, "resid_post"), Site(1, "resid_post")),), cut) for layer in range(3)
    ]
    recorded = record_sources(target, sources, targets, first)
    for some in (first, later):
        given = patch(target, recorded, targets, some, all_tokens(11)).logits
        np.testing.assert_array_equal(given, patch(target, sources, targets, some, all_tokens(11)).logits)


def test_company_and_batch_size_change_nothing_beyond_rounding(target: Target) -> None:
    sources, targets = prompts(seed=1), prompts(seed=2)
    interventions = [
        PLAIN,
        *each(["L*H1", "L*.resid_post"]),
        Intervention((Patch(Site(1, "attn_out")),), (Cut("word"),)),
    ]
    together = patch(target, sources, targets, interventions, all_tokens(11)).logits
    for k, one in enumerate(interventions):
        close(patch(target, sources, targets, [one], all_tokens(11)).logits[0], together[k])
    close(patch(target, sources, targets, interventions, all_tokens(11), batch_tokens=1).logits, together)


def test_patching_across_layers_and_positions(target: Target) -> None:
    sources, targets = prompts(seed=1), prompts(seed=2)
    # What is written behind the last block is what the unembedding reads, wherever it came from.
    item = Patch(Site(0, "resid_pre", position="0"), Site(2, "resid_post"))
    got = patch(target, sources, targets, [Intervention((item,))], all_tokens(11)).logits[0]
    first = record(target, sources, [item.read])[item.read]
    same = patch(target, {item.to: first}, targets, [Intervention((Patch(item.to),))], all_tokens(11)).logits[
        0
    ]
    close(got, same)


def test_ablated_attention_agrees_with_a_mask_of_hugging_face(target: Target) -> None:
    targets = prompts(seed=2, length=LENGTH)
    if target.architecture != "gemma2":  # which makes one mask a kind of layer
        removed = torch.ones(LENGTH, LENGTH).tril().bool()
        removed[-1, LENGTH - 3] = False
        mask = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~removed, torch.finfo(torch.float32).min)
        with torch.no_grad():
            ids = torch.from_numpy(np.stack(targets.token_ids)).long()
            expected = (
                target.model(ids, attention_mask=mask.expand(11, 1, LENGTH, LENGTH)).logits[:, -1].numpy()
            )
        got = patch(target, None, targets, [Intervention(cut_target=(Cut("word"),))], all_tokens(11))
        close(got.logits[0], expected)
    # Nothing but the last token can attend to the one before it: with that cut, it has no effect at all.
    other = Inputs([np.r_[ids[:-2], (ids[-2] + 1) % VOCABULARY, ids[-1]] for ids in targets.token_ids])
    before = str(LENGTH - 2)
    for layers, blind in ((None, True), ((0, 1), False)):
        cut = Intervention(cut_target=(Cut(before, layers=layers),))
        one, two = (patch(target, None, x, [cut], all_tokens(11)).logits[0] for x in (targets, other))
        assert np.array_equal(one, two) == blind
    # The same in the source run.
    site = Site(2, "resid_post")
    runs = [Intervention((Patch(site),), cut_source=(Cut(before),)), Intervention((Patch(site),))]
    one, two = (patch(target, x, prompts(seed=3), runs, all_tokens(11)).logits for x in (targets, other))
    np.testing.assert_array_equal(one[0], two[0])
    assert np.abs(one[1] - two[1]).max() > 1e-3


def test_prediction_at_an_earlier_position(target: Target) -> None:
    targets = prompts(seed=2)
    got = patch(target, None, targets, [PLAIN], all_tokens(11), read_at="word").logits[0]
    cut_off = Inputs([ids[:-2] for ids in targets.token_ids])
    close(got, logits_of(target, cut_off))


def test_bad_input_is_named() -> None:
    target, inputs = make_target("gpt2"), prompts()
    one = Intervention((Patch(Site(1, "attn_out")),))

    def fails(message: str, *args, **options) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(InputError, match=message):
            patch(target, *args, **options)

    fails("layer 3", inputs, inputs, [Intervention((Patch(Site(3, "attn_out")),))])
    fails("head 4", inputs, inputs, [Intervention((Patch(Site(1, "z", 4)),))])
    fails("two parts", inputs, inputs, [Intervention((Patch(Site(1, "resid_mid")),))])
    fails("8 numbers", inputs, inputs, [Intervention((Patch(Site(1, "z", 0), Site(1, "attn_out")),))])
    fails("nothing to write", None, inputs, [one])
    fails("nothing to write", record_sources(target, inputs, inputs, [PLAIN]), inputs, [one])
    fails("shape", {Site(1, "attn_out"): np.zeros((2, 32))}, inputs, [one])
    fails(
        "twice",
        inputs,
        inputs,
        [Intervention((Patch(Site(1, "attn_out")), Patch(Site(0, "attn_out"), Site(1, "attn_out"))))],
    )
    fails("no source prompts", None, inputs, [Intervention(cut_source=(Cut("0"),))])
    fails("layers", None, inputs, [Intervention(cut_target=(Cut("0", layers=(3,)),))])
    fails("Unknown position 'verb'", None, inputs, [PLAIN], read_at="verb")
    fails("9 of 11 prompts have no position '8'", None, inputs, [PLAIN], read_at="8")
    fails("5 source prompts", prompts(5), inputs, [one])
    fails("Tokens to read", None, inputs, [PLAIN], tokens=np.full((11, 1), VOCABULARY))
    fails("vocabulary", None, Inputs([np.array([VOCABULARY])]), [PLAIN])
    fails("1 to 32", None, Inputs([np.zeros(40, int)]), [PLAIN])
    fails(
        "given for 2 prompts", None, Inputs(inputs.token_ids, {"word": np.zeros(2)}), [PLAIN], read_at="word"
    )
