"""Where finished trials live: an Optuna journal that survives Ctrl-C and kill -9, and continues.

The file is Optuna's journal format (``optuna.storages.journal.JournalFileBackend`` reads it, so its dashboard does
too). One process writes at a time, which a lock on the folder holds; each finished trial is one line handed to the
kernel before the next begins. Lines are not forced to disk one by one (3.5 ms each, more than a trial): a killed
process loses nothing, a power cut may lose the last second.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from moesim.errors import ConfigError

_STUDY = "moesim"
Direction = Literal["minimize", "maximize"]


class _SingleWriterBackend(JournalFileBackend):
    """Optuna's journal file, written by the one process that holds the folder's lock."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append each log as a line and hand it to the kernel."""
        with open(self._file_path, "ab") as file:
            file.write("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())


def writable_folder(folder: Path) -> Path:
    """Create an output folder and make sure it can be written.

    Raises:
        ConfigError: It cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write to this output folder: {error.strerror}") from None
    return folder


@contextmanager
def open_journal(
    folder: Path, directions: list[Direction], fingerprint: dict[str, Any], *, fresh: bool
) -> Iterator[optuna.Study]:
    """Open (or begin) the study in a folder, for this process alone.

    Args:
        folder: Output folder; created if need be.
        directions: Optuna's direction of each objective.
        fingerprint: Everything the trials depend on but their number; a folder that holds another is refused.
        fresh: Discard what is there.

    Raises:
        ConfigError: Not writable, in use by another run, or holding a study of other settings.
    """
    writable_folder(folder)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{folder}: another run is writing to this output folder") from None
        path = folder / "study.journal"
        if fresh:
            path.unlink(missing_ok=True)
        _drop_torn_line(path)
        try:
            storage = JournalStorage(_SingleWriterBackend(str(path)))
            if optuna.get_all_study_names(storage):
                study = optuna.load_study(study_name=_STUDY, storage=storage)
            else:
                study = optuna.create_study(storage=storage, study_name=_STUDY, directions=directions)
            there = study.user_attrs.get("fingerprint")
        except (ValueError, KeyError, AssertionError) as error:
            raise ConfigError(f"{path}: damaged, cannot be continued ({type(error).__name__}): use --fresh") from None
        if there is None:
            study.set_user_attr("fingerprint", fingerprint)
        elif there != fingerprint:
            changed = sorted(k for k in {*there, *fingerprint} if there.get(k) != fingerprint.get(k))
            first = changed[0]
            raise ConfigError(
                f"{folder}: holds a study with other settings ({', '.join(changed)}; {first}: "
                f"{there.get(first)!r} there, {fingerprint.get(first)!r} now): use --fresh or another --out"
            )
        yield study


def _drop_torn_line(path: Path) -> None:
    """Cut a last line that a killed process wrote only in part."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        keep = size
        while keep:
            start = max(keep - 65536, 0)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < size:
            file.truncate(keep)
