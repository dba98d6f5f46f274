"""The journal of a study: Optuna's logs, one JSON object per line, each with a checksum.

``optuna.storages.journal.JournalFileBackend`` reads the file, and so does Optuna's dashboard: the
checksum is one more key, ``crc32``, the last of its line, over all bytes before it. A line that
does not match it is set aside, and the trial that it held runs again. Journals of earlier versions
have no checksums; once a line has one, every later line must.
"""

import json
import re
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from moesim.files.output import refused, replace_file, write_all

#: the end of a line with a checksum
_CHECKED = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\n\Z')


def written_line(log: dict[str, Any]) -> bytes:
    """Return a log as a line with its checksum."""
    body = json.dumps(log, separators=(",", ":")).encode()[:-1]
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLine:
    """A line of a journal.

    Attributes:
        number: Its number in the file, from 1.
        raw: Its bytes, the end of line included.
        log: What it says; None where it is damaged.
    """

    number: int
    raw: bytes
    log: dict[str, Any] | None


def lines_of(path: Path) -> Iterator[JournalLine]:
    """Yield the whole lines of a journal; a last one without an end is still being written."""
    checked = False
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return
            end = _CHECKED.search(raw)
            log = _log(raw, end, needed=checked)
            checked |= end is not None
            yield JournalLine(number=number, raw=raw, log=log)


def _log(raw: bytes, end: re.Match[bytes] | None, *, needed: bool) -> dict[str, Any] | None:
    """Return what a line says, or None if it is damaged."""
    if end is None and needed:
        return None
    if end is not None and int(end[1], 16) != zlib.crc32(raw[: end.start()]):
        return None
    try:
        log = json.loads(raw)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, too long a number, too deep
        return None
    return log if isinstance(log, dict) else None


def damaged_text(path: Path, lines: list[JournalLine]) -> str:
    """Return one line that names the damaged lines of a journal."""
    numbers = ", ".join(str(line.number) for line in lines[:5])
    more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
    return f"{path}: damaged: line{'s' if len(lines) > 1 else ''} {numbers}{more}"


def set_damaged_aside(path: Path) -> list[JournalLine]:
    """Move damaged lines, and a torn last one, from a journal to ``NAME.damaged`` beside it.

    Returns:
        The damaged lines; a last line that a killed process wrote only in part is dropped.

    Raises:
        OSError: A file cannot be read or written.
    """
    damaged, kept, size = [], 0, path.stat().st_size
    for line in lines_of(path):
        if line.log is None:
            damaged.append(line)
        kept += len(line.raw)
    if damaged:
        with path.with_name(f"{path.name}.damaged").open("ab") as file:
            file.write(b"".join(line.raw for line in damaged))
        replace_file(path, b"".join(line.raw for line in lines_of(path) if line.log is not None))
    elif kept < size:
        with path.open("rb+") as file:
            file.truncate(kept)
    return damaged


class IntactBackend(JournalFileBackend):
    """Optuna's journal file without its damaged lines, for reading while others may write."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self.damaged: dict[int, JournalLine] = {}
        self._count: int | None = None

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the intact logs from a number on, counted without the damaged ones.

        What others append after the first reading is not seen.
        """
        if self._count is not None and log_number_from >= self._count:
            return
        number = 0
        for line in lines_of(self.path):
            if line.log is None:
                self.damaged[line.number] = line
                continue
            if number >= log_number_from:
                yield line.log
            number += 1
        self._count = number


class SingleWriterBackend(JournalFileBackend):
    """Optuna's journal file, written by the one process that holds the folder's lock."""

    _held: list[dict[str, Any]] | None = None
    _first_held = 0

    @contextmanager
    def one_write(self) -> Iterator[None]:
        """Hold the logs of a block back, and write them together at its end.

        Optuna reads every log back after it has written it; it gets those of the block from memory.
        """
        self._held = []
        try:
            yield
        finally:
            logs, self._held = self._held, None
            self.append_logs(logs)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the logs from a number on."""
        if not self._held:
            yield from super().read_logs(log_number_from)
            return
        # the one writer has read all that is in the file
        if len(self._held) == 1:
            self._first_held = log_number_from
        yield from self._held[log_number_from - self._first_held :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append each log as a line, and hand all lines to the operating system.

        Raises:
            ConfigError: The journal cannot be written, as on a full disk; it holds what it did.
        """
        if self._held is not None:
            self._held += logs
            return
        try:
            # not created anew: whoever removed a journal, or its folder, must not get half of one
            with open(self._file_path, "rb+", buffering=0) as file:
                end = file.seek(0, 2)
                try:
                    write_all(file.fileno(), b"".join(map(written_line, logs)))
                except OSError:
                    with suppress(OSError):  # a torn line is dropped by the next run
                        file.truncate(end)
                    raise
        except OSError as error:
            kept = "the trials that it holds are kept"
            raise refused(self._file_path, error, kept=kept) from None
