"""`python predict.py source=FOLDER out=DIR [setting of trainer predict ...]`: answers by the models and packages of this folder."""

import os
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # the folder may be read-only, and its files are checked

from check import FOLDER, Refused, check_versions, checked, environment, unpacked  # noqa: E402

if __name__ == "__main__":
    given = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
    if not given.get("source") or not given.get("out"):
        print(f"usage: {__doc__}", file=sys.stderr)
        sys.exit(2)
    own = Path(os.path.abspath(os.path.expanduser(given["out"])), "bundle")
    try:
        manifest = checked()
        packages = unpacked(manifest, own)
        check_versions(manifest["own"], packages)
        variables = environment(packages, own)
    except KeyboardInterrupt:
        sys.exit(130)
    except (Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.stdout.flush()
    words = [sys.executable, "-m", "trainer.bundle.arrival", str(FOLDER), *sys.argv[1:]]
    os.execve(sys.executable, words, variables)
