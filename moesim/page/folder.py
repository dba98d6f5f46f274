"""Read the output folder of a study: its journal, and the tables that the run wrote beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.errors import ConfigError, shown
from moesim.files.addresses import without_password
from moesim.files.texts import read_csv
from moesim.measured.check import CHECK_COLUMNS
from moesim.measured.sources import STATUSES, VERDICTS
from moesim.report.tables import unescaped
from moesim.search.session.join import study_of
from moesim.search.storage import read_settings, read_study
from moesim.search.study import Study

_NUMBERS = ("simulated", "simulated_low", "simulated_high", "measured", "error_percent")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StudyFolder:
    """What a folder holds of a study.

    Attributes:
        path: The folder.
        study: The study, finished or not.
        settings: Everything its trials depend on.
        winners: Rows of winners.csv, simulated again by a finer engine; empty without the file.
        checks: Rows of check.csv with their numbers; empty without the file.
        importances: Rows of importance.csv; None without the file.
        finished: Whether the run came to write its front.
    """

    path: Path
    study: Study
    settings: dict[str, Any]
    winners: list[dict[str, str]]
    checks: list[dict[str, Any]]
    importances: list[dict[str, Any]] | None
    finished: bool


def read_folder(path: Path, study: Study | None = None, storage: str | None = None) -> StudyFolder:
    """Read a folder.

    Args:
        path: The folder.
        study: The study, where it is at hand; None to load it.
        storage: URL of the storage that holds the trials; None for the folder's journal.

    Raises:
        ConfigError: It holds no study, one of another version, or a damaged table; the text is one
            line that names the file.
    """
    where = storage or str(path)
    if study is None:
        stored = read_study(where)
        settings, study = stored.settings, study_of(stored, alone=storage is None)
    else:
        settings = read_settings(where)
    journal = without_password(storage) if storage else path / "study.journal"
    there = settings.get("columns")
    now = study.problem.settings()["columns"]
    if there != now:
        raise ConfigError(
            f"{journal}: expected trials with the columns of this version "
            f"({now}), got those of moesim {settings.get('version', 'unknown')} ({there})"
        )
    columns = ("rank", "group", "num_ties", *study.problem.columns)
    front = _table(path / "pareto.csv", columns)
    _check_front(path / "pareto.csv", front, study)
    return StudyFolder(
        path=path,
        study=study,
        settings=settings,
        winners=_table(path / "winners.csv", ("rank", "group", "design", "version")),
        checks=[
            _checked(path / "check.csv", row) for row in _table(path / "check.csv", CHECK_COLUMNS)
        ],
        importances=_importances(path / "importance.csv"),
        finished=(path / "pareto.csv").is_file(),
    )


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a table that may not be there; every row must be whole and of one version."""
    if not path.is_file():
        return []
    table = read_csv(path)
    if table.text and not table.text.endswith("\n"):
        raise ConfigError(f"{path}: expected a whole table, got one that ends within a row")
    # a table without rows has no columns to name
    missing = [name for name in columns if name not in table.header] if table.rows else []
    if missing:
        raise ConfigError(f"{path}: expected a column {missing[0]}, got a table without it")
    rows = []
    for number, cells in table.rows:
        row = {name: unescaped(cell) for name, cell in cells.items() if cell is not None}
        if len(row) != len(table.header):
            raise ConfigError(
                f"{path}: line {number}: expected {len(table.header)} cells, got {len(row)}"
            )
        rows.append(row)
    versions = sorted({row["version"] for row in rows if row.get("version")})
    if len(versions) > 1:
        raise ConfigError(f"{path}: expected rows of one version, got {' and '.join(versions)}")
    return rows


def _check_front(path: Path, rows: list[dict[str, str]], study: Study) -> None:
    """Refuse a front whose trials are not those of the journal."""
    trials = {str(t.number): str(t.evaluation.row.get("design")) for t in study.trials}
    for row in rows:
        if trials.get(row["number"]) != row["design"]:
            raise ConfigError(
                f"{path}: expected trials of study.journal, got trial {shown(row['number'])} of "
                f"another study (design {shown(row['design'])})"
            )


def _checked(path: Path, row: dict[str, str]) -> dict[str, Any]:
    for name, known in (("status", STATUSES), ("verdict", VERDICTS)):
        if row[name] not in known:
            raise ConfigError(
                f"{path}: {name}: expected one of {', '.join(known)}, got {shown(row[name])}"
            )
    numbers = {name: _number(path, name, row[name]) for name in _NUMBERS}
    return row | numbers


def _importances(path: Path) -> list[dict[str, Any]] | None:
    if not path.is_file():
        return None
    rows = _table(path, ("objective", "parameter", "importance"))
    return [row | {"importance": _number(path, "importance", row["importance"])} for row in rows]


def _number(path: Path, name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{path}: {name}: expected a number, got {shown(text)}") from None
