"""What a build is made of: the files of its source, listed once they are needed, and a digest that tells whether they changed."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cache_schema.errors import UsageError
from cache_schema.store_path import Place
from cache_schema.writer import CacheWriter
from preprocess.build.state import load_source, save_source, tree_digest
from preprocess.findings import Finding
from preprocess.headers.source_files import SourceFiles, are_unchanged, find_files
from preprocess.progress import Steps, progress_over


@dataclass
class Source:
    """path: a folder, a file or a place in a store. without: folders that are not looked into. trust_mtime: take folders on a
    disk whose times are those of the build before, in `cache`, to hold the same files, unchanged."""

    path: Place
    without: list[Place]
    cache: Place
    trust_mtime: bool

    @property
    def files(self) -> SourceFiles:
        return self._listing[0]

    @property
    def unlisted(self) -> list[Finding]:
        """A finding for each folder that cannot be listed."""
        return self._listing[1]

    @cached_property
    def digest(self) -> str:
        """Of names, sizes and times of all files: a stat for each; of each folder only where these are trusted and have
        their times. Raises UsageError where there is no file."""
        if self.trust_mtime and isinstance(self.path, Path):
            digest, folders = load_source(self.cache)
            if digest and are_unchanged(self.path, folders, without=self.without):
                return digest
        with progress_over("sizes and times", brief=True, files=len(self.files)) as steps:
            return tree_digest(_counted(self.files.below(self.path), steps), self.files.states)

    def keep(self, writer: CacheWriter) -> None:
        """For a build that trusts times: what the folders were like. Nothing where only the folders were looked at."""
        if "_listing" in self.__dict__:
            save_source(writer, self.digest, self.files.folders)

    @cached_property
    def _listing(self) -> tuple[SourceFiles, list[Finding]]:
        with progress_over("listing", brief=True, folders=None, files=None) as steps:
            files, unlisted = find_files(self.path, without=self.without, steps=steps)
        if not files and not unlisted:
            raise UsageError("holds no files", where=self.path, expected="DICOM files")
        return files, unlisted


def _counted(files: Iterator[tuple[str, str]], steps: Steps) -> Iterator[tuple[str, str]]:
    for file in files:
        yield file
        steps.advance(files=1)
