"""Training pairs: their optimum is P(x; z), and nothing of an anchor's own prompt reaches what conditions on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inversescope.errors import InputError
from inversescope.generator import pairs
from inversescope.generator.backbone import BackboneShape
from inversescope.generator.base import Rows
from inversescope.generator.condition import Condition, Prompts, encode_prompts
from inversescope.generator.inversescope import GeneratorShape, InverseScope
from inversescope.generator.loss import conditional_loss
from inversescope.generator.pairs import Batch, KernelPairs, NoisePairs
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values
from inversescope.kernel.neighbours import Neighbours

COSINE = distance_of("cosine")
END = 0
VOCABULARY = 7


def toy_prompts() -> Prompts:
    """48 prompts: a first token of 2, one of 4 or of 2 after it, one of 6 at the end of some, so lengths differ."""
    texts = [[a, 3 + b, 1 + c] for a in (1, 2) for b in range(4) for c in range(5)]
    texts += [[a, 5 + b] for a in (1, 2) for b in range(2)]
    texts += [[a, 3 + b, 6] for a in (1, 2) for b in range(2)]
    assert len({tuple(t) for t in texts}) == 48
    return encode_prompts([np.array(t) for t in texts], END)


def toy_activations(prompts: Prompts, seed: int = 0) -> np.ndarray:
    """Activations (N, 3) that depend on the tokens, so that posteriors differ from the prior and from each other."""
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((prompts.tokens.shape[1], VOCABULARY, 3))
    z = sum(table[t][prompts.tokens[:, t]] for t in range(prompts.tokens.shape[1]))
    return (z + 0.3 * rng.standard_normal((prompts.size, 3))).astype(np.float32)


def posterior(z: np.ndarray, epsilon: float, kind: str) -> np.ndarray:
    """P(x; z) of every prompt's activation over all prompts (N, N), for a uniform prior."""
    unit = COSINE.prepare(z.astype(np.float64))
    weight = kernel_values(np.maximum(COSINE.between(unit, unit), 0.0), epsilon, kind)
    if kind == "gaussian":
        weight *= COSINE.between(unit, unit) < 3.7 * epsilon
    return weight / weight.sum(1, keepdims=True)


class Tabular(nn.Module):
    """A generator without any generalisation: logits for each (activation, prefix), with the interface of the real one."""

    def __init__(self, z: np.ndarray, prompts: Prompts) -> None:
        super().__init__()
        self.keys = torch.from_numpy(z)
        self.prefixes: dict[tuple[int, ...], int] = {}
        for row in prompts.tokens:
            for t in range(1, len(row)):
                self.prefixes.setdefault(tuple(row[:t].tolist()), len(self.prefixes))
        self.logits = nn.Parameter(torch.zeros(len(z), len(self.prefixes), VOCABULARY))
        self.shape = SimpleNamespace(backbone=SimpleNamespace(vocab_size=VOCABULARY))
        self.device = torch.device("cpu")

    def fold(self, condition: Condition) -> Tensor:
        (z,) = condition.z.values()
        anchor = torch.cdist(z, self.keys).argmin(1)
        assert torch.equal(self.keys[anchor], z), "anchors are clean cached activations"
        return anchor

    def log_probabilities(self, tokens: Tensor, anchor: Tensor, rows: Rows | None = None) -> Tensor:
        index = [[self.prefixes[tuple(row[: t + 1])] for t in range(len(row))] for row in tokens.tolist()]
        return torch.log_softmax(self.logits[anchor[:, None], torch.tensor(index)], -1)

    def distribution(self, prompts: Prompts) -> np.ndarray:
        """Probability of every prompt for every activation (N, N)."""
        rows = []
        with torch.no_grad():
            tokens = torch.from_numpy(prompts.tokens.astype(np.int64))
            inside = torch.arange(1, tokens.shape[1])[None] < torch.from_numpy(prompts.lengths)[:, None]
            for anchor in range(len(self.keys)):
                logp = self.log_probabilities(tokens[:, :-1], torch.full((len(tokens),), anchor))
                rows.append((logp.gather(-1, tokens[:, 1:, None])[..., 0] * inside).sum(1).exp().numpy())
        return np.array(rows)


