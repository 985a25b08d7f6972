"""JumpReLU autoencoders: release files, training, representative features; probes; the scores of all methods."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from inversescope.config import Config, ExperimentConfig
from inversescope.config.methods import FcrConfig, SaeConfig, VariantConfig
from inversescope.config.targets import GemmaScopeConfig, ModelConfig
from inversescope.context import Context
from inversescope.errors import InputError
from inversescope.kernel.distances import distance_of
from inversescope.studies.ravel import probe
from inversescope.studies.ravel.general_text import WORDS
from inversescope.studies.ravel.probe import linear_probe, nearest_neighbour
from inversescope.studies.ravel.sae import (
    JumpReLU,
    from_arrays,
    gemma_scope_path,
    read_gemma_scope,
    representatives,
)
from inversescope.studies.ravel.sae_training import train_sae
from inversescope.studies.ravel.scores import confusion, decisions, from_labels, most_likely, score
from inversescope.studies.ravel.stages import Stream, corpus_texts

D, WIDTH = 6, 10


def release(folder: Path, rng: np.random.Generator, d: int = D) -> dict[str, np.ndarray]:
    """Write a file of Gemma Scope's format and return its arrays."""
    arrays = {
        "W_enc": rng.standard_normal((d, WIDTH)),
        "W_dec": rng.standard_normal((WIDTH, d)),
        "b_enc": rng.standard_normal(WIDTH),
        "b_dec": rng.standard_normal(d),
        "threshold": rng.random(WIDTH),
    }
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    path = folder / "layer_3/width_16k/average_l0_59/params.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **arrays)
    return arrays


def scope(folder: Path) -> GemmaScopeConfig:
    return GemmaScopeConfig(source="local", path=str(folder), l0={3: 59, 4: 124})


def test_release_files_are_read_by_layer_width_and_l0(tmp_path: Path) -> None:
    arrays = release(tmp_path, np.random.default_rng(0))
    model = read_gemma_scope(gemma_scope_path(scope(tmp_path), 3), D)
    x = np.random.default_rng(1).standard_normal((50, D)).astype(np.float32)
    pre = x @ arrays["W_enc"] + arrays["b_enc"]
    features = np.maximum(pre, 0) * (pre > arrays["threshold"])
    np.testing.assert_allclose(model.features(x), features, atol=1e-5)
    np.testing.assert_allclose(
        model.reconstruct(features), features @ arrays["W_dec"] + arrays["b_dec"], atol=1e-4
    )
    chosen = np.array([7, 2, 7])
    np.testing.assert_allclose(model.only(chosen).features(x), features[:, chosen], atol=1e-5)


def test_release_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    arrays = release(tmp_path, np.random.default_rng(0))
    path = gemma_scope_path(scope(tmp_path), 3)
    with pytest.raises(
        InputError, match=r"params.npz: 'W_enc' has shape \(6, 10\), but the site of width 8 needs \(8, 10\)"
    ):
        read_gemma_scope(path, 8)
    with pytest.raises(InputError, match="for layer 5.*l0"):
        gemma_scope_path(scope(tmp_path), 5)
    with pytest.raises(InputError, match="average_l0_124/params.npz does not exist"):
        read_gemma_scope(gemma_scope_path(scope(tmp_path), 4), D)
    with pytest.raises(InputError, match="no array 'threshold'"):
        from_arrays({k: v for k, v in arrays.items() if k != "threshold"}, D, "file")
    with pytest.raises(InputError, match="'b_dec' holds NaN"):
        from_arrays({**arrays, "b_dec": np.full(D, np.nan, np.float32)}, D, "file")
    np.savez(path, **{**arrays, "W_enc": np.array([object()])}, allow_pickle=True)
    with pytest.raises(InputError, match="no file of plain arrays"):
        read_gemma_scope(path, D)
    path.write_bytes(b"no archive")
    with pytest.raises(InputError, match="no file of plain arrays"):
        read_gemma_scope(path, D)


