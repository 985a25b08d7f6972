"""What is drawn, and log q of what was drawn, against step-by-step probabilities written down anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from inversescope.config.tasks import IOIConfig
from inversescope.generator.backbone import BackboneShape
from inversescope.generator.base import ConditionalGenerator, Rows
from inversescope.generator.condition import Condition, Prompts, encode_prompts, make_condition
from inversescope.generator.inversescope import GeneratorShape, InverseScope
from inversescope.generator.inversionview import InversionView, InversionViewShape
from inversescope.generator.pairs import KernelPairs
from inversescope.kernel.distances import distance_of
from inversescope.kernel.neighbours import Cache
from inversescope.sampling.decode import Draws, decode
from inversescope.sampling.log_q import log_prob_rows, log_q, log_q_marginal
from inversescope.sampling.mcmc import prior_ratio, run_chains
from inversescope.sampling.mixing import Mixer, make_mixer
from inversescope.sampling.recompute import Recomputer
from inversescope.sites import Site
from inversescope.streams import stream_uniforms
from inversescope.targets.tokenizers import encode, word_tokenizer
from inversescope.tasks.automata import Grammar
from inversescope.tasks.ioi import IOITask

END, VOCABULARY, LENGTH = 0, 6, 4
TARGETS, DRAWS = 5, 40
WORDS = (1, 2, 4)  # 3 and 5 are no words


def make_model(
    vocabulary: int = VOCABULARY, positions: int = 8, neighbours: bool = False, std: float = 0.4
) -> InverseScope:
    """A generator with random weights whose output depends strongly on the activation."""
    shape = GeneratorShape(
        backbone=BackboneShape(vocabulary, positions, 2, 2, 16, 32),
        sites={"s": 3},
        scales={"s": 1.0},
        n_heads=3,
        d_head=4,
        d_condition=8,
        neighbour_logits=neighbours,
        words=WORDS if neighbours else (),
    )
    model = InverseScope(shape).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)
    if model.neighbour_words is not None:
        nn.init.normal_(model.neighbour_words.weight, 1.0, 0.5)
        model.neighbour_words.prior.uniform_(0.2, 0.8)
    return model


def activations(rows: int = TARGETS) -> Condition:
    return Condition({"s": torch.randn(rows, 3)})


def cached_sequences(counts: tuple[int, ...] = (12, 0, 1, 30, 3)) -> list[np.ndarray]:
    """Sequences of each target's neighbours: text, end token and padding."""
    rng = np.random.default_rng(3)
    result = []
    for count in counts:
        rows = np.full((count, LENGTH), END)
        for row in rows:
            length = rng.integers(1, LENGTH)
            row[:length] = rng.integers(1, 4, length)
        result.append(rows)
    return result


Rule = Callable[
    [int, list[int]], np.ndarray
]  # (target, tokens so far) -> probabilities of the next token (V,)


