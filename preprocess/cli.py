"""The command line: `preprocess COMMAND`."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from cache_schema.errors import CspineError, not_utf8
from cache_schema.output import OUTPUT, lost_output
from cache_schema.store_path import file_at, place_of
from preprocess.os_errors import as_usage_error
from preprocess.usage_errors import ClickException, check_command, check_places, wrong_words

app = typer.Typer(
    name="preprocess",
    help="CT studies in DICOM and NIfTI -> a cache that is decoded once.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERRUPTED = 130
INTERRUPTION = "interrupted; run the same command again to continue"
FILES = "the RSNA layout or any tree of DICOM files: a folder, s3:// or gs://"
NEW = "a new folder or s3://, gs:// place"
CacheFolder = Annotated[
    Any, typer.Argument(metavar="CACHE", parser=place_of, help="a cache: a folder, s3://, gs://, https:// or a zip")
]
Shard = Annotated[
    int | None,
    typer.Option(metavar="N", min=8, help="slices a file in a new cache, a multiple of 8: 64 for a store [8]"),
]
Folds = Annotated[
    str | None, typer.Option(metavar="CSV|N", help="a CSV with StudyInstanceUID and fold, or a number [5]")
]


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="a new or empty folder")],
    studies: Annotated[int, typer.Option(min=1, help="number of studies")] = 24,
    slices: Annotated[int, typer.Option(min=1, help="slices in each study")] = 96,
    segmented: Annotated[int, typer.Option(min=0, help="number of studies with a segmentation")] = 16,
    prevalence: Annotated[
        float | None,
        typer.Option(metavar="P", help="fraction of studies with a fracture, at every level [as in RSNA 2022]"),
    ] = None,
    syntax: Annotated[str, typer.Option(metavar="mixed|sv1|explicit|j2k|rle", help="transfer syntax")] = "mixed",
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same studies")] = 0,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, help="processes [one per core]")] = None,
) -> int:
    """Write synthetic studies in the RSNA layout, with known truth."""
    options = locals()  # the command's parameters are those of the function
    from preprocess.phantom.generate import write_phantom

    table = write_phantom(**options)
    fractured = int(table["patient_overall"].sum())
    _show(f"{len(table)} studies in {out}, {min(segmented, studies)} with a segmentation, {fractured} fractured")
    return 0


@app.command("build-cache")
def build_cache(
    source: Annotated[Any, typer.Argument(metavar="SOURCE", parser=file_at, help=FILES)],
    cache: Annotated[
        Any, typer.Argument(metavar="CACHE", parser=place_of, help=f"{NEW}, or a cache to bring up to date")
    ],
    segmentations: Annotated[
        Path | None, typer.Option(metavar="DIR", help="<id>.nii files [SOURCE/segmentations]")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="StudyInstanceUID, patient_overall, C1..C7 [SOURCE/train.csv]"),
    ] = None,
    folds: Folds = None,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, help="local processes [one per core]")] = None,
    scheduler: Annotated[str | None, typer.Option(metavar="tcp://HOST:PORT", help="a running Dask scheduler")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="only the first N studies by id")] = None,
    max_refused: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="exit with status 1 if more studies are refused")
    ] = None,
    paths: Annotated[bool, typer.Option("--paths", help="write paths, not file numbers, into report.csv")] = False,
    pseudonymise: Annotated[
        Path | None, typer.Option(metavar="KEYFILE", help="replace UIDs by hashes under the key in this file")
    ] = None,
    trust_mtime: Annotated[
        bool,
        typer.Option("--trust-mtime", help="compare times of folders, not of files; misses a file changed in place"),
    ] = False,
    shard: Shard = None,
) -> int:
    """Decode every study once into CACHE. Studies that are already there are skipped."""
    options = locals()  # the command's parameters are those of the function
    from preprocess.build.build_cache import build_cache as build

    result = build(**options)
    _show(
        f"{cache}: {result.studies} studies; {result.published} new, {result.skipped} unchanged, {result.refused} refused"
        + (f" ({result.files} of them files of no study)" if result.files else "")
        + (f", see {cache / 'report.csv'}" if result.refused else "")
    )
    return result.exit_status


@app.command()
def labels(
    cache: CacheFolder,
    csv: Annotated[Path, typer.Argument(metavar="CSV", help="StudyInstanceUID, patient_overall, C1..C7")],
    folds: Annotated[
        str | None,
        typer.Option(metavar="CSV|N", help="a CSV with StudyInstanceUID and fold, or a number [unchanged]"),
    ] = None,
    pseudonymise: Annotated[
        Path | None, typer.Option(metavar="KEYFILE", help="the key of a pseudonymised cache; the CSVs hold plain UIDs")
    ] = None,
) -> int:
    """Replace the labels of a cache, and with --folds its folds."""
    from preprocess.labels import replace_labels

    studies, labelled = replace_labels(cache, csv, folds, pseudonymise)
    _show(f"{cache}: {labelled} of {studies} studies have labels")
    return 0


@app.command("set-boxes")
def set_boxes(
    cache: CacheFolder,
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="study_boxes.parquet")],
) -> int:
    """Write a table of study boxes into the records of a cache."""
    from cache_schema import Cache, CacheWriter
    from cache_schema.tables import read_table

    studies = len(Cache(cache).ids)
    given = CacheWriter(cache).set_boxes(read_table(table))
    _show(f"{cache}: {given} of {studies} studies have a box")
    return 0


@app.command()
def verify(
    cache: CacheFolder,
    sample: Annotated[
        float,
        typer.Option(metavar="FRACTION", min=0, max=1, help="fraction of the studies whose bytes and pixels are read"),
    ] = 1.0,
) -> int:
    """Check every file, record and digest of a cache; exit with status 1 if something is wrong."""
    from cache_schema.verify import verify as find_problems

    problems = find_problems(cache, sample)
    for problem in problems:
        _show(problem)
    do = "remove the folders of damaged studies, then run the same build-cache or crop command again"
    print(f"{cache}: {len(problems)} problems; {do}" if problems else f"{cache}: no problems", file=sys.stderr)
    return 1 if problems else 0


@app.command()
def inspect(
    cache: CacheFolder,
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="a study")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="write a contact sheet of the study")] = None,
) -> int:
    """Show what a cache, or one of its studies, holds."""
    from preprocess.contact_sheet import write_contact_sheet
    from preprocess.inspect import about_cache, about_study, as_text

    if png is not None:
        write_contact_sheet(cache, id, png)
    about = about_cache(cache) if id is None else about_study(cache, id)
    _show(json.dumps(about, indent=2) if as_json else as_text(about))
    return 0


@app.command()
def crop(
    cache: CacheFolder,
    out: Annotated[Any, typer.Argument(metavar="OUT", parser=place_of, help=f"{NEW}, or a cropped cache")],
    boxes: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="study_boxes.parquet [the boxes in CACHE]")
    ] = None,
    margin: Annotated[int, typer.Option(metavar="PIXELS", min=0, help="keep at least this margin around each box")] = 0,
    shard: Shard = None,
) -> int:
    """Write a smaller cache: of each study the square that training crops around its box. Coordinates stay native."""
    from preprocess.crop import crop_cache

    result = crop_cache(cache, out, boxes=boxes, margin=margin, shard=shard)
    before, after = result.pixels
    left_out = f", {len(result.without_box)} without a box left out" if result.without_box else ""
    _show(f"{out}: {result.studies} studies with {after / before:.0%} of their pixels{left_out}")
    return 3 if result.without_box else 0


@app.command()
def copy(
    cache: CacheFolder,
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="a folder, s3:// or gs:// place, or FILE.zip: new, or an earlier copy")
    ],
    shard: Shard = None,
) -> int:
    """Copy a cache between folders, stores and zip files; a copy that was stopped goes on. Ends verified."""
    from preprocess.copy_cache import copy_cache

    result = copy_cache(cache, out, shard=shard)
    for problem in result.problems:
        _show(problem)
    _show(f"{out}: {result.studies} studies, {result.copied} copied now, {len(result.problems)} problems")
    return 1 if result.problems else 0


@app.command()
def download(dest: Annotated[Path, typer.Argument(metavar="DEST", help="a folder with room for 686 GB")]) -> int:
    """Fetch the RSNA 2022 set through Kaggle's client, which needs an account there."""
    from preprocess import download as kaggle

    files = kaggle.download(dest)
    _show(f"{dest}: {files} files; now: preprocess build-cache {dest} CACHE")
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its status: 0 all well, 1 a check failed, 2 usage, 3 some studies refused, 130 interrupted."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    status = run(sys.argv[1:] if arguments is None else arguments)
    lost = lost_output()
    if isinstance(lost, BrokenPipeError):
        status = 1
    elif lost is not None:
        status = _fail(str(as_usage_error(lost, {}, OUTPUT)), CspineError.exit_status)
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit status. What the user can correct becomes one line on stderr."""
    try:
        if not arguments:
            app(["--help"], standalone_mode=False)
            return 2
        if not arguments[0].startswith("-"):
            check_command(arguments[0], list(_commands()))
            check_places(_commands()[arguments[0]], arguments[1:])
        status = app(arguments, standalone_mode=False) or 0
        return _fail(INTERRUPTION, INTERRUPTED) if status == INTERRUPTED else status  # typer turns Ctrl-C into it
    except CspineError as error:
        return _fail(str(error), error.exit_status)
    except ClickException as error:
        return _fail(wrong_words(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(INTERRUPTION, INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        return _fail(str(as_usage_error(error, _typed(arguments))), CspineError.exit_status)
    except UnicodeError as error:
        return _fail(str(not_utf8(error)), CspineError.exit_status)


def _show(text: str) -> None:
    """Print to standard output. Raises UsageError where that is full."""
    try:
        print(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise as_usage_error(error, {}, OUTPUT) from error


def _commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return group.commands


def _typed(arguments: list[str]) -> dict[str, object]:
    """The values of a command's parameters by their names, as they were typed; {} where they do not fit."""
    try:
        return _commands()[arguments[0]].make_context(arguments[0], arguments[1:]).params
    except (KeyError, IndexError, ClickException):
        return {}


def _fail(line: str, status: int) -> int:
    if line:
        with suppress(OSError):  # a full disk may hold the log too
            print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return status
