"""Join measured rows and their predictions for the scoreboard and the fidelity study."""

from collections import Counter
from collections.abc import Callable

from moesim.costs.calibration import load_calibration
from moesim.costs.devices.fused_formats import format_parameters
from moesim.errors import MeasurementError
from moesim.hardware import load_profile
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.draws import PRECISION
from moesim.measured.kernels.family_calibrate import may_fit as may_fit_family
from moesim.measured.kernels.family_predict import family_rows
from moesim.measured.kernels.family_records import (
    FAMILIES,
    TRITON,
    KernelFamily,
    family_named,
)
from moesim.measured.kernels.groups import may_fit
from moesim.measured.kernels.predict import PREDICTED, predict_rows
from moesim.measured.kernels.row_checks import libraries

_SEED = 1
#: columns that a prediction adds, in the order of the CSV file
PREDICTIONS = PREDICTED


def measured_rows(
    system: str, limit: int, family: str = "", tell: Callable[[str], None] = lambda text: None
):
    """Return the measured rows of a system, or of all systems.

    Args:
        system: Name of the system, such as ``h100_sxm``, or ``all``.
        limit: Number of random rows per dataset, format, EP class and fit class, drawn with a fixed
            seed; 0 for all rows.
        family: Library whose rows are returned, see
            `moesim.measured.kernels.family_records.family_named`; by default the frameworks' Triton
            kernels.
        tell: What to do with a sentence on rows that are left out, since the library has no prices
            of their format on their device.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed, or it has no such system, or no
            rows of the family there.
        UnknownNameError: There is no such family.
        ConfigError: The family has no prices of any of its rows on this system.
    """
    import pandas as pd

    known = silicon.systems()
    if system != "all" and system not in known:
        raise MeasurementError(
            f"measured rows: expected one of {', '.join(known)} or all, got {system!r}"
        )
    named = known if system == "all" else [system]
    if family:
        parts = _rows_of_family(named, family_named(family), tell)
    else:
        parts = [_triton_rows(one, dataset) for one in named for dataset in silicon.datasets(one)]
    drawn = []
    for table in parts:
        for _, part in table.groupby(["moe_dtype", table["moe_ep_size"] > 1, "fitted"]):
            drawn.append(part.sample(limit, random_state=_SEED) if 0 < limit < len(part) else part)
    if not drawn:
        raise MeasurementError(
            f"measured rows: aiconfigurator-core has none of {family} on {system}"
        )
    return pd.concat(drawn, ignore_index=True)


def _triton_rows(system: str, dataset: str):
    table = silicon.load_rows(system, dataset)
    table = table[table["moe_dtype"].isin(PRECISION)]
    return table.assign(fitted=[may_fit(row) for row in table.to_dict("records")])


def _rows_of_family(systems: list[str], family: KernelFamily, tell: Callable[[str], None]) -> list:
    """Return the rows of a family by system and dataset; see `measured_rows`."""
    parts, left_out = [], Counter[tuple[str, str]]()
    for system in systems:
        for dataset in silicon.datasets(system, every=True, name=family.table):
            table, others = family_rows(system, dataset, family)
            left_out.update({(system, dtype): count for dtype, count in others.items()})
            if len(table):
                fitted = [may_fit_family(row) for row in table.to_dict("records")]
                parts.append(table.assign(fitted=fitted))
    if left_out and not parts:
        [(system, dtype), _] = left_out.most_common(1)[0]
        profile = load_profile(system)
        format_parameters(load_calibration(family.name, profile), dtype, profile)
    if left_out:
        where = ", ".join(
            f"{count:,} of {dtype} on {on}" for (on, dtype), count in left_out.items()
        )
        tell(f"left out {left_out.total():,} rows that {family.name} has no prices of: {where}")
    return parts


def predicted(table, mode: str):
    """Return a table of rows with the columns `PREDICTIONS`, ``fitted`` and ``fit_family``
    (`TRITON`, or the name of a row's group in ``fit_families.csv``), in the same order.

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
    of_row = zip(libraries(table), table["dataset"], strict=True)
    return table.assign(
        fit_family=[
            FAMILIES[name].group_of(dataset) if name in FAMILIES else TRITON
            for name, dataset in of_row
        ]
    )
