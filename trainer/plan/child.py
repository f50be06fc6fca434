"""`python child.py PARENT COMMAND ...`: becomes the command, which ends when the process PARENT does."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when its parent dies; it outlives exec"""


def main(words: list[str]) -> None:
    parent, *command = words
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(1)  # it died before the signal was set
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
