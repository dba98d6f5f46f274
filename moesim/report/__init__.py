"""Reports: tables as CSV, tables on the terminal."""

from moesim.report.tables import write_csv

__all__ = ["write_csv"]
