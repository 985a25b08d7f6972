"""`inversescope score`: a file of answers of somebody else's reader, checked, and judged beside controls and variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from inversescope.context import Context, need
from inversescope.errors import InputError, first_line
from inversescope.fcr.posterior import as_shares, label_sums
from inversescope.reader.answers import Truth, exact_answers
from inversescope.reader.questions import asked_targets
from inversescope.reader.score import READER, Answers, judged
from inversescope.sites import Site
from inversescope.store import read_table
from inversescope.workflow import paths

STATED = ("target_id", "site", "feature", "value", "probability")
SAMPLED = ("target_id", "site", "text")
FORMS = f"write either {', '.join(STATED)}, or {', '.join(SAMPLED)} (docs/score.md)"
#: Probabilities of a question may miss a sum of 1 by so much: they are divided by it.
SLACK = 1e-3
#: The estimator column of somebody else's answers.
OWN = "yours"


@dataclass(frozen=True)
class Asked:
    """What may be asked about: labels of sites, values by feature, and how many targets there are."""

    sites: list[str]
    values: Mapping[str, list[str]]
    n_targets: int


def answers_to(context: Context, path: Path) -> pd.DataFrame:
    """Judge the answers of a file, beside those that controls and variants give to the same questions.

    Returns:
        Rows as `score_readers` writes them; those of the file have its stem as `reader` and `OWN` as `estimator`.

    Raises:
        InputError: the file has a fault; the message names it. Or nothing was scored of the experiment yet.
    """
    truth, targets = Truth.of(context), asked_targets(context)
    frame, exact = read_predictions(path), exact_answers(context, truth)
    frame = check_predictions(frame, Asked(context.plan.labels, truth.values, len(targets)), str(path))
    said = sampled(context, frame, truth) if "text" in frame else stated(frame, truth)
    # Answers are in the order of the questions' ids, exact ones in that of the test split.
    row, parts = np.searchsorted(truth.targets, targets), []
    for (label, name), answers in said.items():
        wanted = exact[label, name][row]
        known = ~np.isnan(wanted).any(1)
        prior = np.broadcast_to(truth.prior[name], wanted.shape)
        mine = judged(wanted[known], prior[known], Answers(answers.shares[known], answers.samples[known]))
        parts.append(mine.assign(site=label, feature=name, target_id=targets[known]))
    own = pd.concat(parts, ignore_index=True).assign(reader=path.stem, estimator=OWN)
    files = [context.path(paths.ANSWERS, group=group) for group in ("", "frontier/")]
    others = [read_table(file) for file in (need(files[0], "score_readers"), *files[1:]) if file.exists()]
    return pd.concat([own, *(to_the_same(one, own) for one in others)], ignore_index=True)


def to_the_same(answers: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """Judged answers to the questions of `own`, of the readers that answer all of these."""
    keys = ["site", "feature", "target_id"]
    answers = answers.assign(**{name: answers[name].astype(str) for name in [*READER, *keys[:2]]})
    same = answers.merge(own[keys], on=keys)
    count = same.groupby(READER)["bits"].transform("size")
    return same[count == len(own)]


# --------------------------------------------------------------------------------------------------------- reading a file
def read_predictions(path: Path) -> pd.DataFrame:
    """Read a file of answers, parquet or CSV. Raises `InputError` if it cannot be read as a table."""
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path).to_pandas()
        if path.suffix == ".csv":
            return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", "name the file of your reader's answers") from None
    except (pa.ArrowException, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as a table ({first_line(error)})", FORMS) from None
    raise InputError(f"{path} is neither a .parquet nor a .csv file", FORMS)


@dataclass
class _Rows:
    """Rows of a file while they are checked."""

    frame: pd.DataFrame
    source: str

    def refuse(self, bad: pd.Series, what: str, remedy: str) -> None:
        """Raise `InputError` naming the first row of which something is wrong; `what` may quote its fields."""
        if bad.any():
            row = int(bad.to_numpy().argmax())
            raise InputError(
                f"{self.source}, row {row}: {what.format(**self.frame.loc[row].to_dict())}", remedy
            )


def check_predictions(frame: pd.DataFrame, asked: Asked, source: str) -> pd.DataFrame:
    """Check answers row by row; returns them with sites as labels, and values and texts as text.

    Raises:
        InputError: on the first fault, naming file, row and remedy.
    """
    columns = SAMPLED if "text" in frame and "probability" not in frame else STATED
    lacking = [name for name in columns if name not in frame]
    if lacking:
        raise InputError(f"{source} has no column {lacking[0]}", FORMS)
    if frame.empty:
        raise InputError(f"{source} has no row", FORMS)
    frame = frame[list(columns)].reset_index(drop=True)
    rows = _Rows(frame, source)
    for name in columns:
        rows.refuse(frame[name].isna(), f"{name} is missing", "give it in every row")
    frame["target_id"] = _integers(frame["target_id"], source)
    for name in ("site", "feature", "value", "text"):
        if name in frame:
            frame[name] = _texts(frame[name], source)
    last = asked.n_targets - 1
    unknown = ~frame["target_id"].between(0, last)
    rows.refuse(unknown, "there is no target {target_id}", f"targets are 0 to {last}")
    labels = frame["site"].map({text: _label(text) for text in frame["site"].unique()})
    rows.refuse(~labels.isin(asked.sites), "unknown site '{site}'", _one_of(asked.sites))
    frame["site"] = labels
    if columns == STATED:
        _check_values(rows, asked)
        _check_probabilities(frame, source)
    _check_complete(frame, ["site", "feature"] if columns == STATED else ["site"], asked.n_targets, source)
    return frame


def _check_values(rows: _Rows, asked: Asked) -> None:
    frame = rows.frame
    rows.refuse(
        ~frame["feature"].isin(list(asked.values)), "unknown feature '{feature}'", _one_of(list(asked.values))
    )
    for name, values in asked.values.items():
        wrong = (frame["feature"] == name) & ~frame["value"].isin(values)
        rows.refuse(wrong, "feature {feature} has no value '{value}'", _one_of(values))
    rows.refuse(
        frame.duplicated(["target_id", "site", "feature", "value"]),
        "{feature} of target {target_id} at {site} has value '{value}' a second time",
        "give each value once",
    )
    number = frame["probability"]
    if not pd.api.types.is_numeric_dtype(number) or pd.api.types.is_bool_dtype(number):
        raise InputError(f"{rows.source}: probability is not a column of numbers", "write floats from 0 to 1")
    rows.refuse(number < 0, "probability {probability} is negative", "write floats from 0 to 1")


def _check_probabilities(frame: pd.DataFrame, source: str) -> None:
    total = frame.groupby(["site", "feature", "target_id"], sort=False)["probability"].sum()
    off = ~((total - 1).abs() <= SLACK)
    if off.any():
        site, feature, target = total.index[off.to_numpy().argmax()]
        raise InputError(
            f"{source}: probabilities of {feature} of target {target} at {site} sum to {total[off].iloc[0]:.6g}",
            "let them sum to 1; a value that is left out has probability 0",
        )


def _check_complete(frame: pd.DataFrame, key: list[str], n_targets: int, source: str) -> None:
    """Whoever answers at a site (and about a feature) answers for all targets, or the easy ones could be chosen."""
    given = frame.drop_duplicates([*key, "target_id"]).groupby(key, sort=False)["target_id"]
    short = given.size()
    if (short < n_targets).any():
        names = short.index[int((short < n_targets).to_numpy().argmax())]
        group = given.get_group(names if len(key) > 1 else (names,))
        missing = np.setdiff1d(np.arange(n_targets), group)
        where = f"{names[1]} at {names[0]}" if len(key) > 1 else f"site {names}"
        raise InputError(
            f"{source} has no answer about {where} for target {missing[0]} ({len(missing)} of {n_targets} missing)",
            "answer for every target, or leave the site or feature out",
        )


def _integers(column: pd.Series, source: str) -> pd.Series:
    if not pd.api.types.is_integer_dtype(column):
        raise InputError(f"{source}: target_id is not a column of integers", "copy it from the questions")
    return column.astype(np.int64)


def _texts(column: pd.Series, source: str) -> pd.Series:
    """Text as it is; integers, as CSV files have them of features such as counts, as text."""
    if pd.api.types.is_integer_dtype(column):
        return column.astype(str)
    if not column.map(lambda one: isinstance(one, str)).all():
        raise InputError(f"{source}: {column.name} is not a column of text", FORMS)
    return column.astype(str).astype(object)


def _label(text: str) -> str:
    """A site's label, whichever way it is written; the text itself if it is none."""
    try:
        return Site.parse(text).label
    except InputError:
        return text


