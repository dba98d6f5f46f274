"""Write reports: CSV tables, tables on the terminal, and figures."""

from moesim.report.tables import write_csv

__all__ = ["write_csv"]