def fit(source: KernelPairs, z: np.ndarray, prompts: Prompts, steps: int) -> np.ndarray:
    """What a tabular generator learns from a source: P (N, N)."""
    model = Tabular(z, prompts)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 * (1.0 - step / steps)
        optimizer.zero_grad()
        conditional_loss(model, source.batch(step)).backward()  # type: ignore[arg-type]
        optimizer.step()
    return model.distribution(prompts)


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return 0.5 * np.abs(p - q).sum(1)


@pytest.mark.parametrize("kind", ["hard", "gaussian"])
def test_tabular_generator_learns_the_posterior(kind: str) -> None:
    """The loss's optimum is P(x; z) where the cache is all of the prior: own prompt and neighbours weigh alike."""
    prompts = toy_prompts()
    z = toy_activations(prompts)
    epsilon = 0.25 if kind == "hard" else 0.12
    exact = posterior(z, epsilon, kind)
    alone = (exact > 0).sum(1) == 1
    assert alone.sum() >= 1 and (exact > 0).sum(1).max() > 10
    source = KernelPairs(
        {"s": z},
        prompts,
        epsilon=epsilon,
        per_site=192,
        prior_size=prompts.size,
        seed=0,
        kind=kind,
        embed=False,
    )
    learnt = fit(source, z, prompts, 300)
    error = total_variation(learnt, exact)
    assert error.mean() < 0.01 and error.max() < 0.04
    # The prior, and a copy of the anchor's own prompt, are far from it: the test can tell.
    assert total_variation(np.full_like(exact, 1 / prompts.size), exact).mean() > 0.5
    assert total_variation(np.eye(prompts.size), exact).mean() > 0.5


def test_parts_of_the_cache_give_the_same_optimum() -> None:
    """Cutting the cache anew changes a step's targets, not their mean: the own weight shrinks with the part scanned.

    The optimum of a tabular generator is the mean of the normalised targets, so it is taken directly. Rows of a cache come in
    random order, so the mean is over orders too.
    """
    prompts = toy_prompts()
    z = toy_activations(prompts)
    size, steps = prompts.size, 12
    exact = posterior(z, 0.4, "hard")
    learnt, weights = np.zeros((size, size)), np.zeros(size)
    digits = VOCABULARY ** np.arange(prompts.tokens.shape[1])
    row_of = np.full(VOCABULARY ** len(digits), -1)
    row_of[prompts.tokens @ digits] = np.arange(size)
    rng = np.random.default_rng(0)
    for seed in range(100):
        order = rng.permutation(size)
        cached = Prompts(prompts.tokens[order], prompts.lengths[order], prompts.codes[order], prompts.prior)
        source = KernelPairs(
            {"s": z[order]}, cached, epsilon=0.4, per_site=96, prior_size=size, seed=seed, chunk=1
        )
        for step in range(steps):
            batch = source.batch(step)
            assert batch.targets is not None and batch.target_weight is not None
            share = batch.target_weight / batch.target_weight.sum(1, keepdims=True) * batch.weight[:, None]
            anchor = (batch.z["s"][:, None] == z).all(-1).argmax(1)
            member = row_of[batch.targets @ digits]
            np.add.at(learnt, (anchor[:, None], member), share)
            weights += np.bincount(anchor, weights=batch.weight, minlength=size)
    learnt /= weights[:, None]
    error = total_variation(learnt, exact)
    crowded = (exact > 0).sum(1) >= 8
    assert crowded.sum() > 30 and error[crowded].mean() < 0.03 and error[crowded].max() < 0.05
    own = learnt[crowded, crowded.nonzero()[0]] / exact[crowded, crowded.nonzero()[0]]
    assert abs(own.mean() - 1.0) < 0.1  # twice that or more if the part scanned were ignored


def test_cache_of_draws_learns_the_cached_posterior() -> None:
    """With half of the prior cached, a neighbour stands for two prompts and the own prompt for one."""
    prompts = toy_prompts()
    z = toy_activations(prompts)
    source = KernelPairs(
        {"s": z}, prompts, epsilon=0.25, per_site=192, prior_size=2 * prompts.size, seed=0, embed=False
    )
    weight = (posterior(z, 0.25, "hard") > 0).astype(float)
    np.fill_diagonal(weight, 0.5)
    expected = weight / weight.sum(1, keepdims=True)
    error = total_variation(fit(source, z, prompts, 300), expected)
    assert error.mean() < 0.01 and error.max() < 0.04


