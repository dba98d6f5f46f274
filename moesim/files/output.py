"""The one writer of output files: whole or not at all, and never in place of something else.

A plain file is replaced at once by a finished one of the same mode and owner; whatever a symbolic
link points to is written, and the link stays. Devices, FIFOs and the standard streams are written
through, since a rename would put a plain file in their place.
"""

import errno
import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from moesim.errors import ConfigError, WriteRefusedError

#: refusals that are nothing about the path: no space, quota, size of a file, a device that fails
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

_FOLDER = "write to this output folder"


def write_file(path: Path, text: str) -> Path:
    """Write a text as UTF-8, a plain file as a whole or not at all.

    Args:
        path: The file; its folder is created if missing.
        text: What the file is to hold.

    Returns:
        The path.

    Raises:
        ConfigError: The file cannot be written; a `WriteRefusedError` where the disk is full.
        BrokenPipeError: The path is a stream or FIFO, and its reader went away.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = _status(path)
        content = text.encode()
        if there is not None and (stream := _stream_of(there)) is not None:
            _write_stream(stream, content)
        elif there is not None and not stat.S_ISREG(there.st_mode):
            with path.open("wb", buffering=0) as device:
                write_all(device.fileno(), content)
        else:
            replace_file(Path(os.path.realpath(path)), content)
    except BrokenPipeError:  # the reader of a stream or FIFO has seen enough
        raise
    except (OSError, ValueError) as error:
        raise refused(path, error) from None
    return path


def is_plain(path: Path) -> bool:
    """Return whether writing to a path makes or replaces a plain file.

    Raises:
        ConfigError: The path cannot be looked at.
    """
    try:
        there = _status(path)
    except (OSError, ValueError) as error:
        raise refused(path, error) from None
    return there is None or (stat.S_ISREG(there.st_mode) and _stream_of(there) is None)


def check_writable(path: Path, *, make_folder: bool = False) -> None:
    """Refuse an output file before minutes of work rather than after them.

    Args:
        path: The file; its content stays.
        make_folder: Whether to create its folder, like `write_file`.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        there = _status(path)
        if there is None:
            # a dangling link stays: what it points to is made and removed again
            target = Path(os.path.realpath(path))
            target.open("xb").close()
            target.unlink()
        elif stat.S_ISDIR(there.st_mode):
            raise IsADirectoryError(None, "Is a directory")
        elif not os.access(path, os.W_OK):  # to open a FIFO would wait for its reader
            raise PermissionError(None, "Permission denied")
    except (OSError, ValueError) as error:
        raise refused(path, error) from None


def writable_folder(folder: Path) -> Path:
    """Create an output folder and make sure that files can be written into it.

    Args:
        folder: The folder; its parents are created, too.

    Returns:
        The folder.

    Raises:
        ConfigError: The folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:
        raise refused(folder, error, _FOLDER) from None
    return folder


def check_folder(folder: Path) -> None:
    """Refuse an output folder that could not be made, and make nothing.

    Args:
        folder: The folder, which need not exist.

    Raises:
        ConfigError: Something else stands there, or the folder that would hold it is not writable.
    """
    try:
        held = folder
        while _status(held) is None and held != held.parent:
            held = held.parent
        if not held.is_dir():
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(held, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:
        raise refused(folder, error, _FOLDER) from None


def refused(
    path: str | Path, error: OSError | ValueError, what: str = "write this file", kept: str = ""
) -> ConfigError:
    """Return the error that tells a user what the system refused, to be raised.

    Args:
        path: The file or folder.
        error: What the system said; a path with a zero byte is a ValueError.
        what: What was to be done with it.
        kept: What there is all the same, where some was written before.

    Returns:
        A `WriteRefusedError` where the path was right, but the system takes no more.
    """
    said = error.strerror if isinstance(error, OSError) else str(error)
    if isinstance(error, FileExistsError):  # how mkdir says that a file is in a folder's place
        said = "Not a directory"
    text = f"{path}: cannot {what}: {said}{kept and '; '}{kept}"
    if isinstance(error, OSError) and error.errno in _FULL:
        return WriteRefusedError(f"{text}; make room, and run the same command again")
    return WriteRefusedError(text) if kept else ConfigError(text)


def _status(path: Path) -> os.stat_result | None:
    """Return what stands at a path, links followed; None for nothing."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _stream_of(there: os.stat_result) -> int | None:
    """Return the standard stream that is this very file, as for ``--out /dev/stdout``."""
    for stream in (1, 2):
        with suppress(OSError):  # the stream is closed
            if not stat.S_ISDIR(there.st_mode) and os.path.samestat(there, os.fstat(stream)):
                return stream
    return None


def _write_stream(stream: int, content: bytes) -> None:
    """Write after what was printed so far."""
    for printed in (sys.stdout, sys.stderr):
        if printed is not None:  # a stream that was closed before the start
            printed.flush()
    write_all(stream, content)


def write_all(descriptor: int, content: bytes) -> None:
    """Write bytes to an open file, without a buffer whose end could get lost.

    Raises:
        OSError: Not all of them can be written.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def replace_file(target: Path, content: bytes) -> None:
    """Put a finished file in the place of a plain one, or of none.

    Raises:
        OSError: The file cannot be written; the old one stays.
    """
    there = _status(target)
    if there is not None and not os.access(target, os.W_OK):
        raise PermissionError(None, "Permission denied")
    if there is not None and os.geteuid() not in (0, there.st_uid):
        # only its owner and root can make another file of this owner
        target.write_bytes(content)
        return
    # a name of its own length: the target's with an addition may be too long
    partial = target.with_name(f".moesim-{token_hex(8)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            if there is not None:
                _keep_owner(descriptor, there)
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _keep_owner(descriptor: int, there: os.stat_result) -> None:
    made = os.fstat(descriptor)
    if (made.st_uid, made.st_gid) != (there.st_uid, there.st_gid):
        os.fchown(descriptor, there.st_uid, there.st_gid)
    # a change of owner clears the bits of set-user-ID
    os.fchmod(descriptor, stat.S_IMODE(there.st_mode))


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last; some file systems cannot, and need not."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
