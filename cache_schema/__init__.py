"""What a study is, in memory and on disk: all that preprocessing and training share. This list is the public API."""

from cache_schema.errors import CacheError, CspineError, StaleStudy, StudyRefused, UsageError
from cache_schema.layout import LEVELS, TARGETS
from cache_schema.store import Cache
from cache_schema.study import Study, StudyBox, StudyRecord
from cache_schema.tables import read_table, write_table
from cache_schema.writer import CacheWriter

__all__ = [
    "LEVELS",
    "TARGETS",
    "Cache",
    "CacheError",
    "CacheWriter",
    "CspineError",
    "StaleStudy",
    "Study",
    "StudyBox",
    "StudyRecord",
    "StudyRefused",
    "UsageError",
    "read_table",
    "write_table",
]