# Soft and sampled targets


def tiny_model(prompts: Prompts, embed: bool, seed: int = 0) -> InverseScope:
    torch.manual_seed(seed)
    shape = GeneratorShape(
        backbone=BackboneShape(VOCABULARY, 8, 1, 2, 8, 16),
        sites={"s": 3},
        scales={"s": 1.0},
        n_heads=2,
        d_head=4,
        d_condition=6,
        eps_input=embed,
        d_embedding=len(prompts.prior) if embed else 0,
    )
    model = InverseScope(shape)
    for layer in model.control:
        nn.init.normal_(layer.value.weight, std=0.5)
    return model


def test_soft_and_sampled_targets_have_the_same_expected_gradient() -> None:
    prompts = toy_prompts()
    z = toy_activations(prompts)
    settings: dict[str, Any] = {"epsilon": 0.3, "per_site": 24, "prior_size": 96, "seed": 4, "chunk": 1}
    soft = KernelPairs({"s": z}, prompts, soft=True, **settings)
    sampled = KernelPairs({"s": z}, prompts, soft=False, **settings)
    model = tiny_model(prompts, embed=True)
    parameters = list(model.parameters())

    def gradient(batch: Batch) -> Tensor:
        model.zero_grad()
        conditional_loss(model, batch).backward()
        return torch.cat([p.grad.ravel() for p in parameters if p.grad is not None])

    # The same anchors and paths for both: what differs is the label along the path, and its mean is zero.
    steps, softs, differences = 400, [], []
    for step in range(steps):
        a, b = soft.batch(step), sampled.batch(step)
        np.testing.assert_array_equal(a.path, b.path)
        assert b.targets is None
        softs.append(gradient(a))
        differences.append(softs[-1] - gradient(b))
    difference, g = torch.stack(differences).double(), torch.stack(softs).double()
    mean, deviation = difference.mean(0), difference.std(0)
    moving = deviation > 1e-9
    score = mean[moving] / (deviation[moving] / steps**0.5)
    assert moving.sum() > 500
    assert score.abs().max() < 5.0 and 0.7 < score.square().mean() < 1.4
    # And soft targets pay: the noise that they take away is a good part of the sampled gradient's.
    sampled_variance = (g - difference).var(0).sum()
    assert g.var(0).sum() < 0.8 * sampled_variance


def test_soft_target_is_the_next_token_distribution_among_prefix_sharers() -> None:
    path = np.array([[END, 1, 3, END, END]], np.int32)
    targets = np.array(
        [[[END, 1, 3, END, END], [END, 1, 4, 2, END], [END, 2, 3, END, END], [END, 1, 3, 5, END]]], np.int32
    )
    weight = np.array([[0.5, 1.0, 2.0, 0.0]], np.float32)
    logp = torch.log_softmax(torch.randn(1, 3, VOCABULARY, generator=torch.Generator().manual_seed(0)), -1)
    model = nn.Module()
    model.device = torch.device("cpu")  # type: ignore[assignment]
    model.fold = lambda condition: None  # type: ignore[assignment]
    model.log_probabilities = lambda tokens, folded, rows: logp  # type: ignore[assignment]
    batch = Batch(
        {"s": np.zeros((1, 1), np.float32)},
        path,
        np.array([4], np.int32),
        np.ones(1, np.float32),
        targets,
        weight,
    )
    # First token: 1 with weight 1.5 of 3.5, 2 with 2; after 1: 3 with .5 of 1.5, 4 with 1; after 1 3: the end alone.
    expected = (1.5 * logp[0, 0, 1] + 2.0 * logp[0, 0, 2]) / 3.5
    expected = expected + (0.5 * logp[0, 1, 3] + 1.0 * logp[0, 1, 4]) / 1.5 + logp[0, 2, END]
    torch.testing.assert_close(conditional_loss(model, batch), -expected)  # type: ignore[arg-type]


