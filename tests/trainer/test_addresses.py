"""Only caches, and sources that are caches, lie in stores: elsewhere an address is one line, before anything is made."""

from importlib import import_module

import pytest

from cache_schema.errors import UsageError
from trainer.settings.layers import load


@pytest.mark.parametrize("address", ["s3://bucket/a", "gs://bucket/a", "http://host/a", "file:///a"])
@pytest.mark.parametrize(
    ("start", "given"),
    [
        ("run", "stage=bbox cache=. out={}"),
        ("run", "stage=bbox cache=. out=runs boxes={}"),
        ("run", "stage=bbox cache=. out=runs model.weights_file={}"),
        ("run", "stage=bbox cache=. out=runs config=one.yaml,{}"),
        ("run", "stage=bbox cache=. out=runs mode=predict weights={}"),
        ("plan.__main__", "{} cache=. out=runs"),
        ("plan.__main__", "plan.yaml cache=. out={}"),
        ("tables.__main__", "{} cache=."),
        ("predict", "source=. models={} out=runs"),
        ("predict", "source=. models=. out={}"),
        ("look.__main__", "tables={} out=runs"),
    ],
)
def test_an_address_where_a_path_is_meant_is_one_line_and_makes_nothing(
    tmp_path, monkeypatch, capsys, start, given, address
):
    monkeypatch.chdir(tmp_path)
    assert import_module(f"trainer.{start}").main(given.format(address).split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"error: {address}: is an address" in err, err
    assert list(tmp_path.iterdir()) == []


def test_an_address_in_a_file_of_settings_is_one_line_too(tmp_path):
    (tmp_path / "own.yaml").write_text("stages:\n  bbox:\n    out: s3://bucket/runs\n")
    with pytest.raises(UsageError, match="s3://bucket/runs: is an address"):
        load(["stage=bbox", f"cache={tmp_path}", f"config={tmp_path / 'own.yaml'}"])


@pytest.mark.parametrize(
    ("address", "words"), [("file:///a", "of an unknown scheme"), ("http://host/a", "is plain http")]
)
@pytest.mark.parametrize(
    ("start", "given"),
    [
        ("run", "stage=bbox cache={} out=runs"),
        ("plan.__main__", "plan.yaml cache={} out=runs"),
        ("tables.__main__", ". cache={}"),
        ("predict", "source={} models=. out=runs"),
    ],
)
def test_an_address_of_no_store_is_one_line_and_makes_nothing(
    tmp_path, monkeypatch, capsys, start, given, address, words
):
    monkeypatch.chdir(tmp_path)
    assert import_module(f"trainer.{start}").main(given.format(address).split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err, err
    assert list(tmp_path.iterdir()) == []