def rule_of(
    model: InverseScope,
    condition: Condition,
    temperature: float = 1.0,
    mixed: list[np.ndarray] | None = None,
    alpha: float = 1.0,
    attended: list[np.ndarray] | None = None,
    grammar: Grammar | None = None,
) -> Rule:
    """The decoding rule, one full forward a token, neighbours counted by hand."""
    vocabulary = model.shape.backbone.vocab_size

    def evidence(sequences: np.ndarray, prefix: list[int]) -> np.ndarray:
        """Attention by shared words, a neighbour and a word at a time."""
        layer = model.neighbour_words
        assert layer is not None
        weight = nn.functional.softplus(layer.weight).numpy()
        score = [sum(weight[WORDS.index(t)] for t in prefix if t in WORDS and t in row) for row in sequences]
        a = np.exp(score) / np.exp(score).sum()
        n = 1 / (a**2).sum() if len(a) else 0.0
        prior, kappa = layer.prior.numpy(), float(layer.log_kappa.exp())
        vote = np.array([sum(a[i] for i, row in enumerate(sequences) if word in row) for word in WORDS])
        return np.log((n * vote + kappa * prior) / ((n + kappa) * prior))

    def shares(sequences: np.ndarray, prefix: list[int]) -> np.ndarray:
        n = np.zeros(vocabulary)
        for row in sequences:
            if row[: len(prefix)].tolist() == prefix:
                n[row[len(prefix)]] += 1
        return n

    @torch.no_grad()
    def rule(target: int, prefix: list[int]) -> np.ndarray:
        x = torch.tensor([[END, *prefix]])
        counts = torch.zeros(1, len(prefix) + 1, vocabulary)
        if attended is not None:
            for t in range(len(prefix) + 1):
                counts[0, t] = torch.from_numpy(shares(attended[target], prefix[:t]))
        said = torch.zeros(1, len(prefix) + 1, len(WORDS))
        if attended is not None:
            for t in range(len(prefix) + 1):
                said[0, t] = torch.from_numpy(evidence(attended[target], prefix[:t]))
        here = model.fold(condition).rows(torch.tensor([target]))
        readout = model.readout(here, Rows(None, counts, said))
        logits = model.backbone(x, model.controller(here), readout)[0, -1].double() / temperature
        if grammar is not None:
            state = grammar.start
            for token in prefix:
                state = int(grammar.step(state, token))
            forbidden = np.setdiff1d(
                np.arange(vocabulary), grammar.tokens[grammar.permitted(np.array([state]))[0]]
            )
            logits[forbidden] = -torch.inf
        p = torch.softmax(logits, -1).numpy()
        if mixed is not None:
            n = shares(mixed[target], prefix)
            p = (n + alpha * p) / (n.sum() + alpha)
        return p

    return rule


def check_log_q(drawn: Draws, rule: Rule) -> None:
    for target, draw in np.ndindex(drawn.log_q.shape):
        total, tokens = 0.0, drawn.tokens[target, draw].tolist()
        for t, token in enumerate(tokens):
            total += np.log(rule(target, tokens[:t])[token])
            if token == END:
                assert set(tokens[t:]) == {END}
                break
        assert drawn.finished[target, draw] == (END in tokens)
        assert drawn.log_q[target, draw] == pytest.approx(total, abs=1e-4)


def uniforms(targets: int = TARGETS, draws: int = DRAWS, length: int = LENGTH, name: str = "x") -> np.ndarray:
    return stream_uniforms(0, name, np.arange(targets), np.arange(draws), length)


# log q


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_log_q_of_plain_decoding(temperature: float) -> None:
    model, condition = make_model(), activations()
    drawn = decode(model, condition, uniforms(draws=10), end=END, temperature=temperature)
    assert 0.0 < drawn.finished.mean() < 1.0  # some sequences run out of room
    check_log_q(drawn, rule_of(model, condition, temperature))