# What conditions


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every search of a `KernelPairs`: its spans, what it left out, what it found."""
    seen: list[dict[str, Any]] = []
    original = pairs.Cache.search

    def search(
        self: Any, queries: Any, radius: Any, exclude: Any = None, limit: Any = None, span: Any = None
    ) -> Neighbours:
        found = original(self, queries, radius, exclude, limit, span)
        seen.append({"exclude": exclude, "span": span, "found": found})
        return found

    monkeypatch.setattr(pairs.Cache, "search", search)
    return seen


@pytest.mark.parametrize("empty", ["own", "skip", "widen"])
def test_condition_and_target_are_disjoint_and_leave_the_anchor_out(
    empty: Any, searches: list[dict[str, Any]]
) -> None:
    prompts = toy_prompts()
    z = toy_activations(prompts)
    source = KernelPairs(
        {"s": z}, prompts, epsilon=0.3, per_site=8, prior_size=96, seed=2, chunk=4, empty=empty
    )
    cuts = set()
    for chunk in range(20):
        searches.clear()
        source.batch(4 * chunk)
        target, condition = searches[-2], searches[-1]
        spans = [
            set((first + np.arange(length)) % prompts.size)
            for first, length in (target["span"], condition["span"])
        ]
        assert not spans[0] & spans[1] and len(spans[0] | spans[1]) == prompts.size
        assert set(target["found"].rows) <= spans[0] and set(condition["found"].rows) <= spans[1]
        np.testing.assert_array_equal(target["exclude"], condition["exclude"])
        for search in (target, condition):
            for i, anchor in enumerate(search["exclude"]):
                assert anchor not in search["found"].of(i)
        cuts.add(condition["span"])
    assert len(cuts) == 20, "the cache is cut anew for every chunk"


def test_same_halves_ablation_shares_its_rows(searches: list[dict[str, Any]]) -> None:
    prompts = toy_prompts()
    source = KernelPairs(
        {"s": toy_activations(prompts)},
        prompts,
        epsilon=0.3,
        per_site=8,
        prior_size=96,
        seed=2,
        disjoint=False,
    )
    source.batch(0)
    assert [s["span"][1] for s in searches] == [prompts.size, prompts.size]


def test_nothing_of_the_anchors_own_prompt_reaches_its_condition() -> None:
    """Change an anchor's tokens and codes: embedding, scalars and attended neighbours stay the same, bit for bit."""
    z = toy_activations(toy_prompts())
    settings: dict[str, Any] = {
        "epsilon": (0.05, 0.5),
        "per_site": 16,
        "prior_size": 96,
        "seed": 3,
        "chunk": 2,
        "attend": True,
    }
    source = KernelPairs({"s": z}, toy_prompts(), **settings)
    batches = [source.batch(step) for step in range(2)]
    checked = 0
    for batch, step in zip(batches, range(2), strict=True):
        assert batch.scalars is not None and batch.embedding is not None and batch.neighbours is not None
        for i in range(16):
            anchor = int(np.flatnonzero((z == batch.z["s"][i]).all(1))[0])
            changed = toy_prompts()
            changed.tokens[anchor] = [END, 6, 6, 6, END]
            changed.lengths[anchor] = 5
            changed.codes[anchor] = changed.codes[(anchor + 17) % changed.size]
            again = KernelPairs({"s": z}, changed, **settings).batch(step)
            assert again.scalars is not None and again.embedding is not None and again.neighbours is not None
            np.testing.assert_array_equal(again.z["s"][i], batch.z["s"][i])
            np.testing.assert_array_equal(again.scalars[i], batch.scalars[i])
            np.testing.assert_array_equal(again.embedding[i], batch.embedding[i])
            used = batch.neighbour_weight[i] > 0  # type: ignore[index]
            np.testing.assert_array_equal(again.neighbour_weight, batch.neighbour_weight)
            np.testing.assert_array_equal(again.neighbours[i][used], batch.neighbours[i][used])
            # The change is seen where it should be: by other anchors that have this prompt as a neighbour.
            checked += int(not np.array_equal(again.embedding, batch.embedding))
    assert checked > 8


