"""UIDs that are a function of what they name, so that the same results have the same UIDs wherever they are written."""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cache_schema.documents import digest_of
from preprocess.results.key_slice import KeySlice


class Identifiers(NamedTuple):
    """What all UIDs of one study's results derive from. content: a digest of everything that is written.

    It is among them since an archive takes a UID for a promise: two files with one SOP Instance UID hold the same.
    """

    study_uid: str
    models_digest: str
    content: str

    def uid(self, kind: str, number: int = 0) -> str:
        """A UID under 2.25 (DICOM PS3.5 B.2), from a name-based UUID."""
        name = "\n".join(("cspine", self.study_uid, self.models_digest, self.content, kind, str(number)))
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"


def digest_of_results(
    key_slices: Sequence[KeySlice],
    probabilities: Mapping[str, float | None],
    calibrated: Mapping[str, float] | None,
    notes: Sequence[str],
    sources: Sequence[tuple[str, int]],
    version: str,
) -> str:
    """sources: SOP Instance UID and frame of each key slice. version: of cspine. Raises ValueError for NaN."""
    slices = [
        [each.level, each.z_index, float(each.fracture), hashlib.sha256(each.image.tobytes()).hexdigest(), *source]
        for each, source in zip(key_slices, sources, strict=True)
    ]
    plain = {level: None if value is None else float(value) for level, value in probabilities.items()}
    better = {level: float(value) for level, value in (calibrated or {}).items()}
    return digest_of([slices, plain, better, list(notes), version])
