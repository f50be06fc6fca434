"""Folds: every level balanced to within one study, and the labels table around them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_schema.errors import UsageError
from cache_schema.layout import TARGETS
from preprocess.folds import assign_folds
from preprocess.labels import make_table, read_labels_and_folds


def like_the_competition(studies=2019, seed=0):
    """Labels with the competition's prevalences (reference 1.2) and 87 segmented studies."""
    rng = np.random.default_rng(seed)
    prevalences = (0.0723, 0.1412, 0.0362, 0.0535, 0.0802, 0.1372, 0.1947)
    table = pd.DataFrame({f"C{n}": rng.random(studies) < p for n, p in enumerate(prevalences, start=1)}).astype(int)
    table.insert(0, "patient_overall", table.max(axis=1))
    table["segmented"] = (rng.permutation(studies) < 87).astype(int)
    table.index = pd.Index([f"1.2.826.{n}" for n in rng.permutation(studies)], name="id")
    return table


def spread(table, folds):
    """How far apart the folds are, for each label and for their sizes."""
    counts = table.assign(size=1).groupby(folds).sum()
    return counts.max() - counts.min()


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_every_level_the_segmentations_and_the_sizes_are_balanced_to_within_one(folds):
    table = like_the_competition()
    assert spread(table, assign_folds(table, folds)).max() <= 1


@pytest.mark.parametrize("seed", range(8))
def test_small_sets_are_balanced_too(seed):
    table = like_the_competition(24, seed).assign(segmented=[1] * 16 + [0] * 8)
    found = spread(table, assign_folds(table, 2))
    assert found["size"] == 0 and found["segmented"] <= 1 and found.max() <= 2


def test_the_order_of_rows_does_not_matter():
    table = like_the_competition(300)
    shuffled = table.sample(frac=1, random_state=1)
    assert assign_folds(shuffled, 5).sort_index().equals(assign_folds(table, 5).sort_index())


def test_unknown_labels_are_spread_as_a_label_of_their_own():
    table = like_the_competition(100).astype("Int8")
    table.iloc[:33] = pd.NA
    folds = assign_folds(table, 5)
    unknown = folds[table["C1"].isna()].value_counts()
    assert unknown.max() - unknown.min() <= 1


def test_studies_with_a_fold_keep_it_and_the_others_even_things_out():
    table = like_the_competition(500)
    fixed = assign_folds(table.iloc[:380], 5)
    found = assign_folds(table, 5, fixed)
    assert found[fixed.index].equals(fixed) and spread(table, found).max() <= 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.booleans()] * 3), max_size=40), st.integers(2, 6))
def test_any_labels_get_folds_of_even_size(rows, folds):
    table = pd.DataFrame(rows, columns=list("abc"), index=[f"{n}" for n in range(len(rows))]).astype("Int8")
    found = assign_folds(table, folds)
    sizes = found.value_counts().reindex(range(folds), fill_value=0)
    assert found.between(0, folds - 1).all() and sizes.max() - sizes.min() <= 1


def csv(path, ids, **columns):
    pd.DataFrame({"StudyInstanceUID": ids, **dict.fromkeys(TARGETS, 0), **columns}).to_csv(path, index=False)
    return path


INDEX = pd.DataFrame({"id": ["1.1", "1.2", "1.3"], "segmentation_digest": ["a", None, None]})


def test_a_csv_of_folds_is_taken_as_it_is(tmp_path):
    folds = csv(tmp_path / "folds.csv", ["1.1", "1.3", "9.9"], fold=[4, 0, 1])
    table = make_table(INDEX, read_labels_and_folds(folds, folds), None, "a test").frame
    assert table["fold"].tolist() == [4, pd.NA, 0] and table["C1"].tolist() == [0, pd.NA, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("StudyInstanceUID,patient_overall\n1.1,0\n", "no column C1"),
        ("id,patient_overall,C1,C2,C3,C4,C5,C6,C7\n", "no column StudyInstanceUID"),
        ("StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n1.1,0,0,0,2,0,0,0,0\n", "C3 of 1.1"),
        (
            "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7\n" + "1.1,0" + ",0" * 7 + "\n1.1,1" + ",0" * 7,
            "1.1 has values that differ",
        ),
        ("", "not a readable CSV"),
    ],
)
def test_a_wrong_csv_of_labels_is_one_clear_line(tmp_path, text, words):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_labels_and_folds(tmp_path / "labels.csv", None)


@pytest.mark.parametrize("folds", ["1", "0", "-3", "1000", "nowhere.csv"])
def test_wrong_folds_are_one_clear_line(folds):
    with pytest.raises(UsageError):
        read_labels_and_folds(None, folds)


def test_a_fold_that_is_no_number_is_one_clear_line(tmp_path):
    path = csv(tmp_path / "folds.csv", ["1.1", "1.2"], fold=[0.5, 1])
    with pytest.raises(UsageError, match="not a whole number"):
        read_labels_and_folds(None, path)


def test_empty_labels_are_unknown_and_not_zero(tmp_path):
    path = csv(tmp_path / "labels.csv", ["1.1", "1.2", "1.3"], C5=[1, None, 0], patient_overall=[1, None, 0])
    assert make_table(INDEX, read_labels_and_folds(path, 2), None, "a test").frame["C5"].tolist() == [1, pd.NA, 0]