def test_condition_is_the_mean_over_the_neighbours_found(searches: list[dict[str, Any]]) -> None:
    prompts = toy_prompts()
    source = KernelPairs(
        {"s": toy_activations(prompts)},
        prompts,
        epsilon=0.3,
        per_site=32,
        prior_size=96,
        seed=2,
        chunk=1,
        attend=True,
    )
    batch = source.batch(0)
    near = searches[-1]["found"]
    assert batch.scalars is not None and batch.embedding is not None and batch.neighbours is not None
    for i in range(32):
        rows, n = near.of(i), int(near.counts[i])
        for code in range(len(prompts.prior)):
            hits = int((prompts.codes[rows] == code).any(1).sum())
            prior = prompts.prior[code]
            expected = 0.0 if prior == 0 else np.log((hits + 2 * prior) / ((n + 2) * prior))
            if prior > 0:
                assert batch.embedding[i, code] == pytest.approx(expected, abs=1e-5)
        share = (n + 0.5) / near.scanned[i]
        mean = near.distance[near.start[i] : near.start[i + 1]].mean() / 0.3 if n else 0.0
        np.testing.assert_allclose(
            batch.scalars[i], [np.log(0.3) + 3, np.log(share) / 3 + 1.5, np.log1p(n) / 3, mean], atol=1e-5
        )
        assert int(batch.neighbour_weight[i].sum()) == n  # type: ignore[index]
        np.testing.assert_array_equal(batch.neighbours[i, :n], prompts.tokens[rows])
        if n == 0:
            assert (batch.embedding[i] == 0).all()


def test_codes_tell_position_and_slot_values_apart() -> None:
    slots = np.array([[0, 2], [1, 2], [0, 5]])
    prompts = encode_prompts([np.array([1, 2]), np.array([2]), np.array([1, 1])], END, slots)
    np.testing.assert_array_equal(prompts.tokens, [[0, 1, 2, 0], [0, 2, 0, 0], [0, 1, 1, 0]])
    np.testing.assert_array_equal(prompts.lengths, [4, 3, 4])
    same = prompts.codes[:, None, :] == prompts.codes[None, :, :]
    # Columns: first token, second token (the end of the short one), third, then the two slots.
    np.testing.assert_array_equal(same[0, 1], [False, False, False, False, True])
    np.testing.assert_array_equal(same[0, 2], [True, False, True, True, False])
    assert prompts.codes[1, 2] == -1  # beyond its end token
    used = prompts.codes[prompts.codes >= 0]
    for code in np.unique(used):
        assert prompts.prior[code] == pytest.approx((prompts.codes == code).any(1).mean())


# The own-weight rule and what becomes of lonely anchors


