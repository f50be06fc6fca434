"""What is kept as groups answers as the table of all pairs did, on random graphs of runs and tables."""

from itertools import product
from typing import NamedTuple

import pair_lineage as pairs
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_schema.tables import content_digest, read_table, write_table
from trainer.leakage import groups, lineage
from trainer.leakage.groups import LABEL, SEGMENTATION, pair_frame
from trainer.leakage.lineage import ForbiddenScore

STUDIES = ["1", "1.2", "1.2.3", "2", "a", "aB", "b0", "z"]
"""one name begins another: their order in a way must be that of the whole way"""
some = st.lists(st.sampled_from(STUDIES), unique=True, max_size=len(STUDIES))
kinds = st.sampled_from([LABEL, SEGMENTATION])


class Both(NamedTuple):
    """One artefact's exposure, kept in both ways."""

    name: str
    groups: groups.Exposure
    pairs: pd.DataFrame


def both(name: str, parts: list) -> Both:
    """parts: (name of a function of lineage, its arguments with Both where an exposure is meant)."""

    def of(module, side: str):
        return [getattr(module, function)(*(_side(each, side) for each in given)) for function, given in parts]

    return Both(name, lineage.merged(of(lineage, "groups")), pairs.merged(of(pairs, "pairs")))


def _side(value, side: str):
    if isinstance(value, Both):
        return getattr(value, side)
    return [_side(each, side) for each in value] if isinstance(value, list) else value


@st.composite
def graphs(draw) -> list[Both]:
    """Runs and tables, each from some of those before it."""
    made = [Both("none", (), pairs.merged([]))]
    for number in range(draw(st.integers(1, 7))):
        before = st.sampled_from(made)
        kind = draw(st.sampled_from(["run", "predictions", "table", "labelled table"]))
        if kind == "run":
            name = f"stage-{draw(st.sampled_from('AB'))}/fold{draw(st.integers(0, 1))}-seed{number}"
            parts = [("used", [name, draw(some), draw(kinds)]) for _ in range(draw(st.integers(0, 2)))]
            if draw(st.booleans()):
                parts.append(("unknown", [name, draw(st.sampled_from(["boxes=mine.parquet", "pseudo=mine.parquet"]))]))
            parts += [("into_weights", [name, draw(before), draw(some)]) for _ in range(draw(st.integers(0, 2)))]
            if draw(st.booleans()):
                parts.append(("into_weights", [name, draw(before), None, draw(st.sampled_from(["backbone", ""]))]))
            if draw(st.booleans()):
                parts.append(("into_rows", [name, draw(before), draw(some)]))
        elif kind == "predictions":
            name = f"stage-A/fold0-seed{number}"
            parts = [("of_weights", [name, draw(before)]), ("into_rows", [name, draw(before), draw(some)])]
        elif kind == "table":
            name = draw(st.sampled_from(["study_boxes", "vertebra_ratios"]))
            runs = [[draw(before), draw(some)] for _ in range(draw(st.integers(0, 4)))]
            parts = [("of_predictions", [name, runs])]
        else:
            name = "pseudo_labels"
            parts = [("own_labels", [name, draw(some)]), ("into_rows", [name, draw(before), draw(some)])]
        made.append(both(name, parts))
    return made


def refusal(module, learns_from: str, exposure, scored: list[str]) -> str:
    try:
        module.refuse_exposed(learns_from, exposure, scored)
        return ""
    except ForbiddenScore as error:
        return str(error)


@settings(max_examples=60, deadline=None)
@given(graphs(), some)
def test_groups_hold_the_pairs_and_answer_alike(made, scored):
    for one in made:
        pd.testing.assert_frame_equal(pair_frame(one.groups), one.pairs)
        for learns_from in ("segmentations", "labels"):
            ours = refusal(lineage, learns_from, one.groups, scored)
            assert ours == refusal(pairs, learns_from, one.pairs, scored)
        unknown = one.pairs[one.pairs["kind"] == "unknown"]
        assert [tuple(pair) for pair in lineage.unknown_inputs(one.groups)] == list(unknown.itertuples(index=False))
        own = one.pairs[one.pairs["row"] == ""]
        for kind in (LABEL, SEGMENTATION):
            assert lineage.seen_by_weights(one.groups, kind) == set(own.loc[own["kind"] == kind, "study"])
        assert lineage.seen_at_all(one.groups) == set(one.pairs["study"]) - {""}
    exposed = [
        module.other_segmentations({f"{n} {one.name}": (getattr(one, side), scored) for n, one in enumerate(made)})
        for module, side in ((lineage, "groups"), (pairs, "pairs"))
    ]
    assert exposed[0].to_csv() == exposed[1].to_csv()


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_an_exposure_file_of_pairs_or_of_groups_is_read_as_it_was_written(made):
    for one in made:
        assert groups.from_table(groups.to_table(one.groups)) == one.groups
        read = groups.from_table(one.pairs)
        pd.testing.assert_frame_equal(pair_frame(read), one.pairs)
        assert groups.from_table(groups.to_table(read)) == read


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_groups_do_not_depend_on_the_order_of_runs(data):
    made = data.draw(graphs())
    runs = [(data.draw(st.sampled_from(made)).groups, data.draw(some)) for _ in range(3)]
    orders = (runs, runs[::-1], data.draw(st.permutations(runs)))
    assert len({lineage.of_predictions("study_boxes", order) for order in orders}) == 1


