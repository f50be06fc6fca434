"""Everything around the spine, as a function of height: head, jaw, throat, neck and shoulders. Heights are levels: 1 =
C1 ... 9 = T2."""

import numpy as np

from preprocess.phantom.anatomy import Person
from preprocess.phantom.canvas import Canvas

FAT, MUSCLE, SKIN, BRAIN = -95.0, 58.0, 30.0, 36.0
AIR, LUNG = -990.0, -850.0
BONE, MARROW, ENAMEL = 850.0, 330.0, 1900.0

# half width, depth in front of and behind the vertebral bodies, mm
HEIGHTS = (-6.0, -3.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 11.0)
WIDTH = (72, 80, 82, 82, 81, 77, 71, 68, 70, 84, 125, 175, 210, 220)
FRONT = (92, 104, 110, 113, 113, 109, 98, 78, 67, 64, 68, 78, 88, 98)
BACK = (90, 95, 95, 92, 85, 78, 73, 72, 74, 79, 87, 94, 100, 104)


def table(level: float, *rows: tuple[float, float]) -> float:
    """A quantity read off a curve over height."""
    heights, values = zip(*rows, strict=True)
    return float(np.interp(level, heights, values))


def paint_tissue(person: Person, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    """HU float32 (y, x) of the slice at z without vertebrae and ribs."""
    level = person.level_at(z)
    canvas = Canvas(x, y, person.middle_at(z))
    _body(canvas, person, level)
    if level > 0.5:
        _neck_muscles(canvas, person, level)
    if level < 1.3:
        _head(canvas, person, level)
    if level > 5.5:
        _shoulders(canvas, person, level - person.shoulder_shift)
    _vessels(canvas, person, level)
    if level < 4.2:
        _face(canvas, person, level - person.jaw_shift)
    _throat(canvas, person, level - person.larynx_shift)
    # the cord in its canal, and fat about it
    if level > 0.2:
        back = table(level, (1, 12), (2, 18), (3, 16), (7, 18), (9, 19))
        canvas.ellipse(0, back, 10, 7, 15)
        canvas.ellipse(0, back, 7, 4.5, 42)
    return canvas.hu


def _body(canvas: Canvas, person: Person, level: float) -> None:
    head = person.head if level < 1 else np.interp(level, (1, 4), (person.head, person.girth))
    shoulder = level - person.shoulder_shift if level > 5 else level
    width = np.interp(shoulder, HEIGHTS, WIDTH) * head
    front, back = np.interp(level, HEIGHTS, FRONT) * head, np.interp(level, HEIGHTS, BACK) * head
    fat = person.fat * table(level, (-1, 0.5), (1, 0.8), (4, 1.0), (7, 1.8), (9, 2.2))
    skin = canvas.outline(width, front, back)
    canvas.paint(skin, SKIN)
    canvas.paint(skin + 2.2, FAT)
    canvas.keep_inside(skin + 1.5)
    inner = canvas.outline(width - fat - 2, front - 0.7 * fat - 2, back - fat - 3)
    canvas.paint(inner, table(level, (0, 45), (1.5, 20), (3, -10), (6, -10), (7.5, 25), (9, 40)))


def _head(canvas: Canvas, person: Person, level: float) -> None:
    """Vault, brain, skull base with petrous bones and sinuses, foramen magnum and condyles, by height."""
    size = person.head
    if level < 0.35:
        shrink = table(level, (-4, 1.0), (-1.2, 0.99), (-0.3, 0.90), (0.35, 0.62))
        width, back = 70 * size * shrink, 78 * size * table(level, (-2, 1.0), (-0.5, 0.98), (0.35, 0.86))
        front = size * table(level, (-4, 88), (-2.6, 88), (-1.6, 40), (-0.8, 22), (0.0, 12), (0.35, 8))
        shell = canvas.outline(width, front, back)
        canvas.paint(shell, BONE)
        canvas.paint(shell + 2.0, MARROW + 150)
        canvas.paint(shell + 5.0, BONE)
        canvas.paint(shell + 7.0, BRAIN)
        canvas.ellipse(0, 12, 17, 15, 28)
        canvas.pair(24, 38, 20, 22, BRAIN + 6)
    if -1.8 < level < 0.4:
        swell = table(level, (-1.8, 0.3), (-1.0, 1.0), (-0.2, 0.9), (0.4, 0.4))
        canvas.pair(40 * size, 4, 26 * swell, 9 * swell, 900, 25)
        canvas.pair(58 * size, 18, 13 * swell, 17 * swell, 500)
        for k in range(5):
            canvas.pair(54 * size + 3.4 * (k % 3), 9 + 4.5 * k, 2.6 * swell, 2.2 * swell, -800)
        canvas.ellipse(0, -14, 17 * swell, 9, 600)
    if 0.15 < level < 1.25:
        # the occiput's lower squama, and the foramen's rim with the condyles in front
        depth = table(level, (0.15, 62), (0.7, 56), (1.25, 46)) * size
        canvas.ring(0, 8, table(level, (0.15, 58), (0.8, 42), (1.25, 24)) * size, depth, 7, 780, front=36)
    if 0.1 < level < 0.62:
        canvas.ring(0, 14, 24, 25, 6.5, 700, front=-40)
        canvas.pair(20, 4, 8.5, 12, 620, -20)
        canvas.ellipse(0, -10, 13, 6, 620)


def _face(canvas: Canvas, person: Person, level: float) -> None:
    size = person.head
    if level < 1.1:
        # nose and sinuses between thin walls
        open_ = table(level, (-3.0, 0.0), (-2.0, 0.8), (-1.0, 1.0), (0.4, 1.0), (1.1, 0.2))
        if level < -1.2:
            canvas.pair(32 * size, -78 * size, 19 * open_, 18 * open_, FAT)
            canvas.pair(32 * size, -82 * size, 12 * open_, 12 * open_, 40)
        else:
            canvas.pair(28 * size, -66 * size, 17 * open_, 20 * open_, 600)
            canvas.pair(28 * size, -66 * size, 15.2 * open_, 18 * open_, -960)
        canvas.ellipse(0, -72 * size, 12 * open_, 30 * open_, 350)
        canvas.pair(5.5, -72 * size, 4.0 * open_, 27 * open_, AIR)
        canvas.pair(60 * size, -50 * size, 5, 20, 700, 12)
    if 0.5 < level < 1.3:
        canvas.horseshoe(-96 * size, 30 * size, -52 * size, 9, 520)
        canvas.ellipse(0, -74 * size, 22, 17, 450 if level < 0.85 else 55)
    if 0.9 < level < 2.5:
        canvas.horseshoe(
            -97 * size, 27 * size, -56 * size, table(level, (0.9, 6), (1.2, 9), (2.2, 9), (2.5, 5)), ENAMEL, 8.5
        )
    if 0.9 < level < 3.0:
        canvas.ellipse(0, -62 * size, 22, table(level, (0.9, 15), (1.6, 26), (3.0, 16)), 66)
    if -0.4 < level < 2.6:
        # rami, with masseters outside and pterygoids inside
        long = table(level, (-0.4, 7), (0.6, 15), (1.8, 18), (2.6, 12))
        canvas.pair(57 * size, -46 * size, 8, long, MUSCLE, 10)
        canvas.pair(38 * size, -44 * size, 8, long * 0.9, MUSCLE, -8)
        canvas.pair(47 * size, -40 * size, 4.6, long, BONE, 8)
        canvas.pair(47 * size, -40 * size, 2.2, long - 3, MARROW, 8)
    if 2.0 < level < 3.5:
        wide = table(level, (2.0, 46), (3.5, 32))
        thick = table(level, (2.0, 9), (2.4, 12), (3.2, 11), (3.5, 4))
        end = table(level, (2.0, -34), (2.8, -52), (3.5, -78))
        canvas.horseshoe(-98 * size, wide * size, end * size, thick, BONE)
        canvas.horseshoe(-98 * size, wide * size, end * size, thick - 5.5, MARROW)
    if 1.6 < level < 3.8:
        canvas.pair(30, -50 * size, 9, 13, 45, 20)
    if -0.6 < level < 2.2:
        canvas.pair(56 * size, -20, 9, 15, 5, 10)


def _neck_muscles(canvas: Canvas, person: Person, level: float) -> None:
    g = np.interp(level, (1, 4), (0.95 * person.head, person.girth))
    wide = table(level, (0.5, 0.9), (3, 0.92), (5, 1.0), (7, 1.35), (9, 1.5))
    deep = table(level, (0.5, 1.0), (4, 0.93), (7, 1.1), (9, 1.2))
    canvas.pair(25 * g * wide, 49 * g * deep, 24 * wide, 11, MUSCLE, 24)
    canvas.pair(14 * g, 40 * deep * g, 12, 11, MUSCLE + 4, 10)
    canvas.pair(27 * g * wide, 34 * g * deep, 15 * wide, 9, MUSCLE, 35)
    canvas.pair(9, 30 * deep, 8, 8, MUSCLE)
    if level < 2.2:
        canvas.pair(20, 26, 12, 7, MUSCLE, 40)
        canvas.pair(18, 44, 15, 9, MUSCLE + 3, 20)
    canvas.pair(41 * g * wide, 18 * g, 13 * wide, 9, MUSCLE, 55)
    canvas.pair(33 * g, 2, 9, 12, MUSCLE, 20)
    if level > 3.2:
        canvas.pair(27 * g, -6, 8, 8, MUSCLE)
    # the sternomastoid comes round from behind the ear to the front of the neck
    along = np.clip((level - 0.5) / 7, 0, 1)
    canvas.pair((56 - 34 * along) * g, (14 - 62 * along) * g, 16 - 5 * along, 6.5, MUSCLE + 2, 75 - 60 * along)
    canvas.pair(6, -12, 6, 4, MUSCLE)
    canvas.ellipse(0, 50 * deep * g, 1.2, 22, FAT + 60)


def _shoulders(canvas: Canvas, person: Person, level: float) -> None:
    """Trapezius and shoulder muscles, shoulder blades, collar bones, the tops of the lungs."""
    grow = table(level, (5.6, 0.05), (7, 0.7), (9, 1.0))
    canvas.pair(92, 32, 62 * grow, 22 * grow, MUSCLE, -8)
    canvas.pair(52, 62, 46 * grow, 13 * grow, MUSCLE, 8)
    canvas.pair(112, -6, 46 * grow, 25 * grow, MUSCLE)
    canvas.pair(70, 10, 24 * grow, 17 * grow, MUSCLE - 6)
    if level > 7.4:
        reach = table(level, (7.4, 8), (8.2, 34), (11, 46))
        canvas.pair(104, 36, reach, 6, 700, -28)
        canvas.pair(104, 36, reach - 4, 2.6, MARROW, -28)
    if 7.2 < level < 10.2:
        out = table(level, (7.2, 118), (8.4, 72), (9.4, 42), (10.2, 24))
        front = table(level, (7.2, -26), (8.4, -44), (9.4, -58), (10.2, -64))
        canvas.pair(out, front, 26, 7.5, BONE, 24)
        canvas.pair(out, front, 22, 4.0, MARROW, 24)
    if level > 7.7:
        swell = table(level, (7.7, 0.1), (8.3, 0.6), (9.2, 1.0), (11, 1.45))
        canvas.pair(20 + 22 * swell, 2 - 4 * swell, 25 * swell, 33 * swell, 45)
        canvas.pair(20 + 22 * swell, 2 - 4 * swell, 23.5 * swell, 31.5 * swell, LUNG)


def _vessels(canvas: Canvas, person: Person, level: float) -> None:
    if level < 0.3:
        return
    blood = 50 + person.contrast
    side = table(level, (0.3, 27), (4, 25), (7, 24), (9, 20))
    front = table(level, (0.3, -14), (3, -20), (6, -24), (9, -26))
    canvas.pair(side, front, 3.6, 3.8, blood)
    canvas.pair(side + 9, front + 4, 5.5, 4.6, 45 + 0.4 * person.contrast)
    if 2.5 < level < 4.5:
        canvas.pair(side + 4, front - 8, 2.6, 2.8, blood)
    if 1.5 < level < 7:
        canvas.pair(table(level, (1.5, 24), (2, 18), (5, 19), (7, 24)), 0.5, 1.8, 1.8, blood)
    if level > 8:
        canvas.ellipse(6, -38, 13, 8, blood)


def _throat(canvas: Canvas, person: Person, level: float) -> None:
    """Airway, hyoid, thyroid cartilage, cricoid, trachea, gullet and thyroid gland."""
    g, hard = person.girth, person.calcified
    front = table(level, (0, -24), (2, -20), (3, -23), (4, -27), (5, -31), (6, -30), (8, -31), (10, -36)) * g
    wide = table(
        level,
        *((-0.6, 2), (0, 13), (1.2, 12), (2.2, 14), (3.2, 17), (4.0, 12)),
        *((4.7, 4.5), (5.2, 3.5), (5.8, 8), (6.6, 9), (10, 9)),
    )
    deep = table(
        level,
        *((-0.6, 2), (0, 9), (1.2, 6), (2.2, 7), (3.2, 7), (4.0, 6)),
        *((4.7, 10), (5.2, 11), (5.8, 10), (6.6, 8.5), (10, 8.5)),
    )
    air = person.airway
    if 3.1 < level < 3.75:
        canvas.horseshoe(-56 * g, 22 * g, -30 * g, 5.0, 620)
    if 3.4 < level < 6.4:
        canvas.pair(7, -52 * g, 5, 4, MUSCLE)
    if 3.95 < level < 5.5:
        point = table(level, (3.95, -44), (4.5, -56), (5.5, -50)) * g
        canvas.horseshoe(point, 20 * g, -20 * g, 4.2, 120 + hard)
        canvas.pair(8, front, 6, 10, 50)
    if 5.35 < level < 6.25:
        canvas.ring(0, front, 14, 15, 4.2, 150 + hard)
        canvas.ellipse(0, front + 12, 10, 4.0, 150 + hard)
    if level >= 6.25:
        canvas.ellipse(0, front, wide * air + 2.0, deep * air + 2.0, 75)
    if level > -0.6:
        canvas.ellipse(0, front, wide * air, deep * air, AIR)
    if 3.6 < level < 4.5:
        canvas.pair(13, front + 4, 3.4, 4.5, AIR, 30)
    if level > 5.9:
        canvas.ellipse(-3, front + 15 * g, 7, 4, 35)
    if 5.3 < level < 7.9:
        size = table(level, (5.3, 0.3), (6.3, 1.0), (7.2, 1.0), (7.9, 0.2))
        canvas.pair(16, front + 2, 8 * size, 12 * size, 140 + 0.2 * person.contrast, 10)
        if 6.3 < level < 6.9:
            canvas.ellipse(0, front - 11, 12, 3.5, 140)
