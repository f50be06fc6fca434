"""A run of the throughput table compared with a kept one. Judged are ratios, since machines and their load differ."""

from collections.abc import Iterator
from statistics import median

from benchmarks.suite.run import OURS, ROWS, Run

FALLEN = 1 / 3
"""a smaller fall may be noise"""


def fallen(new: Run, kept: Run) -> Iterator[str]:
    """A line for each factor over a way that both runs have, and that fell by more than a third."""
    for way in kept.others():
        for row in ROWS:
            before = kept.factor(row, way)
            after = new.factor(row, way) if way in new.ways else None
            if before is None or after is None:
                continue
            was, now = median(before.pairs), median(after.pairs)
            if now < was * (1 - FALLEN):
                yield f"{ROWS[row].title}: {way} cost {was:.3g} times cspine's, and now {now:.3g} times"


def compared(new: Run, kept: Run) -> str:
    """What fell, and what could not be compared."""
    lines = list(fallen(new, kept)) or ["nothing fell by more than a third"]
    gone = [way for way in kept.others() if way not in new.ways or not new.ways[way].costs]
    if gone:
        lines.append(f"not measured this time: {', '.join(gone)}")
    if new.machine != kept.machine:
        lines.append(f"the kept run is of another machine: {', '.join(kept.machine.values())}")
    both = f"compared with commit {kept.commit} of {kept.date}, by each way's cost over {OURS}'s"
    return "\n".join([both, *(f"  {line}" for line in lines)])
