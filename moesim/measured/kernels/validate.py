"""Join measured rows and their predictions for the scoreboard and the fidelity study."""

from moesim.errors import MeasurementError
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.draws import PRECISION
from moesim.measured.kernels.groups import may_fit
from moesim.measured.kernels.predict import PREDICTED, predict_rows

_SEED = 1
#: columns that a prediction adds, in the order of the CSV file
PREDICTIONS = PREDICTED


def measured_rows(system: str, limit: int):
    """Return the measured rows of a system, or of all systems.

    Args:
        system: Name of the system, such as ``h100_sxm``, or ``all``.
        limit: Number of random rows per dataset, format, EP class and fit class, drawn with a fixed
            seed; 0 for all rows.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed, or it has no such system.
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
    """Return a table of rows with the columns `PREDICTIONS` and ``fitted``, in the same order.

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
