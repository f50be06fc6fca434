"""The shape of each level: C1's ring, C2's dens, the growing bodies below it, C7's long spine, ribs from T1 on.

Sizes are in mm for a person of scale 1 and follow common anatomy, with the differences between levels drawn out a
little.
"""

from dataclasses import dataclass, field
from itertools import pairwise

from preprocess.phantom.shapes import Capsule, Ellipsoid, Pillar, Ring, Solid


@dataclass(frozen=True)
class Form:
    """Numbers of a level with a body. `height` is of the body, `disc` of the disc below it."""

    body: tuple[float, float]
    height: float
    disc: float
    canal: tuple[float, float]
    pillar: float
    transverse: float
    foramen: float
    spinous: float
    slope: float
    bifid: float


FORMS = {
    2: Form((10.5, 8.0), 20.0, 4.5, (12.5, 10.0), 19.0, 28.0, 2.8, 25.0, 0.30, 9.0),
    3: Form((9.0, 7.5), 15.0, 4.5, (12.0, 7.8), 19.0, 27.0, 3.0, 14.0, 0.35, 4.5),
    4: Form((9.8, 7.8), 15.0, 4.5, (12.2, 7.8), 19.5, 27.5, 3.1, 14.0, 0.40, 4.5),
    5: Form((11.0, 8.2), 15.0, 4.5, (12.6, 7.8), 20.5, 28.5, 3.2, 16.0, 0.45, 5.0),
    6: Form((12.5, 8.6), 15.5, 5.0, (12.8, 7.8), 21.0, 30.5, 3.4, 22.0, 0.50, 3.0),
    7: Form((14.5, 8.8), 16.5, 5.0, (12.2, 7.8), 21.5, 36.0, 0.0, 36.0, 0.55, 0.0),
    8: Form((16.0, 9.2), 18.0, 5.0, (10.0, 8.4), 21.0, 37.0, 0.0, 34.0, 0.65, 0.0),
    9: Form((15.0, 10.0), 19.0, 5.0, (8.8, 8.4), 20.0, 34.0, 0.0, 32.0, 0.80, 0.0),
    10: Form((14.5, 11.0), 20.0, 5.0, (8.6, 8.4), 19.5, 32.0, 0.0, 32.0, 0.95, 0.0),
    11: Form((14.5, 11.5), 20.5, 5.0, (8.6, 8.4), 19.5, 32.0, 0.0, 32.0, 1.05, 0.0),
}
C1_ABOVE_C2 = 19.0
"""Middle of C1's ring above the middle of C2's body, mm."""
C1_BEHIND_DENS = 11.0
"""Middle of C1's ring behind the axis of the dens, mm."""


@dataclass(frozen=True)
class Bone:
    """One vertebra in its own frame: what is bone, what is hollowed out of it, and the decoys every vertebra
    carries."""

    solids: tuple[Solid, ...]
    hollows: tuple[Solid, ...]
    half_width: float
    front: float
    back: float
    ribs: tuple[Solid, ...] = field(default=())


def atlas() -> Bone:
    """C1: no body, wide lateral masses, two arches, far transverse processes with their foramina."""
    solids: list[Solid] = [
        Ring((0, 0, 0), (17.0, 19.0), 5.5, 6.0, front=-30, back=-6),
        Ring((0, 0, 0), (17.0, 19.0), 5.5, 5.0, slope=0.1, front=6),
        Ellipsoid((0, -22.5, 0), (4.0, 4.0, 5.5)),
        Ellipsoid((0, 24.5, -1), (3.5, 3.5, 4.5)),
    ]
    hollows: list[Solid] = []
    for side in (-1, 1):
        solids += [
            Pillar((side * 19.5, -5.0, 0), (7.5, 9.5), 8.5, shear=0.0, waist=0.08),
            Ellipsoid((side * 29.5, -2.0, -1), (8.5, 6.5, 5.0)),
            Capsule((side * 30.0, -2.0, -1), (side * 38.0, 0.0, -2), 4.5, 4.0),
        ]
        hollows.append(Pillar((side * 30.5, -2.0, 0), (3.2, 3.0), 12.0))
    return Bone(tuple(solids), tuple(hollows), 42.0, -26.0, 28.0)


