"""The command line: `trainer COMMAND ...` is `python -m trainer.COMMAND ...`, from any folder.

Imports nothing that takes time: help and a mistyped command are answered in a moment.
"""

import runpy
import sys

from trainer.process.ending import answer_at_once

COMMANDS = {
    "run": "train one stage on one fold, or predict with it",
    "plan": "make every run and table of a plan; skip what is done",
    "tables": "make the tables and scores that finished runs allow",
    "predict": "probabilities of fractures in new studies, by the models of a plan",
    "healthy": "whether the watch of trainer predict watch=IN is at work; for health checks",
    "pack": "the models of a plan in one file",
    "bundle": "models and packages in one folder, for a machine without a network",
    "inspect": "what a packed file holds, after a check of every byte",
    "doctor": "what holds a training back on this machine, and which setting changes it",
    "look": "contact sheets of what a model is shown, or figures of the tables",
}
HELP = "\n".join(
    [
        "usage: trainer COMMAND key=value ...",
        "",
        *(f"  {name:9} {what}" for name, what in COMMANDS.items()),
        "",
        "`trainer COMMAND --help` says more. `accelerate launch -m trainer.run ...` is `trainer run ...` in several processes.",
        "`trainer plan` takes a plan's file, or the name of one that comes with the package: demo, oof, native, rsna22 ...",
        "Exit status: that of the command; 2 for a command that is none.",
    ]
)


def main(words: list[str] | None = None) -> int:
    """Runs a command as `python -m` does, which ends with its own exit status, or answers itself. words: [sys.argv's]."""
    answer_at_once("interrupted")
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if words else 2
    command, *rest = words
    if command not in COMMANDS:
        from trainer.settings.keyvalue import nearest

        print(f"error: no command {command}; {nearest(command, COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"trainer {command}", *rest]
    runpy.run_module(f"trainer.{command}", run_name="__main__", alter_sys=True)
    return 0
