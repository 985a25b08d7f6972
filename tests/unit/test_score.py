"""Scores of readers: exact answers, what is judged of an answer, calibration, and what is refused of a file of answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from inversescope.errors import InputError
from inversescope.fcr.exact import exact_reference
from inversescope.fcr.posterior import exact_posteriors
from inversescope.kernel.distances import distance_of
from inversescope.reader.answers import SHRINKAGE, LinearProbe
from inversescope.reader.predictions import Asked, check_predictions, read_predictions, to_the_same
from inversescope.reader.score import ALL, BINS, CERTAIN, Answers, judged, reliability, scores
from inversescope.reader.shown import shared

VALUES = 5


def distributions(rng: np.random.Generator, n: int) -> np.ndarray:
    """Random ones (n, VALUES), some values impossible."""
    shares = rng.gamma(0.5, size=(n, VALUES)) * (rng.random((n, VALUES)) < 0.7)
    shares[:, 0] += 1e-3
    return shares / shares.sum(1, keepdims=True)


@pytest.mark.parametrize("kind", ["hard", "gaussian"])
def test_exact_answers_are_the_weighted_labels(kind: str) -> None:
    rng = np.random.default_rng(0)
    z, reference = rng.normal(size=(4, 6)) + np.eye(6)[0], rng.normal(size=(90, 6)) + 3 * np.eye(6)[0]
    z[3] = -np.eye(6)[0]  # nobody is near
    labels = {"a": rng.integers(-1, 3, 90), "b": rng.integers(0, 2, 90)}
    epsilon = 0.4 if kind == "hard" else 0.2
    found = exact_posteriors(
        distance_of("cosine").prepare(z),
        reference,
        labels,
        {"a": 3, "b": 2},
        epsilon,
        "cosine",
        kind,
        block=32,
    )
    for t in range(4):
        d = np.array([1 - z[t] @ r / np.linalg.norm(z[t]) / np.linalg.norm(r) for r in reference])
        k = (d < epsilon) * 1.0 if kind == "hard" else np.exp(-((d / epsilon) ** 2)) * (d < 3.7 * epsilon)
        for name, size in (("a", 3), ("b", 2)):
            mass = np.array([k[labels[name] == v].sum() for v in range(size)])
            if mass.sum():
                np.testing.assert_allclose(found[name][t], mass / mass.sum(), atol=1e-6)
            else:
                assert np.isnan(found[name][t]).all()
    assert kind == "gaussian" or np.isnan(found["b"][3]).all()
    # What the workflow calls the exact rate is what is said of the target's own value.
    own = rng.integers(0, 2, 4)
    rate = exact_reference(
        distance_of("cosine").prepare(z), reference, {"b": own}, {"b": labels["b"]}, [epsilon], "cosine", kind
    ).match["b"][:, 0]
    np.testing.assert_allclose(found["b"][np.arange(4), own], rate, atol=1e-12)


def test_answers_are_judged_by_the_book() -> None:
    rng = np.random.default_rng(1)
    exact, said, prior = distributions(rng, 40), distributions(rng, 40), distributions(rng, 40) * 0.5 + 0.1
    said[7] = np.nan
    samples = rng.uniform(0, 50, 40)
    table = judged(exact, prior, Answers(said, samples))
    for i in range(40):
        q = prior[i] if i == 7 else said[i]
        n = 0.0 if i == 7 else samples[i]
        joined = (n * q + prior[i]) / (n + 1)
        entropy = -sum(p * np.log2(p) for p in exact[i] if p > 0)
        cross = -sum(p * np.log2(one) for p, one in zip(exact[i], joined, strict=True) if p > 0)
        # Brier's score of a value drawn from the exact answer, less that of the exact answer itself.
        brier = [
            sum(p * ((a - np.eye(VALUES)[v]) ** 2).sum() for v, p in enumerate(exact[i]))
            for a in (q, exact[i])
        ]
        row = table.loc[i]
        assert row["bits"] == pytest.approx(max(0.0, cross - entropy), abs=1e-12)
        assert row["brier"] == pytest.approx(brier[0] - brier[1], abs=1e-12)
        assert row["confidence"] == q.max() and row["right"] == exact[i, q.argmax()]
        assert row["off"] == pytest.approx(abs(row["confidence"] - row["right"]))


def test_the_exact_answer_is_at_the_floor_and_a_wrong_certainty_is_finite() -> None:
    prior = np.full((2, VALUES), 1 / VALUES)
    exact = np.eye(VALUES)[[0, 1]]
    best = judged(exact, prior, Answers.stated(exact))
    assert (best["bits"] < 0.002).all() and (best[["brier", "off"]] == 0).all(axis=None)
    wrong = judged(exact, prior, Answers.point(np.array([1, 0]), VALUES, CERTAIN))
    assert np.allclose(wrong["bits"], np.log2(VALUES * (CERTAIN + 1))) and (wrong["right"] == 0).all()
    # One sample is worth half a prior.
    one = judged(exact, prior, Answers.point(np.array([1, 0]), VALUES, 1.0))
    assert np.allclose(one["bits"], np.log2(2 * VALUES))
    assert np.isnan(Answers.point(np.array([-1]), VALUES, 1.0).shares).all()


def answered(
    rng: np.random.Generator, confidence: np.ndarray, right: np.ndarray, reader: str
) -> pd.DataFrame:
    n = len(confidence)
    frame = pd.DataFrame({"confidence": confidence, "right": right, "bits": rng.random(n), "brier": 0.1})
    frame = frame.assign(off=(frame["confidence"] - frame["right"]).abs(), reader=reader, estimator="")
    sites = np.array(["L0H0", "L1.resid_post"])[np.arange(n) % 2]
    return frame.assign(
        site=sites, feature=np.array(["a", "b"])[np.arange(n) // 2 % 2], target_id=np.arange(n) % 25
    )


def test_calibration_and_intervals() -> None:
    """A reader that is as sure as it should be, on average, and one that is too sure by .2 everywhere."""
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.25, 0.95, 2000)
    off = rng.choice([-0.05, 0.05], 2000)
    good = answered(rng, confidence, confidence + off, "good")
    sure = answered(rng, confidence, confidence - 0.2, "sure")
    prior = answered(rng, np.full(2000, 0.2), np.full(2000, 0.2), "prior").assign(bits=2.0)
    both = pd.concat([good, sure, prior], ignore_index=True)
    table = scores(both, 400, 0.95, 0)
    total = table[(table["group"] == ALL) & (table["feature"] == ALL)].set_index("reader")
    assert total.loc["good", "calibration"] < 0.012 and total.loc["good", "off"] == pytest.approx(0.05)
    assert total.loc["sure", "calibration"] == pytest.approx(0.2)
    assert total.loc["prior", "told"] == 0 and total.loc["good", "told"] == pytest.approx(
        1 - good["bits"].mean() / 2
    )
    for name in ("bits", "right", "off", "calibration"):
        width = total[f"{name}_high"] - total[f"{name}_low"]
        assert (width >= 0).all() and (width < 0.06).all()
        assert (total[f"{name}_low"] <= total[name] + 1e-12)[["sure", "prior"]].all()
    # By hand.
    mean = [
        (good["confidence"] - good["right"])[(good["confidence"] * BINS).astype(int) == b].sum()
        for b in range(BINS)
    ]
    assert total.loc["good", "calibration"] == pytest.approx(np.abs(mean).sum() / 2000)
    # All, two groups of sites, two features.
    assert len(table) == 3 * 5 and set(table["group"]) == {ALL, "heads", "residual"}
    curve = reliability(both, 400, 0.95, 0)
    of = curve[curve["reader"] == "sure"]
    assert of["n"].sum() == 2000 and np.allclose(of["confidence"] - of["right"], 0.2)
    assert (of["right_low"] <= of["right"]).all() and (of["right"] <= of["right_high"]).all()


def test_only_who_answers_all_questions_is_compared() -> None:
    rng = np.random.default_rng(3)
    full = answered(rng, rng.random(100), rng.random(100), "full")
    half = full[full["feature"] == "a"].assign(reader="half")
    others = pd.concat([full, half], ignore_index=True)
    assert set(to_the_same(others, full)["reader"]) == {"full"}
    asked = full[(full["feature"] == "a") & (full["site"] == "L0H0")]
    same = to_the_same(others, asked)
    assert set(same["reader"]) == {"full", "half"} and len(same) == 2 * len(asked)


def test_a_bandwidth_without_any_answer_is_told() -> None:
    rng = np.random.default_rng(3)
    nothing = answered(rng, rng.random(100), rng.random(100), "prior").iloc[:0]
    with pytest.raises(InputError, match=r"within the bandwidth.*wider"):
        shared(nothing)


def test_the_linear_probe_is_discriminant_analysis() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 4, 600)
    z = rng.normal(size=(600, 6)) + rng.normal(size=(4, 6))[labels] + 3.0
    queries = rng.normal(size=(20, 6)) + 3.0
    hidden = np.where(rng.random(600) < 0.2, -1, labels)
    shares = LinearProbe(z).shares(hidden, queries, 6)
    known = hidden >= 0
    probe = LinearDiscriminantAnalysis(solver="lsqr").fit(z[known], hidden[known])
    np.testing.assert_allclose(shares[:, :4], probe.predict_proba(queries), atol=20 * SHRINKAGE)
    assert (shares[:, 4:] == 0).all() and np.allclose(shares.sum(1), 1)
    # Certain directions: no spread at all within labels.
    sure = LinearProbe(np.eye(3)[[0, 1, 2, 0, 1, 2]]).shares(np.array([0, 1, 2, 0, 1, 2]), np.eye(3), 3)
    np.testing.assert_allclose(sure, np.eye(3), atol=1e-3)


# ----------------------------------------------------------------------------------------------------------- files of answers
ASKED = Asked(["L0H0", "L1.resid_post"], {"name": ["Anna", "Ben"], "count": ["1", "2", "3"]}, 3)
Change = Callable[[pd.DataFrame], Any]


def good_answers() -> pd.DataFrame:
    rows = [
        {"target_id": target, "site": site, "feature": name, "value": value, "probability": 1 / len(values)}
        for target in range(3)
        for site in ("L0H0", "blocks.1.hook_resid_post")
        for name, values in ASKED.values.items()
        for value in values
    ]
    return pd.DataFrame(rows)


def good_samples() -> pd.DataFrame:
    return pd.DataFrame({"target_id": [0, 1, 2, 2], "site": "L0H0", "text": ["a", "b", "c", "c"]})


def test_good_answers_pass() -> None:
    frame = check_predictions(good_answers(), ASKED, "x.parquet")
    assert set(frame["site"]) == set(ASKED.sites) and len(frame) == 30
    part = good_answers().query("site == 'L0H0' and feature == 'count'")
    counts = part.assign(value=part["value"].astype(int), extra="ignored")
    assert check_predictions(counts, ASKED, "x")["value"].tolist() == ["1", "2", "3"] * 3
    assert list(check_predictions(good_samples(), ASKED, "x").columns) == ["target_id", "site", "text"]


def cell(row: int, column: str, value: Any) -> Change:
    return lambda frame: frame.assign(
        **{column: [value if i == row else v for i, v in enumerate(frame[column])]}
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.drop(columns="probability"), "no column probability"),
        (lambda f: f.drop(columns="site"), "no column site"),
        (lambda f: f.head(0), "no row"),
        (cell(4, "target_id", 3), "row 4: there is no target 3.*targets are 0 to 2"),
        (cell(4, "target_id", -1), "row 4: there is no target -1"),
        (cell(4, "target_id", 0.5), "target_id is not a column of integers"),
        (cell(4, "target_id", None), "row 4: target_id is missing"),
        (cell(2, "site", "L7H0"), "row 2: unknown site 'L7H0'.*L0H0, L1.resid_post"),
        (cell(2, "site", "{x} nonsense"), "row 2: unknown site '{x} nonsense'"),
        (cell(2, "site", 5), "site is not a column of text"),
        (cell(1, "feature", "colour"), "row 1: unknown feature 'colour'.*name, count"),
        (cell(0, "value", "Carl"), "row 0: feature name has no value 'Carl'.*Anna, Ben"),
        (cell(0, "value", None), "row 0: value is missing"),
        (cell(3, "probability", np.nan), "row 3: probability is missing"),
        (cell(3, "probability", -0.1), "row 3: probability -0.1 is negative"),
        (cell(3, "probability", 0.5), "probabilities of count of target 0 at L0H0 sum to 1.16667"),
        (cell(3, "probability", np.inf), "of target 0 at L0H0 sum to inf"),
        (
            lambda f: f.assign(probability=f["probability"].astype(str)),
            "probability is not a column of numbers",
        ),
        (lambda f: f.assign(probability=True), "probability is not a column of numbers"),
        (
            lambda f: pd.concat([f, f.head(1)]),
            "row 30: name of target 0 at L0H0 has value 'Anna' a second time",
        ),
        (lambda f: f[f["target_id"] != 1], r"no answer about name at L0H0 for target 1 \(1 of 3 missing\)"),
        (lambda f: f.iloc[2:], "no answer about name at L0H0 for target 0"),
    ],
)
def test_bad_answers_are_refused(change: Change, told: str) -> None:
    with pytest.raises(InputError, match=f"^mine.parquet.*{told}"):
        check_predictions(change(good_answers()), ASKED, "mine.parquet")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.drop(columns="site"), "no column site"),
        (cell(1, "text", None), "row 1: text is missing"),
        (cell(1, "text", 1.5), "text is not a column of text"),
        (lambda f: f.head(2), "no answer about site L0H0 for target 2"),
    ],
)
def test_bad_samples_are_refused(change: Change, told: str) -> None:
    with pytest.raises(InputError, match=f"^mine.csv.*{told}"):
        check_predictions(change(good_samples()), ASKED, "mine.csv")


def test_files_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(b"PAR1 not a table")
    (tmp_path / "notes.txt").write_text("x")
    for name, told in (
        ("cut.parquet", "cannot be read"),
        ("notes.txt", "is neither"),
        ("none.csv", "does not exist"),
    ):
        with pytest.raises(InputError, match=f"{name} {told}"):
            read_predictions(tmp_path / name)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="empty.csv cannot be read"):
        read_predictions(tmp_path / "empty.csv")
    good_answers().to_csv(tmp_path / "good.csv", index=False)
    frame = check_predictions(
        read_predictions(tmp_path / "good.csv").query("feature == 'name'"), ASKED, "good.csv"
    )
    assert len(frame) == 12
