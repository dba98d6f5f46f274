"""Store finished trials in an Optuna journal in a folder, or in any Optuna storage that machines
share.

A folder has one writer at a time, which holds a lock. A chunk of finished trials is one write,
which the operating system has received before the next chunk is collected. Lines are not forced to
disk one by one (3.5 ms each, more than a trial takes): a killed process loses no trial it has
recorded, and a power cut may lose the last second (`moesim.search.journal`).

Optuna opens a URL (``postgresql://``, ``sqlite:///``) unchanged. Everything a search depends on is
written into the study, so that a search with other settings is refused and `moesim study worker`
needs only the URL.
"""

import fcntl
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    NoSuchModuleError,
    ProgrammingError,
    SQLAlchemyError,
)

from moesim.errors import ConfigError, UnreachableError
from moesim.files.addresses import secrets_of, without_password
from moesim.files.output import refused
from moesim.report.tables import writable_folder
from moesim.report.terminal import say
from moesim.search.journal import (
    IntactBackend,
    SingleWriterBackend,
    damaged_text,
    lines_of,
    set_damaged_aside,
)
from moesim.search.objectives import Direction

_STUDY = "moesim"
_SETTINGS = "settings"
# tables, the version and its migration are made one after the other
_TRIES = 5
# Optuna's numbers of what a line says (`JournalOperation`)
_CREATE_STUDY, _STUDY_ATTR, _CREATE_TRIAL = 0, 2, 4
#: what every trial of a journal depends on
_BEGINNING: dict[str, Callable[[dict[str, Any]], bool]] = {
    "study": lambda log: log.get("op_code") == _CREATE_STUDY,
    _SETTINGS: lambda log: (
        log.get("op_code") == _STUDY_ATTR and _SETTINGS in log.get("user_attr", {})
    ),
}


def is_url(where: str | Path) -> bool:
    """Return whether a storage is a URL rather than a folder."""
    return isinstance(where, str) and "://" in where


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Store:
    """A study that is open for writing.

    Attributes:
        study: The study; its trials are added by `add_trials` alone.
        journal: The journal it is written to; None where a database holds it.
    """

    study: optuna.Study
    journal: SingleWriterBackend | None = None

    def add_trials(self, records: list[FrozenTrial]) -> None:
        """Add trials, into a journal with one write."""
        with self.journal.one_write() if self.journal else nullcontext():
            self.study.add_trials(records)