def dictionary(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sparse non-negative codes (n, 8) of 8 orthogonal directions in 12 dimensions: activations, and which codes are on."""
    directions = np.linalg.qr(rng.standard_normal((12, 12)))[0][:8]
    on = rng.random((n, 8)) < 0.2
    codes = on * rng.uniform(1.0, 2.0, (n, 8))
    return (codes @ directions).astype(np.float32) * 30.0, on


CONFIG = SaeConfig(
    width=24,
    steps=700,
    batch_size=256,
    learning_rate=1e-2,
    warmup=20,
    sparsity_warmup=100,
    bandwidth=0.05,
    initial_threshold=0.05,
)


def test_training_recovers_a_sparse_dictionary() -> None:
    rng = np.random.default_rng(0)
    z, _ = dictionary(rng, 4096)
    scale = float(np.sqrt((z.astype(float) ** 2).sum(1).mean()))
    model, log = train_sae(Stream(z, 256, 0), 12, scale, CONFIG, 5e-2, 0, "sae", lambda line: None)
    assert log["loss"].iloc[-1] < 0.5 * log["loss"].iloc[0]
    fresh, on = dictionary(np.random.default_rng(0), 4096)
    features = model.features(fresh)
    error = ((model.reconstruct(features) - fresh) ** 2).sum() / ((fresh - fresh.mean(0)) ** 2).sum()
    assert error < 0.1
    np.testing.assert_allclose(np.linalg.norm(model.W_dec, axis=1), 1.0, atol=1e-4)
    # Few features are active, and each direction has one that tells by itself whether it is there.
    assert (features > 0).sum(1).mean() < 2 * on.sum(1).mean()
    best = [max(f1_score(on[:, k], features[:, j] > 0) for j in range(model.width)) for k in range(8)]
    assert min(best) > 0.6 and np.mean(best) > 0.8, best


def test_training_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    z, _ = dictionary(np.random.default_rng(0), 1024)
    config = CONFIG.model_copy(update={"steps": 30})

    class Killed(Exception):
        pass

    def dying(step: int) -> np.ndarray:
        if step == 25:
            raise Killed
        return Stream(z, 256, 0)(step)

    import inversescope.studies.ravel.sae_training as sae_training
    import inversescope.training as training

    whole, _ = train_sae(Stream(z, 256, 0), 12, 30.0, config, 1e-2, 0, "sae", lambda line: None)
    save = training.save_state
    saved = []

    def often(path: Path, tensors: dict[str, np.ndarray], meta: dict[str, int]) -> None:
        saved.append(meta["step"])
        save(path, tensors, meta)

    original = training.train

    def train(*arguments: object, **options: object) -> object:
        return original(*arguments, **{**options, "save_every": 10})  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_state", often)
        patch.setattr(sae_training, "train", train)
        with pytest.raises(Killed):
            train_sae(
                dying, 12, 30.0, config, 1e-2, 0, "sae", lambda line: None, tmp_path / "state.safetensors"
            )
        assert saved == [10, 20]
        resumed, _ = train_sae(
            Stream(z, 256, 0),
            12,
            30.0,
            config,
            1e-2,
            0,
            "sae",
            lambda line: None,
            tmp_path / "state.safetensors",
        )
    for name, value in whole.arrays().items():
        np.testing.assert_array_equal(value, resumed.arrays()[name])


def test_stream_gives_each_row_once_an_epoch_in_changing_order() -> None:
    z = np.arange(100, dtype=np.float32)[:, None]
    stream = Stream(z, 10, 0, block=30)
    epochs = [np.concatenate([stream(step) for step in range(10 * e, 10 * e + 10)]).ravel() for e in range(2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), z.ravel())
    assert not np.array_equal(*epochs)
    # A step's rows depend on nothing but the step.
    np.testing.assert_array_equal(Stream(z, 10, 0, block=30)(17), stream(17))
    assert len(Stream(z[:4], 10, 0)(3)) == 4


def test_general_text_of_a_model_that_others_trained_is_pythons_manual(tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    experiment = ExperimentConfig(task="ravel", model="m", sites=["L0.resid_post"], n_train=300, n_val=8)
    elsewhere = ModelConfig(source="local", path="m", n_layers=2, n_heads=2)
    config = Config(
        experiments={"e": experiment},
        models={"m": elsewhere},
        variants={"paper": VariantConfig(), "default": VariantConfig()},
        fcr=FcrConfig(features=["attribute"]),
    )
    context = Context(tmp_path, config.of("ravel", "m"), "ravel", "m")
    assert context.plan.corpora == ["ravel", "general"]
    assert context.plan.trained_corpora == ["ravel", "general"] and not context.plan.general_text
    texts = corpus_texts(context, "general")
    assert texts == corpus_texts(context, "general") and len(texts) == 300
    # Each passage stands in the manual as it is, but for white space and marks.
    manual = [" ".join(re.findall(r"\S*[^\W_]\S*", topic)) for topic in topics.values()]
    assert all(any(text in topic for topic in manual) for text in texts)
    assert {len(text.split()) for text in texts} == {WORDS} and len(set(texts)) > 290


def test_representative_features_have_the_best_f1() -> None:
    rng = np.random.default_rng(0)
    model = JumpReLU(
        *(rng.standard_normal(s).astype(np.float32) for s in ((D, WIDTH), (WIDTH, D), WIDTH, D)),
        np.zeros(WIDTH, np.float32),
    )
    z, labels = rng.standard_normal((300, D)).astype(np.float32), rng.integers(-1, 3, 300)
    feature, f1 = representatives(model, z, labels, 3, block=64)
    on = model.features(z) > 0
    for code in range(3):
        scores = [f1_score(labels == code, on[:, k]) for k in range(WIDTH)]
        assert feature[code] == int(np.argmax(scores)) and f1[code] == pytest.approx(max(scores))


# Probes


def test_probe_and_nearest_neighbour_on_separable_data() -> None:
    rng = np.random.default_rng(0)
    centres = 6.0 * rng.standard_normal((4, D))
    labels = np.where(rng.random(400) < 0.7, 0, rng.integers(1, 4, 400))
    z = (centres[labels] + rng.standard_normal((400, D))).astype(np.float32)
    probe, strength = linear_probe(z[:200], labels[:200], z[200:300], labels[200:300], [1e-8, 1.0])
    assert strength == 1.0 and probe.score(z[300:], labels[300:]) > 0.95
    cosine = distance_of("cosine")
    assert (labels[nearest_neighbour(cosine, z[300:], z[:200])] == labels[300:]).mean() > 0.9
    # Cosine looks at directions: a scaled copy of a training activation is its nearest neighbour.
    assert nearest_neighbour(cosine, 7.0 * z[:200], z[:200]).tolist() == list(range(200))


def test_nearest_neighbour_in_other_words_passes_its_own_words_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BLOCK", 7)
    rng = np.random.default_rng(1)
    z, queries = rng.standard_normal((40, D)).astype(np.float32), rng.standard_normal((20, D))
    words, own = rng.integers(0, 4, 40), rng.integers(0, 5, 20)
    found = nearest_neighbour(distance_of("euclidean"), queries.astype(np.float32), z, (own, words))
    for query, code, row in zip(queries, own, found, strict=True):
        others = np.flatnonzero(words != code)
        assert row == others[np.linalg.norm(z[others] - query, axis=1).argmin()]


# Scores


def table(truth: np.ndarray, **said: np.ndarray) -> object:
    import pandas as pd

    group = np.full(len(truth), "seen")
    return pd.concat([decisions(name, group, truth, value) for name, value in said.items()])


def test_scores_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 400)
    guess = np.where(rng.random(400) < 0.6, truth, rng.integers(0, 5, 400))
    hard = np.eye(5)[guess]
    features = (rng.random((400, 5)) < 0.3).astype(float)
    rows = score(table(truth, hard=hard, features=features), resamples=200).set_index("method")
    assert rows.loc["hard", "accuracy"] == pytest.approx((guess == truth).mean())
    assert rows.loc["hard", "macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    own = np.eye(5)[truth]
    for name, said in {"hard": hard, "features": features}.items():
        assert rows.loc[name, "accuracy_one_vs_rest"] == pytest.approx((said == own).mean())
        f1 = np.mean([f1_score(own[:, a], said[:, a]) for a in range(5)])
        assert rows.loc[name, "macro_f1"] == pytest.approx(f1)
        both = np.mean([balanced_accuracy_score(own[:, a], said[:, a]) for a in range(5)])
        assert rows.loc[name, "balanced_accuracy"] == pytest.approx(both)
    exact = ((features == own).all(1)).mean()
    assert rows.loc["features", "accuracy"] == pytest.approx(exact)
    assert rows.loc["hard", "accuracy_low"] < rows.loc["hard", "accuracy"] < rows.loc["hard", "accuracy_high"]
    width = rows.loc["hard", "accuracy_high"] - rows.loc["hard", "accuracy_low"]
    p = (guess == truth).mean()
    assert width == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 400), rel=0.25)


def test_always_no_has_a_high_accuracy_of_decisions_and_nothing_else() -> None:
    truth = np.arange(14).repeat(10)
    rows = score(table(truth, always_no=np.zeros((140, 14))), resamples=10).iloc[0]
    assert rows["accuracy_one_vs_rest"] == pytest.approx(13 / 14)
    assert (
        rows["accuracy"] == rows["macro_f1"] == 0.0
        and rows["balanced_accuracy"] == 0.5
        and rows["null"] == 1.0
    )


def test_draws_count_by_their_weight_and_null_is_wrong() -> None:
    owner = np.array([0, 0, 0, 0, 1])
    labels = np.array([2, 2, 1, -1, 0])
    said = from_labels(labels, np.array([1.0, 1.0, 1.0, 1.0, 0.0]), owner, (3, 3))
    np.testing.assert_allclose(said, [[0.0, 0.25, 0.5], [0, 0, 0], [0, 0, 0]])
    rows = score(table(np.array([2, 0, 1]), draws=said), resamples=10).iloc[0]
    assert rows["accuracy"] == pytest.approx(0.5 / 3) and rows["null"] == pytest.approx(2.25 / 3)


def test_confusion_rows_add_up_to_one() -> None:
    truth = np.array([0, 0, 1, 3])
    said = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0.5, 0.25, 0], [0, 0, 0, 1.0]])
    matrix = confusion(table(truth, method=said), 4)
    np.testing.assert_allclose(matrix[[0, 1, 3]].sum(1), 1.0)
    np.testing.assert_allclose(matrix[0], [0.25, 0.25, 0, 0, 0.5])
    assert matrix[1].tolist() == [0, 0.5, 0.25, 0, 0.25] and np.isnan(matrix[2]).all()


def test_targets_of_one_entity_are_resampled_together() -> None:
    rng = np.random.default_rng(1)
    cluster = np.repeat(np.arange(40), 10)
    truth = rng.integers(0, 5, 400)
    # All targets of an entity are right, or none is: forty draws of a coin, not four hundred.
    guess = np.where((rng.random(40) < 0.6)[cluster], truth, (truth + 1) % 5)
    said = table(truth, hard=np.eye(5)[guess])
    alone, together = (score(said, cluster=c).iloc[0] for c in (None, cluster))
    assert alone["accuracy"] == together["accuracy"] and together["n_clusters"] == 40
    width = [row["accuracy_high"] - row["accuracy_low"] for row in (alone, together)]
    assert width[1] == pytest.approx(width[0] * np.sqrt(10), rel=0.2)


def test_the_most_likely_attribute_is_one_or_none() -> None:
    share = np.array([[0.2, 0.5, 0.3], [0.0, 0.0, 0.0], [0.4, 0.1, 0.4]])
    np.testing.assert_array_equal(most_likely(share), [[0, 1, 0], [0, 0, 0], [1, 0, 0]])