def test_log_q_of_drawn_and_of_given_sequences_is_the_same() -> None:
    model, condition = make_model(), activations()
    drawn = decode(model, condition, uniforms(), end=END)
    owner = np.arange(TARGETS).repeat(DRAWS)
    given = log_q(model, model.fold(condition), owner, drawn.tokens.reshape(-1, LENGTH), end=END)
    np.testing.assert_allclose(drawn.log_q.ravel(), given, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_log_q_of_mixed_decoding(alpha: float) -> None:
    model, condition, cached = make_model(), activations(), cached_sequences()
    mixer = Mixer(cached, VOCABULARY, alpha)
    drawn = decode(model, condition, uniforms(draws=12), end=END, temperature=1.3, mixer=mixer)
    check_log_q(drawn, rule_of(model, condition, 1.3, mixed=cached, alpha=alpha))
    copied = [set(map(tuple, c)) for c in cached]
    share = np.mean([[tuple(row) in copied[i] for row in rows] for i, rows in enumerate(drawn.tokens)], 1)
    assert share[3] > share[1] == 0.0


def test_log_q_with_attended_neighbours() -> None:
    model, condition, cached = make_model(neighbours=True), activations(), cached_sequences()
    drawn = decode(model, condition, uniforms(draws=12), end=END, neighbours=Mixer(cached, VOCABULARY, 1.0))
    check_log_q(drawn, rule_of(model, condition, attended=cached))


def test_log_q_with_both_mixed_and_attended_neighbours() -> None:
    model, condition, cached = make_model(neighbours=True), activations(), cached_sequences()
    others = cached_sequences((3, 4, 0, 0, 20))
    drawn = decode(
        model,
        condition,
        uniforms(draws=8),
        end=END,
        mixer=Mixer(others, VOCABULARY, 2.0),
        neighbours=Mixer(cached, VOCABULARY, 1.0),
    )
    check_log_q(drawn, rule_of(model, condition, mixed=others, alpha=2.0, attended=cached))


@pytest.mark.parametrize("counts", [(0, 0, 0, 0, 0), (0, 0, 5, 0, 0)])
def test_targets_without_any_cached_neighbour(counts: tuple[int, ...]) -> None:
    """Nobody has a neighbour, or one target alone: the others are drawn as without mixing, token for token."""
    cached = cached_sequences(counts)
    for neighbours in (False, True):
        model, condition = make_model(neighbours=neighbours), activations()
        nobody = Mixer(cached_sequences((0,) * 5), VOCABULARY, 1.0)
        attended = Mixer(cached, VOCABULARY, 1.0) if neighbours else None
        drawn = decode(
            model, condition, uniforms(), end=END, mixer=Mixer(cached, VOCABULARY, 5.0), neighbours=attended
        )
        plain = decode(model, condition, uniforms(), end=END, neighbours=nobody if neighbours else None)
        lonely = np.array(counts) == 0
        np.testing.assert_array_equal(drawn.tokens[lonely], plain.tokens[lonely])
        np.testing.assert_allclose(drawn.log_q[lonely], plain.log_q[lonely], atol=1e-6)
        if not lonely.all():
            assert not np.array_equal(drawn.tokens, plain.tokens)


# Masks


@pytest.fixture(scope="module")
def masked() -> tuple[IOITask, InverseScope, Condition, Grammar, Draws, int, object]:
    task = IOITask(IOIConfig(n_names=5, n_templates=4, n_places=2, n_items=2, held_out_pairs=0.2))
    tokenizer = word_tokenizer(task.words())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_model(len(tokenizer), 24)
        condition = activations()
    end = int(tokenizer.eos_token_id)
    length = max(len(ids) for ids in encode(tokenizer, task.texts(task.enumerate()))) + 1
    grammar = task.grammar(tokenizer)
    u = uniforms(draws=100, length=length)
    drawn = decode(model, condition, u, end=end, grammar=grammar, temperature=1.5)
    return task, model, condition, grammar, drawn, end, tokenizer


def test_masked_decoding_never_leaves_the_prior(masked: tuple) -> None:
    task, model, condition, _, drawn, end, tokenizer = masked
    assert drawn.finished.all()
    texts = [
        tokenizer.decode([t for t in row if t != end])
        for row in drawn.tokens.reshape(-1, drawn.tokens.shape[-1])
    ]
    index = task.parse(texts)
    assert (index >= 0).all() and len(set(index.tolist())) > 50
    length = drawn.tokens.shape[-1]
    free = decode(model, condition, uniforms(draws=10, length=length), end=end)
    assert not free.finished.all()  # an untrained generator does not know the prior by itself


def test_log_q_of_masked_decoding(masked: tuple) -> None:
    _, model, condition, grammar, drawn, end, _ = masked
    assert end == END
    few = Draws(drawn.tokens[:, :3], drawn.finished[:, :3], drawn.log_q[:, :3])
    check_log_q(few, rule_of(model, condition, 1.5, grammar=grammar))


# Frequencies


@pytest.mark.parametrize("way", ["plain", "mixed", "attended"])
def test_frequencies_match_the_probabilities(way: str) -> None:
    draws = 20_000
    model, condition = make_model(neighbours=way == "attended"), activations(2)
    cached = cached_sequences((9, 4))
    mixer = Mixer(cached, VOCABULARY, 4.0)
    rule = rule_of(
        model,
        condition,
        mixed=cached if way == "mixed" else None,
        alpha=4.0,
        attended=cached if way == "attended" else None,
    )
    drawn = decode(
        model,
        condition,
        uniforms(2, draws, 2, way),
        end=END,
        mixer=mixer if way == "mixed" else None,
        neighbours=mixer if way == "attended" else None,
    )
    for target in range(2):
        first = rule(target, [])
        expected = {(END, END): first[END]}
        for a in range(1, VOCABULARY):
            second = rule(target, [a])
            expected |= {(a, b): first[a] * second[b] for b in range(VOCABULARY)}
        assert sum(expected.values()) == pytest.approx(1.0)
        codes = drawn.tokens[target] @ [VOCABULARY, 1]
        observed = np.array([(codes == a * VOCABULARY + b).sum() for a, b in expected])
        assert observed.sum() == draws
        p = np.array(list(expected.values()))
        rare = p * draws < 5
        grouped = np.append(observed[~rare], observed[rare].sum()), np.append(p[~rare], p[rare].sum()) * draws
        keep = grouped[1] > 0
        assert stats.chisquare(grouped[0][keep], grouped[1][keep]).pvalue > 1e-3
        found = np.array(
            [
                drawn.log_q[target][codes == a * VOCABULARY + b].mean() if o else np.log(q)
                for (a, b), q, o in zip(expected, p, observed, strict=True)
            ]
        )
        np.testing.assert_allclose(found, np.log(p), atol=1e-4)


# Streams


def test_streams_do_not_depend_on_company() -> None:
    """Two targets decoded together or apart, in two batches of draws or one: the same tokens."""
    model, condition, cached = make_model(neighbours=True), activations(), cached_sequences()
    targets, draws = np.array([7, 3, 11, 2, 40]), np.arange(DRAWS)
    u = stream_uniforms(5, "site/variant", targets, draws, LENGTH)
    together = decode(
        model,
        condition,
        u,
        end=END,
        mixer=Mixer(cached, VOCABULARY, 2.0),
        neighbours=Mixer(cached, VOCABULARY, 1.0),
    )
    for i, target in enumerate(targets):
        for part in (draws[:13], draws[13:]):
            alone = decode(
                model,
                Condition({"s": condition.z["s"][[i]]}),
                stream_uniforms(5, "site/variant", np.array([target]), part, LENGTH),
                end=END,
                mixer=Mixer([cached[i]], VOCABULARY, 2.0),
                neighbours=Mixer([cached[i]], VOCABULARY, 1.0),
            )
            np.testing.assert_array_equal(alone.tokens[0], together.tokens[i, part])
            np.testing.assert_allclose(alone.log_q[0], together.log_q[i, part], atol=1e-5)


def test_streams_are_uniform_and_their_own() -> None:
    u = stream_uniforms(1, "a", np.arange(30), np.arange(40), 17)
    assert u.shape == (30, 40, 17) and len(np.unique(u)) == u.size
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    for a, b in product(range(2), repeat=2):  # neighbours in every direction are independent
        shifted = u[a:, b:][:29, :39]
        if a or b:
            assert abs(stats.pearsonr(u[:29, :39].ravel(), shifted.ravel()).statistic) < 0.03
    np.testing.assert_array_equal(stream_uniforms(1, "a", np.array([9]), np.array([5, 6]), 17), u[[9], 5:7])
    np.testing.assert_array_equal(stream_uniforms(1, "a", np.array([9]), np.array([5]), 3)[0, 0], u[9, 5, :3])
    assert not np.isin(stream_uniforms(2, "a", np.arange(30), np.arange(40), 17), u).any()
    assert not np.isin(stream_uniforms(1, "b", np.arange(30), np.arange(40), 17), u).any()


# Batches: how many targets are drawn for at a time changes nothing but float32 rounding

COMPANY = (1, 3, 5, 13)  # targets at a time; the last is all of them
ROUNDING = 1e-6


def make_wide_model(kind: str) -> ConditionalGenerator:
    """A generator of a vocabulary, heads and words that fill no vectors (81, 5 and 41)."""
    backbone = BackboneShape(81, 16, 2, 2, 48, 96)
    model: ConditionalGenerator
    if kind == "InversionView":
        model = InversionView(InversionViewShape(backbone, {"s": 11}, {"s": 1.0}, d_site=10, n_blocks=2))
    else:
        attends = kind == "neighbours"
        words = tuple(range(1, 42)) if attends else ()
        heads = 3 if attends else 32
        shape = GeneratorShape(
            backbone, {"s": 11}, {"s": 1.0}, heads, 8, 24, 1, neighbour_logits=attends, words=words
        )
        model = InverseScope(shape)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    if model.neighbour_words is not None:
        model.neighbour_words.prior.uniform_(0.2, 0.8)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["InverseScope", "neighbours", "InversionView"])
