"""Contact sheets and figures: what is drawn lies where the truth lies, for every stage, the same each time."""

import json
import subprocess
import sys

import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image

from cache_schema import LEVELS, TARGETS, Cache, CacheWriter, Study
from cache_schema.tables import write_table
from trainer.data.augment import no_augmentation
from trainer.data.items import Item
from trainer.data.order import Training
from trainer.look import curves_over_z as curves
from trainer.look import learning_curves as learning
from trainer.look.__main__ import main
from trainer.look.page import GREY, LEVEL_COLOURS, YELLOW, drawing
from trainer.look.run_report import worst_first
from trainer.look.sheets import sheet
from trainer.look.shown import Shown, shown
from trainer.runs.inputs import Inputs
from trainer.scores.scores import Score, write_scores
from trainer.scores.truth import ratio_truth, union_box
from trainer.settings.layers import load
from trainer.settings.stage_registry import stage_class
from trainer.tables.pseudo import pseudo_labels


class Painted:
    """White inside each slice's box, black elsewhere."""

    def __init__(self, study):
        self.boxes, self.shape = study.slice_box, study.record.shape

    def read(self, z0, z1, box=None):
        out = np.zeros((z1 - z0, *self.shape[1:]), np.uint8)
        for picture, (x0, y0, x1, y1) in zip(out, self.boxes[z0:z1], strict=True):
            picture[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 255
        return out if box is None else out[:, box[1] : box[3], box[0] : box[2]]


@pytest.fixture(scope="module")
def painted_cache(tiny_cache, tmp_path_factory):
    cache, writer = Cache(tiny_cache), CacheWriter(tmp_path_factory.mktemp("painted") / "cache")
    segmented = [id for id in cache.ids if cache.study(id).slice_box is not None]
    for id in segmented:
        study = cache.study(id)
        record = study.record.model_copy(update={"content_digest": None})
        boxes, ratios = study.slice_box, study.vertebra_ratio
        writer.publish(Study(record, study.z, study.slice_number, Painted(study), boxes, ratios))
    writer.finish(labels=cache.labels[cache.labels["id"].isin(segmented)])
    return writer.path


@pytest.fixture(scope="module")
def pseudo(tiny_cache, tmp_path_factory):
    """Ratios and pseudo labels of every study: the truth where there is one, else a half of each level; one label unknown."""
    cache, rows = Cache(tiny_cache), []
    for id in cache.ids:
        study = cache.study(id)
        if study.vertebra_ratio is not None:
            rows.append(ratio_truth([study]))
        else:
            z = np.arange(study.record.slices)
            rows.append(pd.DataFrame({"id": id, "z_index": z, **dict.fromkeys(LEVELS, 0.5)}))
    ratios = pd.concat(rows, ignore_index=True)
    labels = cache.labels.assign(C1=1)
    labels.loc[0, "C7"] = pd.NA
    folder = tmp_path_factory.mktemp("tables")
    write_table(folder / "vertebra_ratios.parquet", ratios, "truth", {})
    write_table(folder / "pseudo_labels.parquet", pseudo_labels(ratios, labels), "truth", {})
    return folder / "pseudo_labels.parquet"


def hull(mask):
    """x0 y0 x1 y1 of what is true, exclusive ends."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def pixels_of(figure):
    """(height, width, 3) uint8 RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def coloured(pixels, colour):
    return (pixels == np.round(255 * np.array(to_rgb(colour)))).all(-1)


def part(pixels, axes):
    """What lies within the axes."""
    x0, y0, x1, y1 = np.round(axes.get_window_extent().extents).astype(int)
    return pixels[len(pixels) - y1 : len(pixels) - y0, x0:x1]


def test_the_box_drawn_lies_on_the_moved_truth(painted_cache, tiny_settings, tmp_path):
    words = ["stage=bbox", f"cache={painted_cache}", f"out={tmp_path}", f"config={tiny_settings}", "data.size=128"]
    settings = load([*words, "augment.affine=1", "augment.warp=0.5"])
    tile, apart = 256, []
    for item in shown(settings, epoch=0, count=24, still=False):
        bright = (item.frames > 100).any(0)
        if not bright.any() or bright[[0, -1]].any() or bright[:, [0, -1]].any():
            continue
        with drawing():
            figure = sheet([(item, range(3))], "", "", tile=tile)
            pixels = pixels_of(figure)
        for axes in figure.axes:
            picture = part(pixels, axes)
            assert picture.shape == (tile, tile, 3)
            # the edge is the middle of a line of two pixels
            drawn = (hull(coloured(picture, YELLOW)) + np.array([1, 1, -1, -1])) * 128 / tile
            apart.append(np.abs(drawn - hull(bright)).max())
    # in pixels of the image; the tip of a turned corner is too faint to count as bright
    assert len(apart) >= 24 and np.mean(apart) < 1.2 and max(apart) <= 3.5


def test_sheets_show_the_items_that_training_is_fed(tiny_cache, tiny_settings, tmp_path):
    settings = load(["stage=bbox", f"cache={tiny_cache}", f"out={tmp_path}", f"config={tiny_settings}"])
    inputs = Inputs(settings)
    items = stage_class("bbox")(settings, inputs).train_items(inputs.train_ids())
    order = Training(items, settings.seed, 16, step=len(items) // 16, by_block=True)
    for still in (False, True):
        found = list(shown(settings, epoch=1, count=5, still=still))
        assert [item.item for item in found] == [order[k].item for k in range(5)]
        for item in found if still else []:
            study, z = inputs.study(item.item.id), item.z_index
            assert (union_box(study.slice_box[z]) is not None) == bool(item.targets["has_box"])
            pixels = study.read(int(z[1]), int(z[1]) + 1)[0]
            expected = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_LINEAR)
            assert np.corrcoef(expected.ravel(), item.frames[1].ravel())[0, 1] > 0.99


def test_every_stage_gives_sheets_that_are_the_same_each_time(
    tiny_cache, tiny_settings, true_boxes, pseudo, tmp_path, capsys
):
    given = {
        "bbox": [],
        "vertebrae": ["variant=02G", "data.frames=42"],
        "slice_fracture": [f"pseudo={pseudo}", f"boxes={true_boxes}"],
        "study_fracture": [f"boxes={true_boxes}"],
    }
    for stage, needs in given.items():
        words = [f"stage={stage}", f"cache={tiny_cache}", f"config={tiny_settings}", "items=2", "tile=128", *needs]
        outs = [tmp_path / "one", tmp_path / "two"] if stage == "slice_fracture" else [tmp_path / "one"]
        for out in outs:
            assert main([*words, f"out={out}"]) == 0
        (page,) = (tmp_path / "one").glob(f"{stage}-*.png")
        assert f"{page.name} in {tmp_path / 'one'}" in capsys.readouterr().out
        picture = cv2.imread(str(page))
        assert picture.std() > 10
        if stage == "slice_fracture":
            assert page.read_bytes() == (tmp_path / "two" / page.name).read_bytes()
        if stage == "vertebrae":  # 30 slices in a window of 42: the last picture is padding
            last = picture[58 + 24 : 58 + 24 + 128, -16 - 128 : -16]
            assert coloured(last[..., ::-1], GREY).sum() > 100
    assert (
        main(
            [
                f"stage={stage}",
                f"cache={tiny_cache}",
                f"config={tiny_settings}",
                "mode=predict",
                *needs,
                f"out={tmp_path}",
            ]
        )
        == 0
    )
    assert (tmp_path / "study_fracture-04F-predict-01.png").is_file()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("stage=slice_fracture boxes=cache", "trains on pseudo labels and was given none; add pseudo=TABLE"),
        ("stage=study_fracture", "works on study boxes and was given none; add boxes=TABLE or boxes=cache"),
        ("stage=bbox draw=stil", "draw=stil does not fit; expected train or still"),
        ("stage=bbox draw=train mode=predict", "draw=train does not fit; expected still"),
        ("stage=bbox items=0", "items='0' does not fit; expected a whole number from 1"),
        ("stage=bbox itms=3", "no setting itms; did you mean items?"),
        ("tables=nowhere", "tables=nowhere: no such folder"),
        ("bbox", "cannot read 'bbox'"),
    ],
)
def test_a_mistake_is_one_line(words, line, tiny_cache, tmp_path, capsys):
    more = [] if "=" not in words or "tables" in words else [f"cache={tiny_cache}", f"out={tmp_path}"]
    assert main([*words.split(), *more]) == 2
    error = capsys.readouterr().err
    assert line in error and error.startswith("error: ") and error.count("\n") == 1


