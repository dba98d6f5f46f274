"""Make the standard streams ones that a command can always write to.

A stream that was closed before the start leads to nowhere: otherwise a library finds none, or the
next file that is opened takes its number. Where the reader of the output goes away, as ``head``
does, the command ends as by SIGPIPE: an `OSError` would be answered by command-line libraries, each
in its own way.
"""

import io
import os
import signal
import sys
from contextlib import suppress

from moesim.processes import Ended

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class _Output(io.FileIO):
    """The output, whose reader may go away."""

    def write(self, content):
        """Write bytes.

        Raises:
            Ended: The reader went away.
            OSError: The system refused, such as for a full disk; the error names the stream.
        """
        try:
            return super().write(content)
        except BrokenPipeError:
            raise Ended(signal.SIGPIPE) from None
        except OSError as error:
            error.filename = "standard output"
            raise


def prepare_streams() -> None:
    """Open the standard streams that are closed, and watch for a reader that goes away."""
    for number, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    out = sys.stdout
    # what a test or a notebook puts there is theirs
    if out is sys.__stdout__ and isinstance(out, io.TextIOWrapper) and not out.isatty():
        out.flush()
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(out.fileno(), "w", closefd=False)),
            encoding=out.encoding,
            errors=out.errors,
            line_buffering=out.line_buffering,
            write_through=out.write_through,
        )


def drop_output() -> None:
    """Let the interpreter's own flush at the exit succeed, where the output cannot be written."""
    # a stream without a file cannot fail at the exit either
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


__all__ = ["drop_output", "prepare_streams"]
