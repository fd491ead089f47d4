"""Every error a user can meet, in one tree.

::

    SpiceError                    base; carries the exit code of the command line
    ├── ConfigError (ValueError)  2  a setting, flag or argument that cannot be used
    │   └── BudgetError           2  a budget of nothing, or of more than there is
    ├── DataError                 3  rows that cannot be read or used
    ├── ModelError                3  a model or tokenizer that cannot be read or used
    ├── StoreError                3  a gradient store that cannot be read
    │   └── StoreCorrupt          3  a shard whose bytes are not those that were written
    ├── OutputError               4  an output that cannot be written
    │   ├── StoreMismatch         4  an output that belongs to other settings
    │   └── OutputBusy            4  an output that another run is writing
    └── ResourceError             4  memory or disk that ran out

Each message is one sentence: the field, its value, and what to do.
"""


class SpiceError(Exception):
    """Base of every error that is the user's to mend.

    Attributes:
        exit_code: status that the command line exits with.
    """

    exit_code = 1


class ConfigError(SpiceError, ValueError):
    """A setting, flag or argument that cannot be used."""

    exit_code = 2


class BudgetError(ConfigError):
    """A budget of nothing, or of more rows than can be chosen."""


class DataError(SpiceError):
    """Rows that cannot be read or used."""

    exit_code = 3


class ModelError(SpiceError):
    """A model or tokenizer that cannot be read or used."""

    exit_code = 3


class StoreError(SpiceError):
    """A gradient store that cannot be read."""

    exit_code = 3


class StoreCorrupt(StoreError):
    """A shard whose bytes are not those that were written."""


class OutputError(SpiceError):
    """An output that cannot be written."""

    exit_code = 4


class StoreMismatch(OutputError):
    """An output folder that belongs to other settings; the difference is named."""


class OutputBusy(OutputError):
    """An output folder that another process is writing."""


class ResourceError(SpiceError):
    """Memory, disk or another resource that ran out."""

    exit_code = 4
