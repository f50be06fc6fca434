"""What a user may get wrong with a store, or a network: one line each, and no secret in it, behind it or in a log."""

import logging
import traceback
import zipfile

import pytest
from kept import write_cache
from s3_server import environment, free_port

from cache_schema import Cache, CacheWriter
from cache_schema.errors import CspineError, UsageError
from cache_schema.stores import StoreError

SECRET = "wJalrXUtnFEMI/K7MDENG"


def line_of(caplog, address, opened=Cache, kind=StoreError) -> str:
    """The one line that opening it ends with. Neither it, nor what is behind it, nor any log holds the secret."""
    with caplog.at_level(logging.DEBUG), pytest.raises(CspineError) as caught:
        opened(address)
    line, error = str(caught.value), caught.value
    assert type(error) is kind and "\n" not in line and len(line) < 300, line
    shown = [line, "".join(traceback.format_exception(error)), repr(error.__dict__), caplog.text]
    assert not [text for text in shown if SECRET in text or "Signature" in text], shown
    return line


@pytest.mark.parametrize("opened", [Cache, CacheWriter])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET},
            "refuses access; check AWS_ACCESS",
        ),
        ({"AWS_SECRET_ACCESS_KEY": SECRET}, "refuses access; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no credentials; set AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_and_missing_credentials(s3, caplog, opened, changes, words):
    with environment(changes):
        assert words in line_of(caplog, "s3://bucket/errors-of-keys", opened)


@pytest.mark.parametrize("opened", [Cache, CacheWriter])
def test_a_bucket_that_is_not_there(s3, caplog, opened):
    assert "s3://bukcet: no such bucket" in line_of(caplog, "s3://bukcet/cache", opened)


def test_no_network(s3, caplog):
    with environment({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_SECRET_ACCESS_KEY": SECRET}):
        line = line_of(caplog, "s3://bucket/no-network")
    assert "s3://bucket: the store does not answer" in line and "AWS_ENDPOINT_URL" in line
    assert "does not answer" in line_of(caplog, f"http://127.0.0.1:{free_port()}/cache")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/cache", "holds more than a place"),
        ("s3://AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI@bucket/cache", "holds more than a place"),
        (f"https://reader:{SECRET}@127.0.0.1/cache", "holds more than a place"),
        (f"ftp://reader:{SECRET}@127.0.0.1/cache", "unknown scheme; expected s3, gs, https, memory"),
        (f"https://127.0.0.1/cache?X-Amz-Security-Token={SECRET}", "holds more than a place"),
        ("https://127.0.0.1:port/cache", "holds more than a place"),
        ("https://[127.0.0.1/cache", "holds more than a place"),
        ("http://example.org/cache", "is plain http; expected https"),
        ("http://127.0.0.1.example.org/cache", "is plain http; expected https"),
        ("s4://bucket/cache", "unknown scheme"),
        ("s3:///cache", "names no bucket"),
        ("memory://", "names no bucket, host or name"),
    ],
)
@pytest.mark.parametrize("opened", [Cache, CacheWriter])
def test_addresses_that_are_none(caplog, opened, address, words):
    line = line_of(caplog, address, opened, UsageError)
    assert words in line and "wJalr" not in line and "reader" not in line


@pytest.mark.parametrize("endpoint", ["http://example.org", f"https://key:{SECRET}@127.0.0.1", "127.0.0.1:9000"])
def test_an_endpoint_that_is_none(s3, caplog, endpoint):
    with environment({"AWS_ENDPOINT_URL": endpoint}):
        assert "AWS_ENDPOINT_URL" in line_of(caplog, "s3://bucket/endpoints", kind=UsageError)


def test_an_endpoint_may_end_with_a_slash(s3):
    write_cache("s3://bucket/slash")
    with environment({"AWS_ENDPOINT_URL": f"{s3.endpoint}/"}):
        assert Cache("s3://bucket/slash/").ids == ["1.2.3", "1.2.4"]


def test_a_place_without_a_cache(s3, caplog):
    for address in ("s3://bucket/nothing", "memory://nothing"):
        assert "is not a cache" in line_of(caplog, address, kind=UsageError)


def test_zip_files_that_are_none(tmp_path, caplog):
    (tmp_path / "text.zip").write_text("no zip file")
    assert "cannot be read as a zip file" in line_of(caplog, tmp_path / "text.zip", kind=UsageError)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "no cache")
    assert "is not a cache" in line_of(caplog, tmp_path / "other.zip", kind=UsageError)
    assert "no such folder" in line_of(caplog, tmp_path / "missing.zip", kind=UsageError)