@pytest.mark.parametrize("draws", [1, 6, 30])
def test_draws_are_the_same_in_any_batch(kind: str, draws: int) -> None:
    """Plain and with cached neighbours mixed in; with a single draw a target, each at a temperature of its own."""
    model, count, length = make_wide_model(kind), COMPANY[-1], 8
    rng, z = np.random.default_rng(0), torch.randn(count, 11)
    counts = [0, 1, 3, 60, 40, 128, 64, 65, *rng.integers(0, 129, count - 8)]  # few alone, then with many
    cached = [rng.integers(0, 81, (n, length)) for n in counts]
    u = stream_uniforms(0, "s", np.arange(count), np.arange(draws), length)
    temperature = np.linspace(0.7, 1.5, count) if draws == 1 else np.ones(count)

    def drawn(company: int, mixed: bool) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for part in np.array_split(np.arange(count), -(-count // company)):
            near = [cached[i] for i in part]
            parts.append(
                decode(
                    model,
                    Condition({"s": z[part]}),
                    u[part],
                    end=END,
                    temperature=temperature[part] if draws == 1 else 1.0,
                    mixer=Mixer(near, 81, 5.0) if mixed else None,
                    neighbours=Mixer(near, 81, 1.0) if kind == "neighbours" else None,
                )
            )
        return np.concatenate([p.tokens for p in parts]), np.concatenate([p.log_q for p in parts])

    for mixed in (False, True):
        tokens, log_qs = drawn(count, mixed)
        for company in COMPANY[:-1]:
            some = drawn(company, mixed)
            same = (some[0] == tokens).all(-1)
            assert (
                same.mean() > 0.99
            )  # rounding moves a cumulative probability past its uniform once in a million tokens
            np.testing.assert_allclose(some[1][same], log_qs[same], rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["InverseScope", "neighbours", "InversionView"])
def test_log_q_is_the_same_in_any_batch(kind: str) -> None:
    """Of cached prompts, and without their activations."""
    model, count, length = make_wide_model(kind), COMPANY[-1], 7
    rng, condition = np.random.default_rng(1), Condition({"s": torch.randn(count, 11)})
    prompts = encode_prompts([rng.integers(1, 81, 3 if i < 40 else length - 1) for i in range(90)], END)
    tokens = prompts.tokens.astype(np.int64)
    rows, owner = rng.integers(0, 90, 60), np.sort(rng.integers(0, count, 60))
    near = None
    if kind == "neighbours":
        # The later a target, the more of its own prompts it attends to.
        lists = [np.unique(rows[owner == i])[: i + 1] for i in range(count)]
        near = Mixer([tokens[some, 1:] for some in lists], 81, 1.0)
    found = [log_prob_rows(model, condition, owner, prompts, rows, batch, near) for batch in (1000, 2, 23)]
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], rtol=ROUNDING, atol=ROUNDING)
    if kind == "neighbours":
        return
    folded, companions = model.fold(condition), (owner[:, None] + np.arange(3)) % count
    temperature, asked = np.linspace(0.7, 1.5, count), tokens[rows, 1:]
    whole = log_q_marginal(model, folded, asked, companions, end=END, temperature=temperature)
    for size in (3, 23):
        parts = [
            log_q_marginal(
                model,
                folded,
                asked[low : low + size],
                companions[low : low + size],
                end=END,
                temperature=temperature,
            )
            for low in range(0, len(asked), size)
        ]
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=ROUNDING, atol=ROUNDING)
    alone = log_q(model, folded, owner, asked, end=END, temperature=temperature)
    assert np.isfinite(alone).all() and not np.array_equal(alone, whole)