def axis() -> Bone:
    """C2: the dens above a broad body with shoulders, and the biggest, widely bifid spine of the neck."""
    form = FORMS[2]
    common = _common(2, form)
    extra: list[Solid] = [
        Capsule((0, -0.5, 6), (0, -1.5, 25.5), 6.2, 5.2),
        Ellipsoid((0, -0.5, 21), (6.2, 6.0, 6.5)),
    ]
    extra += [Pillar((side * 15.5, 1.0, 5.5), (8.5, 8.5), 4.5) for side in (-1, 1)]
    return Bone((*extra, *common.solids), common.hollows, common.half_width, common.front, common.back)


def _common(level: int, form: Form) -> Bone:
    """Body, arch, pillars, transverse processes and spine, which C2 to the upper thorax share."""
    (bu, bv), (ku, kv) = form.body, form.canal
    canal_v = bv + kv + 0.5
    thoracic = level >= 8
    pitch = form.height + form.disc
    lift = 0.0 if thoracic or level == 2 else 3.0
    solids: list[Solid] = [
        Pillar((0, 0, 0), (bu, bv), form.height / 2, waist=0.10, lift=lift),
        Ring((0, canal_v, -2), (ku, kv), 4.2, 6.5, slope=0.35, front=bv - 3),
    ]
    hollows: list[Solid] = []
    pillar_v = canal_v - (0.0 if thoracic else 2.5)
    for side in (-1, 1):
        solids.append(
            Pillar((side * form.pillar, pillar_v, -1), (6.2, 6.0), (pitch - 1.6) / 2, shear=1.2 if thoracic else 0.85)
        )
        tip = form.transverse
        if thoracic:
            solids.append(Capsule((side * 16, canal_v, 0), (side * tip, canal_v + 8, 3), 5.5, 5.0))
        elif level == 7:
            solids.append(Capsule((side * 16, canal_v - 5, 0), (side * tip, canal_v - 2, -1), 6.0, 4.5))
        else:
            solids += [
                Ellipsoid((side * (bu + 7.5), 0.5, -1), (7.5, 6.0, 5.5)),
                Capsule((side * (bu + 10), -3.0, -1), (side * tip, -3.5, -3), 3.2, 2.8),
                Capsule((side * (bu + 10), 4.0, -1), (side * tip, 4.5, -3), 3.2, 2.8),
            ]
            hollows.append(Pillar((side * (bu + 6.8), 0.3, 0), (form.foramen, form.foramen), 14.0))
    root, tip_v = canal_v + kv + 1, canal_v + kv + form.spinous
    drop = -2 - form.slope * form.spinous
    thick = {2: 5.5, 7: 4.2, 8: 4.5}.get(level, 3.6)
    if form.bifid:
        fork = canal_v + kv + 0.5 * form.spinous
        fork_w = -2 - form.slope * 0.5 * form.spinous
        solids.append(Capsule((0, root, -2), (0, fork, fork_w), thick, thick))
        solids += [Capsule((0, fork, fork_w), (side * form.bifid, tip_v, drop), thick, thick - 0.4) for side in (-1, 1)]
    else:
        solids.append(Capsule((0, root, -2), (0, tip_v, drop), thick, thick + 1.2))
    return Bone(tuple(solids), tuple(hollows), form.transverse + 4, -bv, tip_v + thick)


def _ribs(level: int) -> tuple[Solid, ...]:
    """The rib's neck and first bow of T1, T2 and below; the first bow is tight, the lower ones wide."""
    reach = {8: 52.0, 9: 66.0, 10: 74.0}.get(level, 80.0)
    ribs: list[Solid] = []
    for side in (-1, 1):
        path = [(17.0, 9.0, 4.0), (34.0, 20.0, 2.0), (reach * 0.86, 16.0, -4.0), (reach, -8.0, -13.0)]
        path += [(reach * 0.93, -36.0, -25.0), (reach * 0.6, -60.0, -36.0)]
        points = [(side * u, v, w) for u, v, w in path]
        ribs += [Capsule(a, b, 4.6, 4.6) for a, b in pairwise(points)]
    return tuple(ribs)


def bone(level: int) -> Bone:
    """The vertebra of `level`: 1..7 = C1..C7, 8.. = T1..; sizes at scale 1."""
    if level == 1:
        return atlas()
    if level == 2:
        return axis()
    made = _common(level, FORMS[level])
    return Bone(made.solids, made.hollows, made.half_width, made.front, made.back, _ribs(level) if level >= 8 else ())
