"""The command line: one thin file a verb, and the exit codes."""

from __future__ import annotations

import errno
import os
import sys
import warnings

from spice_select.errors import ResourceError, SpiceError, printable

_INTERRUPTED = 130
_GOES_ON = "Interrupted; the same command takes up the work where it stopped."


def main() -> None:
    """Entry point of ``spice-select``.

    Exit codes: 0 done; 2 usage or configuration; 3 data or a model that cannot be read; 4 output or resources;
    130 interrupted. A user's mistake prints one sentence on stderr and no traceback.
    """
    # Progress of the libraries below would tear our own; their warnings are for developers.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Nothing is told to anyone: what is fetched from the Hub is all that the network is for.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        from spice_select.cli.app import app

        app()
    except SpiceError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail(_GOES_ON, _INTERRUPTED)
    except SystemExit as stop:
        # Typer turns an interrupt into this exit, without a word.
        if stop.code == _INTERRUPTED:
            _fail(_GOES_ON, _INTERRUPTED)
        raise
    except MemoryError:
        _fail("Memory ran out; lower gradients.batch_tokens or data.max_length.", ResourceError.exit_code)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _fail(f"The name {str(error.filename)[:40]}... is too long for this system; give another.", 2)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        place = f" on {error.filename}" if error.filename else ""
        _fail(f"The output cannot be written{place}: {error.strerror}; make room or name another folder.", 4)


def _fail(sentence: str, code: int) -> None:
    print(f"error: {printable(sentence)}", file=sys.stderr, flush=True)
    sys.exit(code)
