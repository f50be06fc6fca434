"""`python -m benchmarks.gpu`: which parts run, for how long, and what is kept of them."""

import pytest

from benchmarks import gpu, rounds

FAST = ["-c", "print('as fast as it goes')"]
ENDLESS = ["-c", "import time; print('something', flush=True); time.sleep(60)"]


def test_parts_run_in_the_order_given_and_variants_belong_to_train(capsys):
    assert gpu.read(["train", "bbox:01B", "vertebrae:04A", "images"]) == [
        ("train", ["bbox:01B", "vertebrae:04A"]),
        ("images", []),
    ]
    for words in (["bbox:01B"], ["images", "bbox:01B"], ["train", "bbox:99"], ["test"]):
        assert gpu.read(words) is None
        said = capsys.readouterr().err
        assert (
            said.startswith(f"error: no part {words[-1]}; expected images, tests, ceiling, train, or")
            and said.count("\n") == 1
        )


@pytest.mark.parametrize(("part", "command"), [("images", FAST), ("tests", ENDLESS)])
def test_a_part_keeps_what_it_has_found_and_ends_in_time(part, command, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(rounds, "RESULTS", tmp_path)
    monkeypatch.setitem(gpu.MODULES, part, command)
    monkeypatch.setattr(gpu, "SECONDS", 3)
    assert gpu.run(part, [], "a-card") == (command is FAST)
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith(f"gpu-{part}-a-card-")
    assert kept.read_text() == {"images": "as fast as it goes", "tests": "something"}[part]
    assert (f"== {part}: 3 s are over" in capsys.readouterr().out) == (command is ENDLESS)


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main(["images"]) == 2
    assert capsys.readouterr().err == "error: no GPU, and every part needs one\n"
