"""Labels and folds from a CSV: read with the values written there, or refused by file and line with nothing written."""

import shutil

import pandas as pd
import pytest
from made_studies import make_study
from tiny_rsna import files_of

from cache_schema import TARGETS, Cache, CacheWriter
from cache_schema.errors import UsageError
from preprocess.cli import run
from preprocess.labels import check_named, read_labels_and_folds

IDS = [f"1.2.826.0.1.3680043.8.498.7.{n}" for n in range(1, 5)]
HEADER = "StudyInstanceUID,patient_overall,C1,C2,C3,C4,C5,C6,C7"
VALUES = {id: [1, *(int(level == n) for level in range(7))] for n, id in enumerate(IDS)}
ROWS = [",".join([id, *map(str, VALUES[id])]) for id in IDS]
PLAIN = "\n".join([HEADER, *ROWS]) + "\n"


def each(change):
    return "\n".join([HEADER, *map(change, ROWS)])


def quoted(line):
    return ",".join(f'"{cell}"' for cell in line.split(","))


READ = {
    "plain": PLAIN,
    "without a newline at the end": PLAIN.rstrip(),
    "byte order mark and CR LF": "\ufeff" + PLAIN.replace("\n", "\r\n"),
    "CR alone": PLAIN.replace("\n", "\r"),
    "quotes": "\n".join(map(quoted, [HEADER, *ROWS])),
    "floats": each(lambda row: row.replace(",1", ",1.0").replace(",0", ",0.0")),
    "quoted floats": each(lambda row: quoted(row.replace(",1", ",1.0").replace(",0", ",0.000"))),
    "true and false": each(lambda row: row.replace(",1", ",True").replace(",0", ",False")),
    "TRUE and FALSE": each(lambda row: row.replace(",1", ",TRUE").replace(",0", ",FALSE")),
    "blanks after UIDs": each(lambda row: row.replace(",", " ,", 1)),
    "a blank after one UID": PLAIN.replace(ROWS[0], ROWS[0].replace(",", " ,", 1)),
    "tabs after UIDs": each(lambda row: row.replace(",", "\t,", 1)),
    "blanks before UIDs": each(lambda row: " " + row),
    "blanks within quotes": each(lambda row: quoted(row.replace(",", " ,", 1))),
    "blanks beside names": PLAIN.replace(HEADER, HEADER.replace(",", " , ")),
    "blanks beside values": each(lambda row: row.replace(",", " , ")),
    "a row repeated": PLAIN + ROWS[0],
    "a row repeated in other words": PLAIN + ROWS[0].replace(",", "\t,", 1).replace(",0", ",0.0"),
    "empty lines": PLAIN.replace("\n", "\n\n") + "\n\n",
    "lines of blanks and of commas": PLAIN + "  \n" + "," * 8 + "\n",
    "empty lines first": "\n\n" + PLAIN,
    "a comma at the end of every row": each(lambda row: row + ","),
    "a comma at the end of every row of two": "\n".join([HEADER, *(row + "," for row in ROWS[:2])]),
    "a comma at the end of every line": PLAIN.replace("\n", ",\n"),
    "a comma at the end of the names": PLAIN.replace(HEADER, HEADER + ","),
    "the names' order": "\n".join(",".join(reversed(line.split(","))) for line in (HEADER, *ROWS)),
    "more columns": PLAIN.replace("\n", ",note\n", 1).replace("0\n", '0,"a, ""b"""\n').replace("1\n", "1,é\n"),
    "more columns of several lines": "\n".join([HEADER + ",note", *(row + ',"a\nb, c"' for row in ROWS)]),
    "numbers of rows first": "\n".join(["," + HEADER, *(f"{n},{row}" for n, row in enumerate(ROWS))]),
}


@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_what_spreadsheets_and_scripts_write_is_read_with_the_values_written_there(tmp_path, text):
    (tmp_path / "labels.csv").write_bytes(text.encode())
    found = read_labels_and_folds(tmp_path / "labels.csv", None).labels
    assert set(found.columns) == set(TARGETS) and list(found.dtypes.unique()) == [pd.Int8Dtype()]
    ids = IDS[:2] if "row of two" in text else IDS
    assert found[list(TARGETS)].T.to_dict("list") == {id: VALUES[id] for id in ids if id in text}


