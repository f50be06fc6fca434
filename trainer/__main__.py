"""`python -m trainer COMMAND ...`: the same as the console script."""

import sys

from trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