def plan_of_five_folds(studies: int) -> groups.Exposure:
    """Of pseudo labels from nine runs a fold, each with study boxes, as the reference's plan makes them."""
    ids = [f"1.2.826.0.1.3680043.{number}" for number in range(studies)]
    folds = [ids[fold::5] for fold in range(5)]
    other = [[id for id in ids if id not in set(fold)] for fold in folds]
    runs = [(lineage.used(f"bbox-01B/fold{fold}-seed1", other[fold], SEGMENTATION), folds[fold]) for fold in range(5)]
    boxes, seen = lineage.of_predictions("study_boxes", runs), []
    for variant in ("02G", "04A", "04F"):
        for fold, own in enumerate(folds):
            for seed in (1, 2, 3):
                name = f"vertebrae-{variant}/fold{fold}-seed{seed}"
                parts = [lineage.used(name, other[fold], SEGMENTATION)]
                if variant != "02G":
                    parts += [lineage.into_weights(name, boxes, rows=other[fold]), lineage.into_rows(name, boxes, own)]
                seen.append((lineage.merged(parts), own))
    ratios = lineage.of_predictions("vertebra_ratios", seen)
    return lineage.merged([lineage.own_labels("pseudo_labels", ids), lineage.into_rows("pseudo_labels", ratios, ids)])


def test_the_groups_of_a_table_do_not_grow_with_its_studies():
    few, many = plan_of_five_folds(20), plan_of_five_folds(200)
    assert len(few) == len(many) and len(pair_frame(many)) == 200 + 200 * 200


def test_a_table_names_every_run_behind_a_row():
    for fold in range(5):
        behind = {
            group.way.split(" <- ")[-1]
            for group in plan_of_five_folds(20)
            if str(fold) in {row[-1] for row in group.rows}
        }
        for variant, seed in product(("02G", "04A", "04F"), (1, 2, 3)):
            assert f"vertebrae-{variant}/fold{fold}-seed{seed}" in behind


def test_a_file_is_read_with_pandas_and_by_rows(tmp_path):
    pseudo = plan_of_five_folds(20)
    digest = write_table(tmp_path / "pseudo_labels.exposure.parquet", groups.to_table(pseudo), "test", {})
    table = pd.read_parquet(tmp_path / "pseudo_labels.exposure.parquet")
    assert list(table) == ["rows", "studies", "kind", "steps", "way"]
    long = table.assign(row=table["rows"].str.split(" "), study=table["studies"].str.split(" "))
    long = long.explode("row").explode("study")
    assert len(long.drop_duplicates(["row", "study", "kind"])) == 20 + 20 * 20
    assert digest == content_digest(
        groups.to_table(groups.from_table(read_table(tmp_path / "pseudo_labels.exposure.parquet")))
    )


@pytest.mark.parametrize("learns_from", ["segmentations", "labels"])
def test_a_table_of_earlier_versions_refuses_with_the_same_words(learns_from):
    pseudo = plan_of_five_folds(20)
    old = groups.from_table(pair_frame(pseudo))
    run = [
        lineage.merged([lineage.into_weights("slice_fracture-04F/fold0-seed1", each, rows=STUDY_1)])
        for each in (pseudo, old)
    ]
    assert refusal(lineage, learns_from, run[0], STUDY_1) == refusal(lineage, learns_from, run[1], STUDY_1)
    assert (learns_from == "labels") == bool(refusal(lineage, learns_from, run[0], STUDY_1))


STUDY_1 = ["1.2.826.0.1.3680043.1"]
