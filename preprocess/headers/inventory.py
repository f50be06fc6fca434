"""The header pass: every file of a source is opened once, in natural order of the paths."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cache_schema.store_path import Place, each
from preprocess.findings import Finding
from preprocess.headers.file_header import FileHeader
from preprocess.headers.packed import PackedHeaders
from preprocess.headers.read import OtherFile, read_headers
from preprocess.headers.source_files import find_files

FILES_A_PACK = 128


@dataclass
class Inventory:
    """What the files of a source are. studies: headers by StudyInstanceUID, "" where that is absent. unread: findings about
    files that are no image and should be one, or may be."""

    studies: dict[str, PackedHeaders] = field(default_factory=dict)
    unread: list[Finding] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """how many files are known to be something else, by kind"""

    @property
    def headers(self) -> list[FileHeader]:
        """All of them, unpacked, study by study."""
        return [header for packed in self.studies.values() for header in packed]

    def add(self, other: "Inventory") -> None:
        for uid, packed in other.studies.items():
            self.studies.setdefault(uid, PackedHeaders()).add(packed)
        self.unread += other.unread
        self.others += other.others

    def about_others(self) -> list[Finding]:
        """One row that counts what was passed over, or none."""
        if not self.others:
            return []
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.others.items()))
        return [Finding("", "", "flagged", "other_files", f"skipped: {counts}")]


def scan(source: str | Place, salt: bytes = b"") -> Inventory:
    """Read the headers of every DICOM file under `source`, in natural order of their paths.

    `source` is an RSNA folder (its `train_images` is read), any tree, or a single file. salt: see
    `preprocess.headers.read.read_headers`. Whatever the files hold becomes a header, a finding or a count, never an exception.
    Raises UsageError when `source` does not exist.
    """
    files, unlisted = find_files(source)
    found = Inventory(unread=unlisted)
    for batch in files.batches(FILES_A_PACK):
        found.add(read_many(batch, salt))
    return found


def read_many(numbered: Sequence[tuple[int, Place]], salt: bytes = b"") -> Inventory:
    """The header pass over some files of a source, numbered as in the whole of it."""
    found = Inventory()
    headers: dict[str, list[FileHeader]] = {}
    numbers, paths = [number for number, _ in numbered], [path for _, path in numbered]
    for number, content in zip(numbers, each(partial(read_headers, salt=salt), paths), strict=True):
        if isinstance(content, Finding):
            found.unread.append(replace(content, file=str(number)))
        elif isinstance(content, OtherFile):
            found.others[content.kind] += 1
        else:
            for header in content:
                headers.setdefault(header.study_uid, []).append(replace(header, number=number))
    found.studies = {uid: PackedHeaders(members) for uid, members in headers.items()}
    return found
