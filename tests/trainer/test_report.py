"""Cards and the report: drawn from an answer, the same bytes each time, safe to open, and alive in a browser."""

import asyncio
import re
import tracemalloc
from dataclasses import replace

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from browser import chromium, visit
from made_studies import make_study

from cache_schema import LEVELS, TARGETS, Cache
from cache_schema.columns import FRACTURES
from cache_schema.study import square_around
from trainer.answers.answer import Answer, Flag, SuspectedSlice
from trainer.look.document import RESEARCH_ONLY
from trainer.report.card import exam_card
from trainer.report.heat_map import HeatMap
from trainer.report.html import Summary, summary, write_report
from trainer.report.planes import Plane, middle_planes, slice_edges


def answer_to(study, **changes) -> Answer:
    """With everything that an answer can hold."""
    record, n = study.record, study.record.slices
    z = np.arange(1, n - 1, 3)
    curves = pd.DataFrame({"z_index": z, "any_frac": np.linspace(0, 1, len(z))})
    for number, (level, fracture) in enumerate(zip(LEVELS, FRACTURES, strict=True)):
        curves[level] = np.exp(-(((z - n * (number + 1) / 8) / 3) ** 2))
        curves[fracture] = curves[level] * (0.9 if number in (1, 4) else 0.1)
    slices = []
    for level, fracture in zip(LEVELS, FRACTURES, strict=True):
        row = curves.loc[curves[fracture].idxmax()]
        at = int(row["z_index"])
        slices.append(SuspectedSlice(level, at, int(study.slice_number[at]), float(row[fracture])))
    fields = {
        "record": record,
        "z": study.z,
        "outputs": {target: 0.1 * number for number, target in enumerate(TARGETS)},
        "box": (record.columns // 4, record.rows // 4, record.columns * 3 // 4, record.rows),
        "z_range": (n // 8, n - 1),
        "box_source": "model",
        "models": {"bbox": ("bbox-01B/fold0-seed1",), "slice_fracture": ("slice_fracture-04F/fold0-seed1",)},
        "calibrated": dict.fromkeys(TARGETS, 0.4),
        "curves": curves,
        "slices": tuple(slices),
        "flags": (Flag("gap", "Slices 3 to 5 between two levels belong to neither.", "C4"),),
        "outside": {"C7": "below the last slice"},
    }
    return Answer(**fields | changes)


def heat_maps(answer: Answer) -> list[HeatMap]:
    values = np.zeros((32, 32), np.float32)
    values[10:14, 20:24] = 1
    square = square_around(answer.box, answer.record.rows, answer.record.columns)
    return [HeatMap(suspected, values, square) for suspected in answer.slices]


@pytest.fixture(scope="module")
def phantom(tiny_cache):
    cache = Cache(tiny_cache)
    return cache.study(cache.ids[0])


@pytest.fixture(scope="module")
def card(phantom) -> bytes:
    answer = answer_to(phantom)
    return exam_card(answer, phantom, heat_maps(answer))


def pixels(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)


def test_a_card_is_the_same_bytes_each_time_and_leaves_no_figure_open(phantom, card):
    answer = answer_to(phantom)
    with plt.rc_context({"font.size": 30, "savefig.dpi": 20}):
        assert exam_card(answer, phantom, heat_maps(answer)) == card
    assert not plt.get_fignums() and pixels(card).std() > 30
    assert exam_card(answer, phantom) != card
    assert exam_card(replace(answer, calibrated=None), phantom, heat_maps(answer)) != card


@pytest.mark.parametrize(
    "changes",
    [
        {"curves": None, "slices": (), "calibrated": None, "outside": {}, "flags": ()},
        {"outside": dict.fromkeys(LEVELS, "no spine in the field of view"), "slices": ()},
        {"flags": tuple(Flag("gap", "Words that take more than one line of the card. " * 3) for _ in range(20))},
        {"box": (0, 0, 24, 20), "z_range": (0, 19), "box_source": "full_frame"},
    ],
    ids=["no slice model", "all levels outside", "many flags", "full frame"],
)
def test_any_answer_has_a_card(changes):
    study = make_study()
    assert pixels(exam_card(answer_to(study, **changes), study)).std() > 10


def test_a_single_slice_has_a_card():
    study = make_study(slices=4)
    one = make_study(slices=1, spacing=None, slice_spacing=None, segmented=False)
    answer = answer_to(study, record=one.record, z=one.z, z_range=(0, 1), curves=None, slices=())
    assert pixels(exam_card(answer, one)).std() > 10


def test_slices_lie_where_their_z_is():
    z = np.array([10.0, 9.0, 8.0, 4.0])  # the last slice lies 4 mm below its neighbour
    assert slice_edges(z).tolist() == [10.5, 9.5, 8.5, 6.0, 2.0]
    plane = Plane(np.array([[1], [2], [3], [4]], np.uint8), 1.0, z)
    assert plane.even(17)[:, 0].tolist() == [1, 1, 2, 2, *[3] * 5, *[4] * 8]


def test_planes_cut_through_the_middle_of_the_box(phantom):
    sagittal, coronal = middle_planes(phantom, (100, 200, 150, 301))
    whole = phantom.read(0, phantom.record.slices)
    assert np.array_equal(sagittal.image, whole[:, :, 125]) and np.array_equal(coronal.image, whole[:, 250])


def test_words_from_data_are_escaped_and_nothing_points_elsewhere(card, tmp_path):
    bad = '<script>alert("1")</script>'
    entry = Summary(bad, dict.fromkeys(TARGETS, 0.5), (f"{bad} & 'more'",))
    write_report(tmp_path / "report.html", [(entry, card)], heading=bad, about=[bad])
    text = re.sub(r"base64,[\w+/=]+", "", (tmp_path / "report.html").read_text())
    assert bad not in text and text.count("<script") == 1 and "&lt;script&gt;alert(&quot;1&quot;)" in text
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<iframe|<form", text)
    assert "default-src &#x27;none&#x27;" in text and text.count(RESEARCH_ONLY) >= 3


def test_a_report_takes_its_entries_one_by_one(card, tmp_path):
    """Fifty cards take no more memory than one, and are one file that a failure leaves as it was."""
    entry = Summary("a", dict.fromkeys(TARGETS, 0.5), ())

    def peak(count: int) -> int:
        tracemalloc.start()
        write_report(tmp_path / "report.html", ((entry, bytes(bytearray(card))) for _ in range(count)))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    one, fifty = peak(2), peak(50)
    assert fifty < one + 300_000
    whole = (tmp_path / "report.html").read_bytes()
    assert whole.count(b'<section class="picture"') == 50 and len(whole) > 48 * (len(whole) // 50)

    def failing():
        yield entry, card
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_report(tmp_path / "report.html", failing())
    assert (tmp_path / "report.html").read_bytes() == whole and len(list(tmp_path.iterdir())) == 1


def test_a_report_reads_cards_from_files_and_refuses_what_is_no_picture(card, tmp_path):
    path = tmp_path / "card.png"
    path.write_bytes(card)
    entry = Summary("a", dict.fromkeys(TARGETS, None), ())
    write_report(tmp_path / "of-file.html", [(entry, path)])
    write_report(tmp_path / "of-bytes.html", [(entry, card)])
    assert (tmp_path / "of-file.html").read_bytes() == (tmp_path / "of-bytes.html").read_bytes()
    with pytest.raises(ValueError, match="PNG or WebP"):
        write_report(tmp_path / "none.html", [(entry, b"<svg/>")])
    assert not (tmp_path / "none.html").exists()


ROWS = "Array.from(document.querySelectorAll('tbody tr:not([hidden])'), row => row.cells[0].textContent)"
DRAWN = """(async () => {
  const images = Array.from(document.images);
  await Promise.all(images.map(image => { image.loading = 'eager'; return image.decode(); }));
  return images.map(image => [image.naturalWidth, image.getBoundingClientRect().width > 300]);
})()"""


@pytest.mark.check
def test_the_report_lives_in_a_browser(phantom, card, tmp_path):
    """No error, no request, all cards drawn; sorting, filtering, links and keys work; a card to a printed page."""
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on this machine")
    known = [0.2, 0.9, None, 0.5]
    entries = []
    for number, value in enumerate(known):
        answer = answer_to(phantom, flags=answer_to(phantom).flags if number % 2 else ())
        values = summary(answer).probabilities | {"C1": value, "patient_overall": 0.1 * number}
        entry = summary(answer)._replace(
            id=f"study-{number}", probabilities=dict.fromkeys(TARGETS, 0.0) | {"C1": values["C1"]}
        )
        entries.append((entry, card))
    entries[3] = (entries[3][0]._replace(id="<img src=x onerror=alert(1)>"), card)
    write_report(tmp_path / "report.html", entries)
    names = [entry.id for entry, _ in entries]

    async def look(page):
        async def click(selector: str) -> None:
            await page.value(f"document.querySelector({selector!r}).click()")

        async def fill(selector: str, words: str) -> None:
            await page.value(
                f"(field => {{ field.value = {words!r}; field.dispatchEvent(new Event('input')); }})(document.querySelector({selector!r}))"
            )

        assert await page.value(DRAWN) == [[pixels(card).shape[1], True]] * len(names)
        assert await page.value(ROWS) == names
        for order in ([1, 3, 0, 2], [0, 3, 1, 2]):  # highest first, then lowest first; what is unknown stays last
            await click("th:nth-child(3) button")
            assert await page.value(ROWS) == [names[number] for number in order]
        assert await page.value("document.querySelector('th:nth-child(3)').getAttribute('aria-sort')") == "ascending"
        await fill(".least", "0.5")
        assert await page.value(ROWS) == [names[3], names[1]]
        assert await page.value("document.querySelectorAll('.picture:not([hidden])').length") == 2
        await click(".flagged")
        await fill(".text", "STUDY-1")
        assert (
            await page.value(ROWS) == [names[1]]
            and await page.value("document.querySelector('.count').value") == "1 of 4"
        )
        await click("tbody tr:not([hidden]) a")
        await asyncio.sleep(0.5)
        assert abs(await page.value("document.querySelector('#card-1').getBoundingClientRect().top")) < 60
        await fill(".text", "")
        await fill(".least", "")
        await click(".flagged")
        await page.value("document.querySelector('th button').focus()")
        for kind in ("keyDown", "keyUp"):
            await page.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )
        assert await page.value(ROWS) == sorted(names)
        printed = await page.pdf()
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) == 1 + len(names)
        with pytest.raises(RuntimeError):
            await page.value("fetch('http://127.0.0.1:9/').then(answer => answer.status)")
        assert not page.requested and all("127.0.0.1" in line for line in page.said), page.said

    visit(program, tmp_path / "report.html", tmp_path / "profile", look)
