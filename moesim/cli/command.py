"""Run a command, and say in one line what ended it.

This module imports next to nothing, so that Ctrl-C is answered while the command itself loads.
"""

import atexit
import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from moesim.errors import MoesimError, one_line
from moesim.files.addresses import masked_text
from moesim.processes import Ended, listening

#: exit codes: what the user can mend; the system refused to read or write; the reader of the output
#: went away
_BAD_INPUT, _SYSTEM, _BROKEN_PIPE = 2, 3, 141
#: what shells add to the number of the signal that ended a process
_SIGNALLED = 128


def run_command(command: Callable[[], object]) -> None:
    """Run a command, and print errors that a user can fix as one line.

    Args:
        command: The function to call, without arguments.

    Raises:
        SystemExit: The command failed; exit code 2 with one line on stderr, 3 where the system
            refused to read or write, 130 after Ctrl-C, 143 after SIGTERM, 129 where the terminal
            was closed, 141 where the output's reader went away.
    """
    # at the exit everything goes at once: to look for cycles in a large study takes half a second
    atexit.register(gc.freeze)
    try:
        with listening():
            _to_the_end(command)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _drop_output()
        raise SystemExit(_BROKEN_PIPE) from None
    except OSError as error:
        _drop_output()
        place = f"{error.filename}: " if error.filename is not None else ""
        print(one_line(f"error: {place}{error.strerror or error}"), file=sys.stderr)
        raise SystemExit(_SYSTEM) from None
    except MoesimError as error:
        # notes are further errors of the same file
        for text in (f"error: {error}", *getattr(error, "__notes__", ())):
            print(one_line(masked_text(text)), file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except ModuleNotFoundError as error:
        # imported on use: most commands need no more than numpy
        from moesim.cli.missing import missing_text

        said = missing_text(error)
        if said is None:
            raise
        print(one_line(f"error: {said}"), file=sys.stderr)
        raise SystemExit(_BAD_INPUT) from None
    except MemoryError:
        print("error: this machine has too little memory for it", file=sys.stderr)
        raise SystemExit(_SYSTEM) from None
    except Ended as end:
        kept = "; ".join(getattr(end, "__notes__", ["nothing was written"]))
        with suppress(OSError):  # the terminal is gone
            print(one_line(f"ended by {end}: {kept}"), file=sys.stderr)
        raise SystemExit(_SIGNALLED + end.signal) from None


def _to_the_end(command: Callable[[], object]) -> None:
    """Run a command and hand over what it printed, so that a full disk shows before the exit."""
    try:
        command()
    finally:
        if sys.stdout is not None:  # it was closed before the start
            sys.stdout.flush()


def _drop_output() -> None:
    """Let the interpreter's own flush at the exit succeed, where the output cannot be written."""
    with suppress(
        OSError, ValueError, AttributeError
    ):  # a stream without a file cannot fail at the exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