# Conditions and cached prompts


def toy_cache() -> tuple[Prompts, np.ndarray, Cache]:
    """All 155 texts of up to three words, in random order; every one is there once, as in a cache of the workflow."""
    rng = np.random.default_rng(0)
    words = range(1, VOCABULARY)
    texts = [np.array(text) for n in range(1, LENGTH) for text in product(words, repeat=n)]
    texts = [texts[i] for i in rng.permutation(len(texts))]
    z = rng.standard_normal((len(texts), 3)).astype(np.float32)
    return encode_prompts(texts, END), z, Cache(z)


@pytest.mark.parametrize("kind", ["hard", "gaussian"])
def test_condition_is_taken_from_everyone_within_reach(kind: str) -> None:
    prompts, z, cache = toy_cache()
    base = make_model().shape
    model = InverseScope(replace(base, sites={"s": 5}, eps_input=True, d_embedding=len(prompts.prior)))
    queries = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
    condition = make_condition(model, "s", queries, 0.05, cache, prompts, kind=kind)
    # A site map that is wider than the activation (noise in model space) gets it padded with zeros.
    np.testing.assert_array_equal(condition.z["s"].numpy(), np.pad(queries, ((0, 0), (0, 2))))
    assert condition.embedding is not None and condition.scalars is not None
    reach = 0.05 if kind == "hard" else 3.7 * 0.05
    for i in range(6):
        rows = np.flatnonzero(distance_of("cosine").paired(np.tile(queries[i], (len(z), 1)), z) < reach)
        assert condition.scalars[i, 2].item() == pytest.approx(np.log1p(len(rows)) / 3, abs=1e-5)
        hits = (prompts.codes[rows][:, :, None] == np.arange(len(prompts.prior))).any(1).sum(0)
        known = prompts.prior > 0
        expected = np.log((hits + 2 * prompts.prior)[known] / ((len(rows) + 2) * prompts.prior[known]))
        np.testing.assert_allclose(condition.embedding[i].numpy()[known], expected, atol=1e-5)


