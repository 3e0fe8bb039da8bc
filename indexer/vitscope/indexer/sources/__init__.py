"""Where pictures come from: one file per kind of source, all giving the same frozen row list."""

from vitscope.indexer.sources.recognise import open_source
from vitscope.indexer.sources.rows import RowList, Source, SourceRow

__all__ = ["RowList", "Source", "SourceRow", "open_source"]
