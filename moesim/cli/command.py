"""Run a command, and say in one line what ended it.

This module imports next to nothing, so that Ctrl-C is answered while the command itself loads.
"""

import atexit
import gc
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from moesim.cli.streams import drop_output, prepare_streams
from moesim.errors import MoesimError, one_line
from moesim.files.addresses import masked_text
from moesim.processes import Ended, listening

#: exit codes: what the user can mend; the system refused to read or write
_BAD_INPUT, _SYSTEM = 2, 3
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
            prepare_streams()
            _to_the_end(command)
    except BrokenPipeError:  # of an --out that is a stream or FIFO
        drop_output()
        raise SystemExit(_SIGNALLED + signal.SIGPIPE) from None
    except OSError as error:
        drop_output()
        place = f"{error.filename}: " if error.filename is not None else ""
        _say(f"error: {place}{error.strerror or error}")
        raise SystemExit(_SYSTEM) from None
    except MoesimError as error:
        # notes are further errors of the same file
        for text in (f"error: {error}", *getattr(error, "__notes__", ())):
            _say(masked_text(text))
        raise SystemExit(error.exit_code) from None
    except ModuleNotFoundError as error:
        # imported on use: most commands need no more than numpy
        from moesim.cli.missing import missing_text

        said = missing_text(error)
        if said is None:
            raise
        _say(f"error: {said}")
        raise SystemExit(_BAD_INPUT) from None
    except MemoryError:
        _say("error: this machine has too little memory for it")
        raise SystemExit(_SYSTEM) from None
    except Ended as end:
        if end.signal == signal.SIGPIPE:  # the reader, such as `head`, has seen enough
            drop_output()
        else:
            kept = "; ".join(getattr(end, "__notes__", ["nothing was written"]))
            _say(f"ended by {end}: {kept}")
        raise SystemExit(_SIGNALLED + end.signal) from None


def _to_the_end(command: Callable[[], object]) -> None:
    """Run a command and hand over what it printed, so that a full disk shows before the exit."""
    try:
        command()
    finally:
        sys.stdout.flush()


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal is gone, or the disk of a log is full
        print(one_line(text), file=sys.stderr)
