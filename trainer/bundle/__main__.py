"""`trainer bundle out=FOLDER models=FILE.cspine`: all that prediction needs, in one folder for a machine without a network."""

if __name__ == "__main__":
    from trainer.process.ending import answer_at_once

    answer_at_once("interrupted: run the same command to continue")

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.process.command import one_of, say, serve
from trainer.process.ending import leave
from trainer.settings.keyvalue import assignments, require_known, split_files
from trainer.settings.paths import check_folder

HELP = """usage: trainer bundle out=FOLDER models=FILE.cspine [target=kaggle|bare|FILE] [python=3.11|3.12|3.13]
           [cuda=target|cu13|cu12|cpu] [torch=FILE.whl[,FILE.whl]]

Makes a folder to carry to a machine without a network: the project, wheels of what prediction needs and the target does not
have, the models, and `predict.py`, which checks the folder and the machine and answers: python predict.py source=FOLDER out=DIR.
models=   a file made by trainer pack
target=   what the target has: kaggle (the default) is a notebook there, bare has Python only, FILE is what pip freeze prints there
python=   of the target; by default kaggle's, else the one that runs this
cuda=target   the target's own torch, which must be new enough (the default but for bare)
cuda=cu13     torch for CUDA 13, as it is installed here (the default for bare)
cuda=cu12     the newest torch that comes for CUDA 12
cuda=cpu      torch without CUDA, given as torch=FILE.whl; without torch= the one of cu13, which works without a GPU
torch=    wheels of torch and, if it is another version than the one here, of torchvision
Wheels come by pip from your package registry. Made again it is the same folder, byte for byte.
Exit status: 0 done, 2 a wrong setting, or a package that cannot be had."""

CUDA = ("target", "cu13", "cu12", "cpu")
KEYS = ("out", "models", "target", "python", "cuda", "torch")


def main(words: list[str]) -> int:
    return serve(words, HELP, _main, "interrupted: run the same command to continue")


def _main(words: list[str]) -> None:
    given = assignments(words)
    for key in given:
        require_known(key, KEYS, f"no setting {key}")
    from cache_schema.errors import UsageError
    from trainer.bundle.choose import choose
    from trainer.bundle.targets import PYTHONS
    from trainer.bundle.write import check_out, write_bundle
    from trainer.trained.pack_file import PackFile

    for key, example in (("out", "out=FOLDER"), ("models", "models=FILE.cspine")):
        if not given.get(key):
            raise UsageError(f"no {key} given", expected=example, do="see --help")
    out, models = Path(given["out"]), Path(given["models"])
    check_folder(out)
    check_out(out)
    if not models.is_file():
        raise UsageError("no such file", where=f"models={models}", expected="a file made by trainer pack")
    name, python = given.get("target", "kaggle"), given.get("python")
    if python is not None:
        python = one_of(given, "python", PYTHONS)
    cuda = one_of(given, "cuda", CUDA if name != "bare" else (CUDA[1], CUDA[0], *CUDA[2:]))
    torch = split_files(given["torch"]) if "torch" in given else []
    contents = choose(name, python, cuda, torch, models)
    PackFile(models).check()
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest = write_bundle(out, contents, say)
    for line in _told(manifest):
        say(line)
    say(f"for Python {manifest['python']}: {out}")


def _told(manifest: dict[str, Any]) -> Iterator[str]:
    """What it brings, what is the target's, and the size."""
    sizes = {file: size for file, (size, _) in manifest["files"].items()}
    yield "brings:"
    for file, size in sorted(sizes.items(), key=lambda each: -each[1]):
        if file.endswith(".whl"):
            yield f"  {size / 1e6:8.1f} MB  {file.rpartition('/')[2]}"
    own = ", ".join(f"{name} {each['version']}" for name, each in manifest["own"].items())
    yield f"the target's own: {own or 'none'}"
    yield f"{sum(sizes.values()) / 1e6:.1f} MB in all, of them {sizes['MODELS.cspine'] / 1e6:.1f} MB of models"


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
