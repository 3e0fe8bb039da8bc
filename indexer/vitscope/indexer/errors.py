"""What can be wrong with an indexing run before or while it works.

    IndexingError
    ├── SourceError       the pictures: no such folder, nothing in it
    ├── ModelError        the model: unknown, unsupported, weights missing or of another model
    ├── OutputError       the output folder: something else is there, or another run's work
    └── NothingNewError   all pictures to be added are there already: no failure

Every message is one sentence for the person who typed the command.
"""


class IndexingError(Exception):
    """Base of all errors of this package."""

    exit_code = 3


class SourceError(IndexingError):
    """The pictures cannot be listed."""


class ModelError(IndexingError):
    """The model cannot be made, or its feed-forward blocks cannot be indexed."""


class OutputError(IndexingError):
    """The output folder cannot take this run."""


class NothingNewError(IndexingError):
    """Every picture that was to be added is in the index already."""

    exit_code = 0