def test_generator_told_epsilon_alone_sees_what_it_saw_in_training() -> None:
    prompts, z, _ = toy_cache()
    model = InverseScope(replace(make_model().shape, eps_input=True))
    sampled = make_condition(model, "s", z[:3], 0.07, None, None)
    source = KernelPairs({"s": z}, prompts, epsilon=0.07, per_site=3, prior_size=800, seed=0, embed=False)
    assert sampled.scalars is not None
    np.testing.assert_allclose(sampled.scalars.numpy(), source.batch(0).scalars, atol=1e-6)


def test_mixer_of_a_cache_holds_each_targets_neighbours() -> None:
    prompts, z, cache = toy_cache()
    queries = np.concatenate([z[:3], [[9.0, -9.0, 0.1]]]).astype(np.float32)
    mixer = make_mixer(cache, prompts, queries, 0.05, VOCABULARY, 3.0)
    found = mixer.roots().counts()
    for i in range(4):
        rows = np.flatnonzero(distance_of("cosine").paired(np.tile(queries[i], (len(z), 1)), z) < 0.05)
        np.testing.assert_array_equal(found[i], np.bincount(prompts.tokens[rows, 1], minlength=VOCABULARY))
    limited = make_mixer(cache, prompts, queries, 0.5, VOCABULARY, 3.0, limit=7)
    assert limited.root_count.tolist() == [7, 7, 7, 7]


