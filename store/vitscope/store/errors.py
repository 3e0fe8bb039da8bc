"""What can be wrong with an index on disk.

    StoreError
    ├── NotAnIndexError      the folder holds no published index
    ├── UnsupportedFormatError   written by a version this reader does not know
    ├── DamagedIndexError    bytes differ from what was published
    ├── NotReadError         nothing is wrong with the index, but too much is open at once
    ├── NotWrittenError      the disk is full, or not to be written to
    └── NotKeptError         the index is sound but does not hold what was asked for

Every message is one sentence for the person who gave the path; `exit_code` is the command line's.
"""


class StoreError(Exception):
    """Base of all errors of this package."""

    exit_code = 4


class NotAnIndexError(StoreError):
    """The folder is missing, empty or something else."""


class UnsupportedFormatError(StoreError):
    """The format name or version is not one this reader knows."""


class DamagedIndexError(StoreError):
    """A file is missing, has another size or other bytes than the manifest says."""


class NotReadError(StoreError):
    """The system has no room to read at the moment; the index is not damaged."""


class NotWrittenError(StoreError):
    """An array could not be written."""


class NotKeptError(StoreError):
    """The layer, pooling, row or map asked for is not in this index."""
