"""Write reports: CSV tables, tables on the terminal, and figures."""

from moesim.report.tables import to_frame, write_csv

__all__ = ["to_frame", "write_csv"]
