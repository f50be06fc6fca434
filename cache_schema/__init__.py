"""What a study is, in memory and on disk: all that preprocessing and training share."""

from cache_schema.layout import LEVELS, TARGETS
from cache_schema.store import Cache
from cache_schema.study import Study, StudyBox, StudyRecord
from cache_schema.writer import CacheWriter

__all__ = ["LEVELS", "TARGETS", "Cache", "CacheWriter", "Study", "StudyBox", "StudyRecord"]
