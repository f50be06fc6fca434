"""Keyed pseudonyms in place of UIDs: the same key gives the same pseudonym, and only the key can link it to the UID."""

import hashlib
import hmac
from pathlib import Path

from cache_schema.errors import UsageError
from cache_schema.study import Study

MIN_KEY_BYTES = 16


class Pseudonyms:
    """Called with a UID, gives `2.25.<number>` (a UID of its own, DICOM PS3.5 B.2) from HMAC-SHA256 under the key."""

    def __init__(self, key: bytes):
        self._key = key

    @classmethod
    def read(cls, path: str | Path) -> "Pseudonyms":
        """The key is the whole content of a file, surrounding white space aside. Raises UsageError where it is missing or short."""
        if not Path(path).is_file():
            raise UsageError("no such file", where=path, expected="a file with a secret key")
        key = Path(path).read_bytes().strip()
        if len(key) < MIN_KEY_BYTES:
            raise UsageError("the key is too short", where=path, expected=f"{MIN_KEY_BYTES} bytes or more")
        return cls(key)

    def __call__(self, uid: str) -> str:
        return f"2.25.{int.from_bytes(hmac.digest(self._key, uid.encode(), 'sha256')[:16], 'big')}" if uid else uid

    @property
    def fingerprint(self) -> str:
        """Tells whether two keys are the same, and nothing else."""
        return hashlib.sha256(b"fingerprint:" + self._key).hexdigest()

    def study(self, study: Study) -> Study:
        """The same study under its pseudonyms."""
        record = study.record
        names = {name: self(getattr(record, name)) for name in ("id", "study_uid", "series_uid")}
        record = record.model_copy(update=names)
        return Study(record, study.z, study.slice_number, study.pixels, study.slice_box, study.vertebra_ratio)