def test_tables_become_figures(tiny_cache, true_boxes, pseudo, tmp_path, capsys):
    runs, truth = tmp_path / "runs", Cache(tiny_cache)
    (runs / "tables").mkdir(parents=True)
    for path in (true_boxes, pseudo, pseudo.with_name("vertebra_ratios.parquet")):
        (runs / "tables" / path.name).write_bytes(path.read_bytes())
    folder = runs / "bbox-01B" / "fold0-seed1"
    folder.mkdir(parents=True)
    score = {"split": "held_out", "metric": "iou", "value": 0.6, "baseline": "training mean box", "baseline_value": 0.4}
    lines = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 0.4}, {"step": 2, "score": score}]
    damaged = [{"metric": None}, {"value": "high"}, {"baseline": 3}, {"baseline_value": True}, {"value": [1]}]
    lines += [{"step": 2, "score": score | other} for other in damaged] + [{"step": 2, "score": [score]}]
    lines += [{"step": 2, "loss": "low"}, {"step": [2], "loss": 1.0}, {"loss": 1.0}, {"step": 2.5, "loss": 1.0}, [1]]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')

    assert main([f"tables={runs}", f"cache={tiny_cache}"]) == 0
    names = ["curves-01.png", "boxes-01.png", "z-range-01.png", "learning-01.png"]
    assert capsys.readouterr().out == f"{', '.join(names)} in {runs / 'look'}\n"
    first = {name: (runs / "look" / name).read_bytes() for name in names}
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 20, "lines.linewidth": 9}):
        assert main([f"tables={runs}", f"cache={tiny_cache}", f"out={tmp_path}"]) == 0
    assert first == {name: (tmp_path / name).read_bytes() for name in names}
    (history,) = learning.histories(runs)
    assert history.loss == {1: 0.5, 2: 0.4} and history.scores == {2: score}

    without = tmp_path / "without"
    assert main([f"tables={runs}", f"out={without}", "items=1"]) == 0
    assert not (without / "boxes-01.png").exists() and (without / "z-range-01.png").is_file()
    assert len(truth.ids) > 1 and (without / "curves-01.png").stat().st_size < len(first["curves-01.png"])


