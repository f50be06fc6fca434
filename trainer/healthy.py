"""`trainer healthy OUT`: whether the watch that writes into OUT is at work. For health checks: it imports only what is fast."""

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once

    answer_at_once("interrupted")

import os
import sys
import time
from pathlib import Path

from trainer.process.heartbeat import read_beat

HELP = """usage: trainer healthy OUT

Says in one line whether `trainer predict watch=IN out=OUT` is at work. It writes down what it does before each step, and by when
it will have ended: a look at IN, or the wait for the next one, within five minutes; one model on the studies in memory within
an hour. A step that takes longer counts as hung.
Exit status: 0 it is at work, 1 it is not, 2 a wrong command."""


def main(words: list[str]) -> int:
    if not words or {"-h", "--help", "help"} & set(words):
        print(HELP)
        return 0 if words else 2
    if len(words) != 1 or ("=" in words[0] and not os.path.exists(words[0])):
        print("error: expected one folder, the out= of the watch; see --help", file=sys.stderr)
        return 2
    out, now = Path(words[0]), time.time()
    found = read_beat(out)
    if found is None:
        print(f"{out}: no watch is at work; start trainer predict watch=IN out={out}", file=sys.stderr)
        return 1
    ago = max(0, round(now - found.time))
    if now > found.until:
        most = round(found.until - found.time)
        print(
            f"{out}: silent for {ago} s while {found.doing}; expected at most {most} s; end it and start it again",
            file=sys.stderr,
        )
        return 1
    print(f"{out}: {found.doing}, heard of {ago} s ago")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