def test_empty_cells_are_unknown(tmp_path):
    (tmp_path / "labels.csv").write_text(f'{HEADER}\n{IDS[0]},1,,  ,"",0,0,0,1\n')
    assert read_labels_and_folds(tmp_path / "labels.csv", None).labels.loc[IDS[0]].tolist() == [
        1,
        pd.NA,
        pd.NA,
        pd.NA,
        0,
        0,
        0,
        1,
    ]


def test_folds_are_read_by_the_same_rules(tmp_path):
    lines = ["StudyInstanceUID , fold", *(f"{id} ,{n}.0," for n, id in enumerate(IDS)), f"{IDS[0]},0,", ""]
    (tmp_path / "folds.csv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert read_labels_and_folds(None, tmp_path / "folds.csv").folds.to_dict() == {id: n for n, id in enumerate(IDS)}


REFUSED = {
    "a row that contradicts an earlier one": (PLAIN + f"{IDS[0]},1,0,0,0,0,0,0,1", 6, "values that differ from line 2"),
    "a row that contradicts itself": (PLAIN.replace(f"{IDS[2]},1", f"{IDS[2]},0"), 4, "is 0, but C3 is 1"),
    "rows too short": (each(lambda row: row.rsplit(",", 1)[0]), 2, "8 cells for 9 column names"),
    "one row too short": (PLAIN.replace(ROWS[3], ROWS[3][:-2]), 5, "8 cells"),
    "one row too long": (PLAIN.replace(ROWS[1], ROWS[1] + ",9"), 3, "10 cells"),
    "one row with a comma at its end": (PLAIN.replace(ROWS[0], ROWS[0] + ","), 2, "10 cells"),
    "another value than empty at the end of every row": (each(lambda row: row + ",1"), 2, "10 cells"),
    "a column twice": ("\n".join([HEADER + ",C1", *(row + ",1" for row in ROWS)]), 1, "C1 occurs twice"),
    "semicolons": (PLAIN.replace(",", ";"), 1, "separated by ';'"),
    "tabs": (PLAIN.replace(",", "\t"), 1, "separated by tabs"),
    "names in lower case": (PLAIN.replace(HEADER, HEADER.lower()), 1, "did you mean 'studyinstanceuid'?"),
    "a name spelt otherwise": (
        PLAIN.replace("patient_overall", "patient-overall"),
        1,
        "did you mean 'patient-overall'",
    ),
    "a column missing": ("\n".join(line.rsplit(",", 1)[0] for line in (HEADER, *ROWS)), 1, "no column C7"),
    "no names": ("\n".join(ROWS), 1, "no column StudyInstanceUID"),
    "no UID": (PLAIN.replace(ROWS[2], "," + ROWS[2].split(",", 1)[1]), 4, "no StudyInstanceUID"),
    "a 2": (PLAIN.replace(ROWS[3], ROWS[3][:-1] + "2"), 5, f"C7 of {IDS[3]} is neither 0 nor 1 nor empty"),
    "a word": (PLAIN.replace(ROWS[3], ROWS[3][:-1] + "yes"), 5, "C7 of"),
    "no number": (PLAIN.replace(ROWS[3], ROWS[3][:-1] + "nan"), 5, "C7 of"),
    "a spreadsheet's formula": (each(lambda row: f'="{row}'.replace(",", '",', 1)), 2, "quotation mark"),
    "a quotation mark left open": (PLAIN.replace(ROWS[1], ROWS[1][:-1] + '"1'), 3, "quotation mark"),
    "text after a quotation mark": (
        PLAIN.replace(ROWS[1], f'"{IDS[1]}"x' + ROWS[1][len(IDS[1]) :]),
        3,
        "quotation mark",
    ),
    "rows between two quotation marks": (
        "\n".join([HEADER + ",note", ROWS[0] + ',"', ROWS[1] + ",", ROWS[2] + ',"', ROWS[3] + ","]),
        2,
        "holds whole rows",
    ),
    "nothing": ("", None, "not a readable CSV"),
}
BYTES = {
    "UTF-16": (PLAIN.encode("utf-16"), None, "UTF-16"),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), 1, "NUL"),
    "Latin-1": (each(lambda row: row + ",M\xfcller").replace(HEADER, HEADER + ",note").encode("latin-1"), 2, "UTF-8"),
    "NULs": (PLAIN.encode() + b"\0\0\0", 6, "NUL"),
    "NULs after a UID": (PLAIN.replace(f"{IDS[2]},", f"{IDS[2]}\0,").encode(), 4, "NUL"),
}
REFUSED |= BYTES


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    writer = CacheWriter(tmp_path_factory.mktemp("labelled") / "cache")
    for id in IDS:
        writer.publish(make_study(id))
    writer.finish()
    return writer.path