def lonely_setting() -> tuple[Prompts, np.ndarray]:
    """Two prompts far from everything, the others close together."""
    prompts = toy_prompts()
    rng = np.random.default_rng(0)
    z = np.tile([1.0, 0.0, 0.0], (prompts.size, 1)) + 0.01 * rng.standard_normal((prompts.size, 3))
    z[0], z[1] = [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
    return prompts, z.astype(np.float32)


def is_row(batch: Batch, z: np.ndarray, rows: tuple[int, ...]) -> np.ndarray:
    return np.isin([int(np.flatnonzero((z == own).all(1))[0]) for own in batch.z["s"]], rows)


def test_own_prompt_weighs_what_it_stands_for() -> None:
    prompts, z = lonely_setting()
    prior_size = 10 * prompts.size
    source = KernelPairs(
        {"s": z}, prompts, epsilon=0.1, per_site=64, prior_size=prior_size, seed=0, embed=False
    )
    batch = source.batch(0)
    assert batch.targets is not None and batch.target_weight is not None
    lonely = is_row(batch, z, (0, 1))
    assert 0 < lonely.sum() < 20
    # A cached neighbour stands for prior_size / cache prompts of the prior, the own prompt for one of them.
    np.testing.assert_allclose(batch.target_weight[:, 0], prompts.size / prior_size)
    assert (batch.target_weight[~lonely, 1:46] == 1.0).all()
    assert (batch.target_weight[lonely, 1:] == 0.0).all()
    np.testing.assert_array_equal(batch.targets[lonely, 0], batch.path[lonely])
    np.testing.assert_allclose(batch.weight[lonely], 0.1 / 0.6, rtol=1e-5)
    assert (batch.weight[~lonely] == 1.0).all()
    own_path = [
        np.array_equal(path, target[0])
        for path, target in zip(batch.path[~lonely], batch.targets[~lonely], strict=True)
    ]
    assert np.mean(own_path) < 0.1  # at .1 / 45.1 the own prompt is hardly ever the path


def test_skipped_anchors_have_no_weight_and_never_their_own_prompt() -> None:
    prompts, z = lonely_setting()
    source = KernelPairs(
        {"s": z}, prompts, epsilon=0.1, per_site=64, prior_size=480, seed=0, embed=False, empty="skip"
    )
    batch = source.batch(0)
    lonely = is_row(batch, z, (0, 1))
    assert (batch.weight[lonely] == 0).all() and (batch.weight[~lonely] == 1).all()
    for own, path in zip(batch.z["s"][~lonely], batch.path[~lonely], strict=True):
        row = int(np.flatnonzero((z == own).all(1))[0])
        assert not np.array_equal(prompts.tokens[row], path)


def test_widened_anchors_find_someone_and_are_told_so() -> None:
    prompts, z = lonely_setting()
    source = KernelPairs(
        {"s": z}, prompts, epsilon=0.1, per_site=64, prior_size=480, seed=0, empty="widen", chunk=1
    )
    batch = source.batch(0)
    lonely = is_row(batch, z, (0, 1))
    assert batch.scalars is not None and (batch.weight == 1).all()
    told = np.exp(batch.scalars[:, 0] - 3.0)
    np.testing.assert_allclose(told[~lonely], 0.1, rtol=1e-4)
    assert (told[lonely] > 0.7).all()  # nothing lies nearer than about 1


def test_a_batch_of_lonely_anchors_has_a_finite_loss_and_no_warning() -> None:
    prompts = toy_prompts()
    z = toy_activations(prompts)
    for empty in ("own", "skip"):
        source = KernelPairs({"s": z}, prompts, epsilon=1e-7, per_site=8, prior_size=96, seed=0, empty=empty)  # type: ignore[arg-type]
        with np.errstate(all="raise"):
            batch = source.batch(0)
        assert np.isnan(batch.floor)
        assert torch.isfinite(conditional_loss(tiny_model(prompts, embed=True), batch))


def test_generator_that_is_told_epsilon_alone_gets_its_scalars() -> None:
    prompts = toy_prompts()
    source = KernelPairs(
        {"s": toy_activations(prompts)},
        prompts,
        epsilon=(0.01, 0.4),
        per_site=64,
        prior_size=96,
        seed=0,
        embed=False,
    )
    batch = source.batch(0)
    assert batch.scalars is not None and batch.embedding is None
    epsilon = np.exp(batch.scalars[:, 0] - 3.0)
    assert (batch.scalars[:, 1:] == 0).all()
    assert 0.01 <= epsilon.min() < 0.02 and 0.2 < epsilon.max() <= 0.4
    assert abs(np.log(epsilon).mean() - np.log(0.01 * 0.4) / 2) < 0.4  # log-uniform


@pytest.mark.parametrize("kind", ["hard", "gaussian"])
def test_targets_lie_within_the_radius_and_weigh_by_the_kernel(
    kind: str, searches: list[dict[str, Any]]
) -> None:
    prompts = toy_prompts()
    z = toy_activations(prompts)
    source = KernelPairs(
        {"s": z}, prompts, epsilon=0.1, per_site=32, prior_size=96, seed=5, kind=kind, embed=False, chunk=1
    )
    batch = source.batch(0)
    assert batch.targets is not None and batch.target_weight is not None
    found = searches[0]["found"]
    anchors = searches[0]["exclude"]
    for i in range(32):
        d = COSINE.paired(z[np.full(found.counts[i], anchors[i])], z[found.of(i)])
        assert (d < (0.1 if kind == "hard" else 0.37)).all()
        n = len(d)
        np.testing.assert_array_equal(batch.targets[i, 1 : 1 + n], prompts.tokens[found.of(i)])
        np.testing.assert_allclose(batch.target_weight[i, 1 : 1 + n], kernel_values(d, 0.1, kind), rtol=1e-3)


@pytest.mark.parametrize("limit", [256, 4], ids=["all", "a few"])
def test_neighbours_that_condition_hold_the_share_of_the_posterior_that_sampling_tells(
    limit: int, searches: list[dict[str, Any]]
) -> None:
    """Of a prior twice as large as the cache half of each ball is cached: so half of the target lies on what conditions."""
    prompts = toy_prompts()
    z = toy_activations(prompts)
    size = 2 * prompts.size
    source = KernelPairs(
        {"s": z}, prompts, epsilon=0.4, per_site=96, prior_size=size, seed=5, chunk=1, n_condition=limit
    )
    shares = []
    for step in range(40):
        searches.clear()
        batch = source.batch(step)
        assert batch.targets is not None and batch.target_weight is not None
        found, told = (search["found"] for search in searches)
        for i in np.flatnonzero(found.counts):
            first = 1 + int(found.counts.max())
            rows = batch.targets[i, first : first + told.counts[i]]
            np.testing.assert_array_equal(rows, prompts.tokens[told.of(i)])
            weight = batch.target_weight[i, 1:]
            shares.append([weight[: first - 1].sum(), weight[first - 1 :].sum(), told.scanned[i]])
    of_found, of_told, scanned = np.array(shares).T
    expected = 0.5 if limit == 256 else scanned.mean() / size
    assert of_told.sum() / (of_found + of_told).sum() == pytest.approx(expected, abs=0.04)


# Order


def same(a: Batch, b: Batch) -> bool:
    def equal(x: Any, y: Any) -> bool:
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
        if isinstance(x, np.ndarray):
            return np.array_equal(x, y)
        return x is y or x == y or (x != x and y != y)

    return all(equal(getattr(a, name), getattr(b, name)) for name in Batch.__dataclass_fields__)


def sources(seed: int, sites_per_step: int | None = None) -> list[Any]:
    prompts = toy_prompts()
    z = {name: toy_activations(prompts, number) for number, name in enumerate("stuvw")}
    common: dict[str, Any] = {
        "per_site": 4,
        "prior_size": 96,
        "seed": seed,
        "sites_per_step": sites_per_step,
    }
    return [
        NoisePairs(z, prompts, width=dict.fromkeys(z, 5), epsilon=0.1, **common),
        KernelPairs(z, prompts, epsilon=(0.05, 0.3), chunk=4, attend=True, **common),
    ]


@pytest.mark.parametrize("sites", [None, 2])
@pytest.mark.parametrize("which", [0, 1], ids=["noise", "kernel"])
def test_batches_are_a_function_of_seed_and_step(which: int, sites: int | None) -> None:
    source = sources(0, sites)[which]
    in_order = [source.batch(step) for step in range(10)]
    resumed = sources(0, sites)[which]
    for step in (9, 3, 4, 3, 0):  # a run that was killed starts anywhere
        assert same(resumed.batch(step), in_order[step])
    assert not any(same(in_order[a], in_order[b]) for a in range(10) for b in range(a))
    assert not same(sources(1, sites)[which].batch(0), in_order[0])


def test_rows_of_a_site_follow_each_other() -> None:
    for source in sources(0):
        batch = source.batch(0)
        assert list(batch.z) == list("stuvw")
        assert len(batch.path) == len(batch.lengths) == len(batch.weight) == 20


@pytest.mark.parametrize("which", [0, 1], ids=["noise", "kernel"])
def test_a_step_reads_so_many_sites_at_random(which: int) -> None:
    source = sources(0, 2)[which]
    read = []
    for step in range(400):
        batch = source.batch(step)
        assert list(batch.z) == source.sites_at(step) and len(batch.path) == 8
        # Each site's rows are its own, whatever else the step reads: clean ones, or near that of their prompt.
        for site, z in batch.z.items():
            own = np.pad(source.activations[site], ((0, 0), (0, z.shape[1] - 3)))
            distance = COSINE.between(COSINE.prepare(z), COSINE.prepare(own))
            assert (distance.min(1) < (1e-6 if which else 0.1 + 1e-6)).all()
        read += list(batch.z)
    often = [read.count(site) for site in source.activations]
    assert sum(often) == 800 and min(often) > 120 and max(often) < 200
    # Another seed reads others; as many sites as there are, or more, are all of them.
    assert [sources(1, 2)[which].sites_at(s) for s in range(9)] != [source.sites_at(s) for s in range(9)]
    everything = sources(0)[which]
    assert all(same(sources(0, many)[which].batch(5), everything.batch(5)) for many in (5, 6))


def test_sites_are_made_searchable_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of them makes no difference to the examples."""
    made: list[int] = []

    class Counted(pairs.Cache):
        def __init__(self, z: np.ndarray, *options: Any) -> None:
            made.append(len(z))
            super().__init__(z, *options)

    monkeypatch.setattr(pairs, "Cache", Counted)
    kept, forgotten = sources(0, 1)[1], sources(0, 1)[1]
    first = {site for step in range(4) for site in kept.sites_at(step)}
    kept.batch(0)
    assert len(made) == len(first) < 5
    for step in range(40):
        monkeypatch.setattr(pairs, "KEPT_BYTES", 1 << 20)
        expected = kept.batch(step)
        monkeypatch.setattr(pairs, "KEPT_BYTES", 0)
        assert same(forgotten.batch(step), expected)
    assert 5 + 10 < len(made)


def test_no_example_is_dealt_out_twice() -> None:
    source = sources(0, 2)[1]
    source.chunk = 16
    rows: dict[str, list[Any]] = {}
    for step in range(16):
        batch = source.batch(step)
        for place, (site, z) in enumerate(batch.z.items()):
            scalars = batch.scalars[4 * place : 4 * place + 4]  # the anchor's own bandwidth, a real number
            rows.setdefault(site, []).extend(map(tuple, np.concatenate([z, scalars], 1)))
    assert set(rows) == set("stuvw") and all(len(set(found)) == len(found) for found in rows.values())


def test_noise_pairs_carry_the_prompt_that_the_activation_came_from() -> None:
    prompts = toy_prompts()
    z = toy_activations(prompts)
    source = NoisePairs(
        {"s": z}, prompts, width={"s": 6}, epsilon=0.02, per_site=64, prior_size=96, seed=0, floor_every=1
    )
    batch = source.batch(0)
    assert batch.z["s"].shape == (64, 6) and batch.targets is None and batch.scalars is None
    rows = [int(np.flatnonzero((prompts.tokens == path).all(1))[0]) for path in batch.path]
    clean = np.zeros((64, 6))
    clean[:, :3] = z[rows]
    d = COSINE.paired(clean, batch.z["s"])
    # In six dimensions the noise lies near the rim, and outside the head's own space too.
    assert (d < 0.02 + 1e-6).all() and d.mean() > 0.012
    assert (np.abs(batch.z["s"][:, 3:]).max(1) > 0).all()
    assert len(set(rows)) > 25
    assert 0.0 <= batch.floor <= np.log(96)


def test_bayes_floor_counts_the_prior_within_reach() -> None:
    prompts = toy_prompts()
    z = toy_activations(prompts)
    source = NoisePairs(
        {"s": z}, prompts, width={"s": 3}, epsilon=0.2, per_site=256, prior_size=480, seed=0, floor_every=2
    )
    batch = source.batch(0)
    unit = COSINE.prepare(batch.z["s"].astype(np.float64))
    count = (COSINE.between(unit, COSINE.prepare(z.astype(np.float64))) < 0.2).sum(1)
    assert batch.floor == pytest.approx(np.log(count / 48 * 480).mean(), abs=1e-3)
    assert np.isnan(source.batch(1).floor)


def test_too_small_a_cache_is_an_input_error() -> None:
    prompts = encode_prompts([np.array([1]), np.array([2])], END)
    with pytest.raises(InputError, match="2 prompts has no neighbours.*raise n_train"):
        KernelPairs(
            {"s": np.eye(2, dtype=np.float32)}, prompts, epsilon=0.1, per_site=1, prior_size=2, seed=0
        )