def test_the_report_of_a_plan_is_one_file_with_its_worst_studies_first(tiny_cache, true_boxes, tmp_path, capsys):
    runs, cache = tmp_path / "runs", Cache(tiny_cache)
    (runs / "tables").mkdir(parents=True)
    (runs / "tables" / true_boxes.name).write_bytes(true_boxes.read_bytes())
    labels = cache.labels.sort_values("id")
    sure = labels[["id", "fold", *TARGETS]].astype(dict.fromkeys(TARGETS, float))
    sure[list(TARGETS)] = sure[list(TARGETS)].clip(0.1, 0.9)
    wrong = sure["id"].iloc[3]
    sure.loc[sure["id"] == wrong, list(TARGETS)] = 1 - sure.loc[sure["id"] == wrong, list(TARGETS)]
    write_table(runs / "tables/study_predictions.parquet", sure, made_by="test", inputs={})
    numbers = [0.7, "training constants", 1.0, 0.7, 0.6, 0.8]
    write_scores(runs / "tables/scores.json", [Score("bbox", "<b>", "held_out", 6, "iou", *numbers)])
    table = worst_first(sure, cache.labels)
    assert [row[0].text for row in table.rows][0] == wrong and len(table.rows) == len(labels)
    losses = [row[2].value for row in table.rows]
    assert losses == sorted(losses, reverse=True) and losses[0] > 2 > 0.2 > losses[1]

    assert main([f"tables={runs}", f"cache={tiny_cache}", "report=true", f"walk={wrong}", "items=2"]) == 0
    assert f"report.html, walk-{wrong}.webp in " in capsys.readouterr().out
    text = (runs / "look/report.html").read_text()
    assert "&lt;b&gt;" in text and "<b>" not in text and text.count("data:image/webp;base64") == 2
    with Image.open(runs / f"look/walk-{wrong}.webp") as walk:
        assert walk.n_frames == cache.record(wrong).slices
        walk.seek(walk.n_frames // 2)
        away = np.abs(np.asarray(walk.convert("RGB"), float) - 255 * np.array(to_rgb(YELLOW))).max(-1)
        assert (away < 60).sum() > 100


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("walk=9", "walk= needs the study's slices; add cache=CACHE"),
        ("walk=9 cache", "no study 9"),
        ("report=yes", "report=yes does not fit; expected false or true"),
    ],
)
def test_a_mistake_in_what_is_asked_of_tables_is_one_line(words, line, tiny_cache, tmp_path, capsys):
    words = words.replace("cache", f"cache={tiny_cache}")
    assert main([f"tables={tmp_path}", *words.split()]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_lines_lie_at_their_values_and_break_where_unknown():
    ratios = pd.DataFrame({"id": "a", "z_index": np.arange(101), **dict.fromkeys(LEVELS, 0.0)})
    ratios["C1"] = np.where(ratios["z_index"] < 50, 0.5, 0.25)
    ratios.loc[50, "C1"] = np.nan
    with drawing():
        (figure,) = curves.pages({"vertebra_ratios": ratios}, None, ["a"])
        drawn = coloured(pixels_of(figure), LEVEL_COLOURS["C1"])
    upper, _ = figure.axes

    def column(x, y):
        """The rows of the line's pixels at x, from the row of y on."""
        across, up = upper.transData.transform((x, y))
        left, bottom, right, top = np.round(upper.get_window_extent().extents).astype(int)
        assert left < across < right and bottom < up < top
        rows = np.flatnonzero(drawn[len(drawn) - top : len(drawn) - bottom, int(across)])
        return rows + (len(drawn) - top) + 0.5 - (len(drawn) - up)

    for x, y in ((20, 0.5), (80, 0.25)):
        assert abs(column(x, y).mean()) <= 1
    assert not len(column(50, 0.5))


def test_targets_are_drawn_by_their_names_and_shapes_whatever_the_stage():
    frames, z = np.zeros((6, 32, 32), np.uint8), np.array([0, 1, 2, 3, -1, -1])
    fractures = np.zeros((2, 7))
    fractures[1, 2], fractures[1, 3] = 0.7, np.nan
    ratios = np.tile(np.linspace(0, 0.9, 7), (2, 1))
    labels = np.array([1, 0, np.nan, *[0] * 5])
    targets = {"ratios": ratios, "fractures": fractures, "labels": labels, "angle": np.array(0.5)}
    item = Shown(Item(0, "a", 0, 6, 4), no_augmentation(32), z, frames, targets)
    with drawing():
        figure = sheet([(item, [1, 3])], "", "", tile=128)
        pixels_of(figure)
    words = [text.get_text() for text in figure.texts]
    assert "angle=0.5" in words and "C2 ?" in words and "patient" in words and "2 padded" in " ".join(words)
    _, first, _, second = figure.axes
    heights = [[bar.get_height() for bar in axes.patches] for axes in (first, second)]
    assert np.allclose(heights, [[*ratios[0], *fractures[0]], [*ratios[1], *np.nan_to_num(fractures[1])]])
    assert [text.get_text() for text in second.texts] == ["", "0.15", "0.30", "?", "0.60", "0.75", "0.90"]
    assert len(words) == len(TARGETS) + 5


def test_the_command_is_read_without_matplotlib():
    code = "import trainer.look.__main__, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