@contextmanager
def open_study(
    where: str | Path, directions: list[Direction], settings: dict[str, Any], *, fresh: bool
) -> Iterator[Store]:
    """Open (or begin) a study.

    Args:
        where: Folder, which is created if missing and locked by this process, or the URL of a
            shared storage.
        directions: Optuna's direction of each objective.
        settings: Everything the trials depend on except their number, as plain tables; a study with
            other settings is refused.
        fresh: Whether to discard a study that is there.

    Raises:
        ConfigError: The storage is not writable, in use by another run, or damaged, or it holds a
            study with other settings.
        UnreachableError: The storage does not answer.
    """
    if is_url(where):
        with _told(str(where)):
            storage = _database(str(where))
            if fresh and _STUDY in optuna.get_all_study_names(storage):
                optuna.delete_study(study_name=_STUDY, storage=storage)
            yield Store(
                study=_matching(storage, without_password(str(where)), directions, settings)
            )
        return
    folder = writable_folder(Path(where))
    with _locked(folder):
        path = folder / "study.journal"
        with _readable(path):
            journal = _mended(path, fresh)
            study = _matching(JournalStorage(journal), str(folder), directions, settings)
        yield Store(study=study, journal=journal)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder."""
    try:
        # the content of what stands there stays, whatever it is
        lock = open(folder / ".lock", "a")  # noqa: SIM115
    except OSError as error:
        raise refused(folder / ".lock", error, "lock") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{folder}: another run is writing to this output folder") from None
        yield


def _mended(path: Path, fresh: bool) -> SingleWriterBackend:
    """Open a journal for writing, without its damaged lines.

    Raises:
        ConfigError: A line is damaged that all trials depend on.
    """
    if fresh:
        path.unlink(missing_ok=True)
    if path.exists():
        _check_beginning(path)
        if damaged := set_damaged_aside(path):
            say(
                f"{damaged_text(path, damaged)}: set aside in {path.name}.damaged, and the trials "
                "run again"
            )
    return SingleWriterBackend(str(path))


def _check_beginning(path: Path) -> None:
    """Refuse a journal with trials whose beginning, the settings they depend on, is damaged."""
    damaged, begun = [], set()
    for line in lines_of(path):
        if line.log is None:
            damaged.append(line)
            continue
        begun |= {name for name, written in _BEGINNING.items() if written(line.log)}
        if line.log.get("op_code") == _CREATE_TRIAL:
            break
    if damaged and begun != set(_BEGINNING):
        raise ConfigError(f"{damaged_text(path, damaged[:1])}, which holds settings: use --fresh")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """What a storage holds of a study.

    Attributes:
        settings: What `open_study` wrote when the study began.
        user_attrs: Everything that was written beside its trials, the settings included.
        trials: The finished trials; empty where they were not asked for.
    """

    settings: dict[str, Any]
    user_attrs: dict[str, Any]
    trials: list[FrozenTrial]


def read_study(where: str | Path, *, trials: bool = True) -> Stored:
    """Read an existing study; others may be writing to it.

    Args:
        where: Its folder, or the URL of its storage.
        trials: Whether to read the trials, too.

    Raises:
        ConfigError: There is no study, or moesim did not make it.
        UnreachableError: The storage does not answer.
    """
    if is_url(where):
        with _told(str(where)):
            address = make_url(str(where))
            # connecting would make the file
            if address.get_backend_name() == "sqlite" and not _is_there(address.database):
                raise _no_study(without_password(str(where)))
            return _read_database(_database(str(where)), str(where), trials)
    path = Path(where) / "study.journal"
    if not path.is_file():
        raise ConfigError(
            f"{without_password(str(where))}: expected the output folder of a study, got one "
            "without study.journal"
        )
    with _readable(path):
        _check_beginning(path)
        journal = IntactBackend(path)
        found = _read(JournalStorage(journal), str(where), trials)
    if trials and journal.damaged:
        damaged = list(journal.damaged.values())
        say(f"{damaged_text(path, damaged)}: left out; the next run makes their trials again")
    return found


def read_settings(where: str | Path) -> dict[str, Any]:
    """Read what the trials of a study depend on, without its trials.

    Raises:
        ConfigError: There is no study, or moesim did not make it.
        UnreachableError: The storage does not answer.
    """
    if not is_url(where):
        path = Path(where) / "study.journal"
        if path.is_file():
            with _readable(path):
                for line in lines_of(path):
                    if line.log is not None and _BEGINNING[_SETTINGS](line.log):
                        return line.log["user_attr"][_SETTINGS]
    return read_study(where, trials=False).settings


def _database(url: str) -> optuna.storages.BaseStorage:
    """Open a database, whose tables Optuna makes where it is empty.

    Processes that begin at the same moment all try to, and all but one are told that the tables are
    there.
    """
    for _ in range(_TRIES - 1):
        try:
            return optuna.storages.get_storage(url)
        except (IntegrityError, ProgrammingError):
            time.sleep(0.1)
    return optuna.storages.get_storage(url)


def _read_database(storage: optuna.storages.BaseStorage, url: str, trials: bool) -> Stored:
    """Read a study of which nothing was deleted meanwhile.

    A study is deleted (``--fresh``) with all its tables at once, but read table by table: where it
    is still there afterwards, the parts belong together.
    """
    shown = without_password(url)
    while True:
        try:
            before = storage.get_study_id_from_name(_STUDY)
            found = _read(storage, shown, trials)
            if storage.get_study_id_from_name(_STUDY) == before:
                return found
        except KeyError:  # how Optuna says that a study is not there
            if _STUDY not in optuna.get_all_study_names(storage):
                raise _no_study(shown) from None


def _read(storage: optuna.storages.BaseStorage, shown: str, trials: bool) -> Stored:
    if _STUDY not in optuna.get_all_study_names(storage):
        raise _no_study(shown)
    study = optuna.load_study(study_name=_STUDY, storage=storage)
    attrs = study.user_attrs
    if _SETTINGS not in attrs:
        raise ConfigError(
            f"{shown}: holds a study of another version of moesim, or one that only began"
        )
    records = study.get_trials(deepcopy=False) if trials else []
    return Stored(
        settings=attrs[_SETTINGS],
        user_attrs=attrs,
        trials=[t for t in records if t.state.is_finished()],
    )


def _is_there(database: str | None) -> bool:
    """Return whether the file of a SQLite database is there; one in memory has none."""
    return database in (None, "", ":memory:") or Path(str(database)).is_file()


def _no_study(shown: str) -> ConfigError:
    return ConfigError(f"{shown}: expected a study that `moesim study run` began, got none")


def _matching(
    storage: optuna.storages.BaseStorage,
    shown: str,
    directions: list[Direction],
    settings: dict[str, Any],
) -> optuna.Study:
    if _STUDY in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=_STUDY, storage=storage)
    else:  # another process that shares the storage may create it first
        with _quiet():
            study = optuna.create_study(
                storage=storage, study_name=_STUDY, directions=directions, load_if_exists=True
            )
    there = study.user_attrs.get(_SETTINGS)
    if there is None:
        study.set_user_attr(_SETTINGS, settings)
        with warnings.catch_warnings():
            # dashboards show these names instead of numbers; Optuna calls this experimental
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(settings["objectives"])
        return study
    settings = json.loads(json.dumps(settings))  # the form in which a storage returns them
    if there != settings:
        name, was, now = _difference(there, settings)
        raise ConfigError(
            f"{shown}: holds a study with other settings ({name}: {was!r} there, {now!r} now): "
            "use --fresh or another --out"
        )
    return study


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from saying on stderr that it made a study: it is one of ours."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _difference(there: Any, now: Any, path: str = "") -> tuple[str, Any, Any]:
    """Return (key path, there, now) of the first difference between two tables."""
    if isinstance(there, dict) and isinstance(now, dict):
        for key in sorted({*there, *now}):
            if there.get(key) != now.get(key):
                return _difference(there.get(key), now.get(key), f"{path}.{key}" if path else key)
    return path, there, now


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except OSError as error:
        raise refused(path, error, "use this journal") from None
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RecursionError,
    ) as error:
        raise ConfigError(
            f"{path}: damaged, cannot be continued ({type(error).__name__}): use --fresh"
        ) from None


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn a database's errors into one line, without its password."""
    shown = without_password(url)
    try:
        yield
    except (ArgumentError, NoSuchModuleError):
        raise ConfigError(
            f"storage: expected a folder or a URL such as postgresql://USER@HOST/NAME, got {shown}"
        ) from None
    except ImportError as error:
        hint = ": pip install 'moesim[postgres]'" if url.startswith("postgresql") else ""
        name = f" ({error.name})" if error.name else ""
        raise ConfigError(f"storage {shown}: its driver is not installed{name}{hint}") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        said = (str(error.__cause__ or error).strip().splitlines() or ["no answer"])[0]
        for secret in secrets_of(url):  # a driver may repeat it, as written or as it is
            said = said.replace(secret, "***").replace(unquote(secret), "***")
        raise UnreachableError(f"storage {shown}: {said}") from None
