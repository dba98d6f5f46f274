"""Join measured rows and their predictions for the scoreboard and the fidelity study."""

from moesim.errors import MeasurementError, UnknownNameError
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.draws import PRECISION
from moesim.measured.kernels.family_calibrate import may_fit as may_fit_family
from moesim.measured.kernels.family_predict import family_rows
from moesim.measured.kernels.family_records import FAMILIES
from moesim.measured.kernels.groups import may_fit
from moesim.measured.kernels.predict import PREDICTED, predict_rows

_SEED = 1
#: columns that a prediction adds, in the order of the CSV file
PREDICTIONS = PREDICTED


def measured_rows(system: str, limit: int, family: str = ""):
    """Return the measured rows of a system, or of all systems.

    Args:
        system: Name of the system, such as ``h100_sxm``, or ``all``.
        limit: Number of random rows per dataset, format, EP class and fit class, drawn with a fixed
            seed; 0 for all rows.
        family: Library whose rows are returned, see
            `moesim.measured.kernels.family_records`; by default the frameworks' Triton kernels.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed, or it has no such system, or no
            rows of the family there.
        UnknownNameError: There is no such family.
    """
    import pandas as pd

    known = silicon.systems()
    if system != "all" and system not in known:
        raise MeasurementError(
            f"measured rows: expected one of {', '.join(known)} or all, got {system!r}"
        )
    if family and family not in FAMILIES:
        raise UnknownNameError("family", family, FAMILIES)
    parts = []
    for name in known if system == "all" else [system]:
        for dataset in silicon.datasets(name, every=bool(family)):
            table = (
                family_rows(name, dataset, FAMILIES[family])
                if family
                else silicon.load_rows(name, dataset)
            )
            if not family:
                table = table[table["moe_dtype"].isin(PRECISION)]
            is_fitted = may_fit_family if family else may_fit
            table = table.assign(fitted=[is_fitted(r) for r in table.to_dict("records")])
            for _, part in table.groupby(["moe_dtype", table["moe_ep_size"] > 1, "fitted"]):
                parts.append(
                    part.sample(limit, random_state=_SEED) if 0 < limit < len(part) else part
                )
    if not parts:
        raise MeasurementError(
            f"measured rows: aiconfigurator-core has none of {family} on {system}"
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
        table = table.assign(
            fitted=[may_fit(r) or may_fit_family(r) for r in table.to_dict("records")]
        )
    return table
