"""Score the choice of a kernel library: is the one predicted fastest the one measured fastest?

Where several libraries were measured on the same layer, load and device, ``kernels="auto"`` picks
by predicted times. Its regret is the measured time of its pick over that of the measured fastest.
Pairs of measurements closer than 5 % count as the same, since that is what a second measurement
differs by.
"""

from typing import Any

import numpy as np

from moesim.errors import MeasurementError, UnknownNameError
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.draws import PRECISION
from moesim.measured.kernels.family_predict import family_rows
from moesim.measured.kernels.family_records import FAMILIES
from moesim.measured.kernels.predict import predict_rows
from moesim.measured.kernels.scoreboard import FLOOR_MS

#: columns that rows share if they timed the same experts under the same load
_SAME = silicon.COLUMNS[3:]
_SEED, _AS_GOOD = 1, 0.05
#: framework -> library of its Triton rows
_TRITON = {"sglang": "sglang-triton", "vllm": "vllm-triton"}


def measured_libraries(system: str, limit: int):
    """Return rows of everything that at least two libraries were measured on.

    Args:
        system: Name of the system, such as ``h100_sxm``.
        limit: Number of layers and loads, drawn with a fixed seed; 0 for all.

    Returns:
        DataFrame of measured rows with ``kernels``, the name of the library.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed, or there are no such rows.
        UnknownNameError: There is no such system.
    """
    import pandas as pd

    if system not in silicon.systems():
        raise UnknownNameError("system", system, silicon.systems())
    parts = [pd.DataFrame(columns=[*_SAME, "kernels", "latency_ms"])]
    for dataset in silicon.datasets(system, every=True):
        framework = dataset.partition("/")[0]
        if framework in _TRITON:
            table = silicon.load_rows(system, dataset)
            table = table[table["moe_dtype"].isin(PRECISION)]
            parts.append(table.assign(kernels=_TRITON[framework]))
    for name, family in FAMILIES.items():
        for dataset in silicon.datasets(system, every=True, name=family.table):
            found, _ = family_rows(system, dataset, family)
            parts.append(found.assign(kernels=name))
    joined = pd.concat([p for p in parts if len(p)] or parts, ignore_index=True)
    joined = joined[joined["latency_ms"] >= FLOOR_MS]
    # of several versions of a library the newest, which comes last
    joined = joined.drop_duplicates([*_SAME, "kernels"], keep="last")
    several = joined.groupby(list(_SAME))["kernels"].transform("size") > 1
    joined = joined[several]
    if joined.empty:
        raise MeasurementError(f"measured rows: no two libraries were measured alike on {system}")
    keys = joined[list(_SAME)].drop_duplicates()
    if 0 < limit < len(keys):
        keys = keys.sample(limit, random_state=_SEED)
    return joined.merge(keys, on=list(_SAME)).reset_index(drop=True)


def choice_table(rows) -> list[dict[str, Any]]:
    """Return how good the predicted choice is, by format: layers and loads, how often the pick is
    measured fastest (or as good), mean and P90 of the regret in percent, and the regret of always
    picking the library that is measured fastest most often.

    Args:
        rows: DataFrame of `measured_libraries`.
    """
    rows = rows.assign(**predict_rows(rows, few_shot=True))
    table = []
    for precision, part in rows.groupby("moe_dtype"):
        found = [_choice(group) for _, group in part.groupby(list(_SAME))]
        regret = np.array([one["regret"] for one in found])
        usual = _usual(part)
        table.append(
            {
                "precision": precision,
                "layers": len(found),
                "libraries": part["kernels"].nunique(),
                "as_good_percent": 100.0 * float((regret <= _AS_GOOD).mean()),
                "regret_percent": 100.0 * float(regret.mean()),
                "regret_p90_percent": 100.0 * float(np.percentile(regret, 90)),
                "usual": usual[0],
                "usual_regret_percent": 100.0 * usual[1],
            }
        )
    return table


def _choice(group) -> dict[str, Any]:
    measured = group["latency_ms"].to_numpy()
    pick = int(group["predicted_latency_ms"].to_numpy().argmin())
    return {"pick": group["kernels"].iloc[pick], "regret": measured[pick] / measured.min() - 1.0}


def _usual(part) -> tuple[str, float]:
    """Return the library that is measured fastest most often, and its mean regret where it was
    measured.
    """
    fastest = part.groupby(list(_SAME))["latency_ms"].transform("min")
    often = part[part["latency_ms"] == fastest]["kernels"].value_counts()
    name = str(often.index[0])
    own = part["kernels"] == name
    return name, float((part["latency_ms"][own] / fastest[own]).mean() - 1.0)


__all__ = ["choice_table", "measured_libraries"]
