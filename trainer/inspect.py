"""`trainer inspect FILE.cspine`: what a packed file holds, after a check of every byte."""

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once

    answer_at_once("interrupted")

import sys
from pathlib import Path

from cache_schema.errors import UsageError, did_you_mean_path
from trainer.process.command import say, serve
from trainer.process.ending import leave
from trainer.trained.pack_file import CARD, EXPECTED, PackFile

HELP = """usage: trainer inspect FILE.cspine

Compares every byte of the file with its digests, then prints the model card.
Exit status: 0 it is sound, 1 it is damaged, 2 it is no such file."""


def main(words: list[str]) -> int:
    return serve(words, HELP, _main, "interrupted")


def _main(words: list[str]) -> None:
    if len(words) != 1:
        raise UsageError(f"{len(words)} files given", expected="one FILE.cspine", do="see --help")
    path = Path(words[0])
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise UsageError(what, where=path, expected=EXPECTED, do=did_you_mean_path(path.absolute()))
    file = PackFile(path)
    file.check()
    say(file.read(CARD).decode())
    say(f"{path}: every byte matches its digest")


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