@pytest.mark.parametrize(("text", "line", "words"), REFUSED.values(), ids=REFUSED)
def test_what_may_mean_something_else_is_one_line_with_file_and_row_and_nothing_is_written(
    made, tmp_path, capsys, text, line, words
):
    file = tmp_path / "labels.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = files_of(made)
    assert run(["labels", str(made), str(file)]) == 2
    out, err = capsys.readouterr()
    where = str(file) if line is None else f"{file}, line {line}"
    assert out == "" and err.startswith(f"error: {where}: ") and err.count("\n") == 1 and words in err, err
    assert files_of(made) == before


@pytest.mark.parametrize(("fold", "words"), [("0.5", "not a whole number"), ("", "not a whole"), ("100", "0 to 99")])
def test_a_wrong_fold_is_named_by_its_row(tmp_path, fold, words):
    (tmp_path / "folds.csv").write_text(f"StudyInstanceUID,fold\n{IDS[0]},1\n{IDS[1]},{fold}\n")
    with pytest.raises(UsageError, match=rf"folds\.csv, line 3: fold of {IDS[1]} .*{words}"):
        read_labels_and_folds(None, tmp_path / "folds.csv")


def test_a_line_about_a_pseudonymised_cache_names_the_pseudonym_alone(tmp_path):
    (tmp_path / "labels.csv").write_text(PLAIN.replace("0\n", "2\n"))
    with pytest.raises(UsageError) as raised:
        read_labels_and_folds(tmp_path / "labels.csv", None, lambda uid: "2.25.7" + uid[-1])
    assert "2.25.7" in str(raised.value) and IDS[0][:-2] not in str(raised.value)


def test_folds_that_name_no_study_of_the_cache_are_refused_as_labels_are(made, tmp_path, capsys):
    cache = shutil.copytree(made, tmp_path / "cache")
    (tmp_path / "labels.csv").write_text(PLAIN)
    (tmp_path / "folds.csv").write_text("StudyInstanceUID,fold\n9.9,1\n")
    assert run(["labels", str(cache), str(tmp_path / "labels.csv"), "--folds", str(tmp_path / "folds.csv")]) == 2
    assert "folds.csv: names no study of the cache" in capsys.readouterr().err and Cache(cache).labels is None


def test_what_labels_and_folds_name_is_counted_against_the_source(tmp_path):
    labels, folds = tmp_path / "labels.csv", tmp_path / "folds.csv"
    labels.write_text(PLAIN)
    folds.write_text("StudyInstanceUID,fold\n" + "".join(f"{id},0\n" for id in [*IDS[:2], "9.9"]))
    assert check_named(read_labels_and_folds(labels, None), set(IDS)) is None
    assert check_named(read_labels_and_folds(None, 5), set(IDS)) is None
    assert check_named(read_labels_and_folds(labels, None), {*IDS[:3], "8.8"}) == (
        "the labels name 3 of 4 studies of the source, and 1 that it does not have"
    )
    assert check_named(read_labels_and_folds(labels, folds), set(IDS)) == (
        "the folds name 2 of 4 studies of the source, and 1 that it does not have"
    )
    for given in (read_labels_and_folds(labels, 5), read_labels_and_folds(None, folds)):
        with pytest.raises(UsageError, match="names no study of the source"):
            check_named(given, {"8.8"})
