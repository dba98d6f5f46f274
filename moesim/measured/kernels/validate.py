"""Rows and their predictions together: what the scoreboard and the fidelity study look at."""

from moesim.errors import MeasurementError
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.calibrate import may_fit
from moesim.measured.kernels.draws import PRECISION
from moesim.measured.kernels.predict import PREDICTED, predict_rows

_SEED = 1
#: columns a prediction adds, as written to CSV
PREDICTIONS = PREDICTED


def measured_rows(system: str, limit: int):
    """Measured rows of a system, or of all systems.

    Args:
        system: Such as ``h100_sxm``, or ``all``.
        limit: Rows per dataset, format, EP class and fit class, drawn with a fixed seed; 0 for all.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed, or there is no such system in it.
    """
    import pandas as pd

    known = silicon.systems()
    if system != "all" and system not in known:
        raise MeasurementError(
            f"measured rows: expected one of {', '.join(known)} or all, got {system!r}"
        )
    parts = []
    for name in known if system == "all" else [system]:
        for dataset in silicon.datasets(name):
            table = silicon.load_rows(name, dataset)
            table = table[table["moe_dtype"].isin(PRECISION)]
            table = table.assign(fitted=[may_fit(r) for r in table.to_dict("records")])
            for _, part in table.groupby(["moe_dtype", table["moe_ep_size"] > 1, "fitted"]):
                parts.append(
                    part.sample(limit, random_state=_SEED) if 0 < limit < len(part) else part
                )
    return pd.concat(parts, ignore_index=True)


def predicted(table, mode: str):
    """A table of rows with the columns `PREDICTIONS` and ``fitted``; the order of rows is kept.

    Args:
        table: DataFrame of `measured_rows` or `moesim.measured.kernels.predict.read_rows`.
        mode: ``calibrated`` (few-shot factors where there are any) or ``spec``.
    """
    table = table.assign(**predict_rows(table, few_shot=mode == "calibrated"))
    if "latency" in table and "latency_ms" not in table:
        table = table.assign(latency_ms=table["latency"])
    if "fitted" not in table:
        table = table.assign(fitted=[may_fit(r) for r in table.to_dict("records")])
    return table
