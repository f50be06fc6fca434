"""`python -m benchmarks.beside COMMIT`: two commits' code in two processes, asked in turn."""

import pytest

from benchmarks import beside


@pytest.mark.check
def test_both_commits_are_measured_by_their_own_code(tmp_path):
    name = beside.checkout("HEAD", tmp_path / "tree")
    rounds = tmp_path / "tree" / "benchmarks" / "rounds.py"
    rounds.write_text(rounds.read_text() + "\n\ndef cost_of(work, parts=1):\n    return Cost(7.0, 8.0)\n")
    cache, _ = beside.write_inputs(tmp_path, 1, 96)
    here, there = (beside.asked(tree, cache, tmp_path / "png") for tree in (beside.HERE, tmp_path / "tree"))
    assert name and all(0 < here(kind).cpu_ms < 1e5 for kind in ("window", "triplet"))
    assert there("window") == (7, 8), "the other tree's code, not this one's"


def test_what_is_no_commit_is_told_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^nonsense: is not a commit of .*; expected one, as in"):
        beside.checkout("nonsense", tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