def _one_of(names: list[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"use one of {', '.join(names[:most])}{more}"


# ----------------------------------------------------------------------------------------------------------------- answers
def stated(frame: pd.DataFrame, truth: Truth) -> dict[tuple[str, str], Answers]:
    """Checked probabilities as answers, (site, feature) -> (targets, V)."""
    said = {}
    for (label, name), rows in frame.groupby(["site", "feature"], sort=False):
        shares = np.zeros((len(truth.targets), truth.size(str(name))))
        value = pd.Index(truth.values[str(name)]).get_indexer(rows["value"])
        shares[rows["target_id"], value] = rows["probability"]
        said[str(label), str(name)] = Answers.stated(as_shares(shares))
    return said


def sampled(context: Context, frame: pd.DataFrame, truth: Truth) -> dict[tuple[str, str], Answers]:
    """Checked samples as answers to all features; a text that is no prompt of the task says nothing."""
    labels = context.labels_of(context.task.parse(frame["text"].tolist()))
    said = {}
    for label, rows in frame.groupby("site", sort=False):
        target, weight = rows["target_id"].to_numpy(), np.ones(len(rows))
        for name in truth.values:
            codes = truth.codes(name, labels[name][rows.index])
            count = label_sums(target, codes, weight, len(truth.targets), truth.size(name))
            said[str(label), name] = Answers(as_shares(count), count.sum(1))
    return said