def test_log_q_of_cached_prompts() -> None:
    prompts, z, cache = toy_cache()
    model, condition = make_model(), Condition({"s": torch.from_numpy(z[:4])})
    near = cache.search(cache.prepare(z[:4]), 0.2)
    owner = np.repeat(np.arange(4), near.counts)
    found = log_prob_rows(model, condition, owner, prompts, near.rows, batch=7)
    rule = rule_of(model, condition)
    for i in range(0, len(owner), 5):
        tokens = prompts.tokens[near.rows[i], 1 : prompts.lengths[near.rows[i]]].tolist()
        expected = sum(np.log(rule(int(owner[i]), tokens[:t])[token]) for t, token in enumerate(tokens))
        assert found[i] == pytest.approx(expected, abs=1e-4)
    assert log_prob_rows(model, condition, owner[:0], prompts, near.rows[:0], 7).shape == (0,)


@pytest.mark.parametrize("limit", [4096, 8])
def test_log_q_of_an_attended_prompt_leaves_it_out_of_its_own_counts(limit: int) -> None:
    """Of its own only: a cached prompt that is not attended to, since there are too many, changes nobody's counts."""
    prompts, z, cache = toy_cache()
    model, condition = make_model(neighbours=True), Condition({"s": torch.from_numpy(z[:4])})
    near = cache.search(cache.prepare(z[:4]), 0.2)
    owner = np.repeat(np.arange(4), near.counts)
    assert len(owner) > 40
    mixer = make_mixer(cache, prompts, z[:4], 0.2, VOCABULARY, 1.0, limit)
    found = log_prob_rows(model, condition, owner, prompts, near.rows, 16, mixer)
    for i in range(0, len(owner), 3):
        attended = [near.of(t)[:limit] for t in range(4)]
        others = [prompts.tokens[rows[rows != near.rows[i]], 1:] for rows in attended]
        rule = rule_of(model, condition, attended=others)
        tokens = prompts.tokens[near.rows[i], 1 : prompts.lengths[near.rows[i]]].tolist()
        expected = sum(np.log(rule(int(owner[i]), tokens[:t])[token]) for t, token in enumerate(tokens))
        assert found[i] == pytest.approx(expected, abs=1e-4)


class Ring:
    """Twelve prompts on a circle; the first eight are the prior. A move leads to any of them."""

    def log_prior(self, index: np.ndarray) -> np.ndarray:
        return np.where(index < 8, -np.log(8), -np.inf)

    def moves(self, index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(12, size=len(index))


def test_chains_that_begin_outside_the_prior_enter_it_in_the_ball_and_stay_there() -> None:
    angle = np.arange(12) * 2 * np.pi / 12
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    site, seeds, epsilon = Site.parse("L0.resid_post"), np.array([3, 8, 9]), 0.6
    recomputer = Recomputer(lambda index, _: circle[index], {site: circle[seeds]}, "cosine")
    with np.errstate(all="raise"):
        found = run_chains(
            Ring(), recomputer, seeds, {site: np.random.default_rng(0)}, {site: epsilon}, "hard", 300
        )
    states = found[site].pivot(index="step", columns="target_id", values="prompt_id")
    # Within two places of it on the circle; of 9, which is outside the prior as 8 is, prompt 7 alone is in the prior.
    assert [set(states[i]) - {seed} for i, seed in enumerate(seeds)] == [{1, 2, 4, 5}, {6, 7}, {7}]
    for target in (1, 2):
        outside = (states[target] == seeds[target]).to_numpy()
        assert not outside[outside.argmin() :].any()


def test_a_move_from_outside_the_prior_to_outside_is_never_made() -> None:
    some, none = np.log(0.25), -np.inf
    with np.errstate(all="raise"):
        ratio = prior_ratio(np.array([some, none, none, some]), np.array([2 * some, some, none, none]))
        zero = ratio * 0.0
    assert ratio[:3].tolist() == [pytest.approx(4), 0, 0] and ratio[3] > 1e300
    assert not zero.any()
