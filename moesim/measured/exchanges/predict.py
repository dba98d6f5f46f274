"""Predict a user's table of measured exchanges: ``moesim validate comm --rows FILE``.

Each row names its family and has that family's columns (`moesim.measured.exchanges.table.COLUMNS`);
columns of other families are ignored. A latency column is never used for predictions, only for
scoring them afterwards.
"""

from pathlib import Path

import numpy as np

from moesim.costs.calibration import load_calibration
from moesim.costs.comm.nccl import COLLECTIVES
from moesim.errors import ConfigError
from moesim.files.toml import UnknownNameError
from moesim.measured.exchanges.batches import CALIBRATION, MOE_BYTES, NCCL_BYTES, PHASES, batches
from moesim.measured.exchanges.table import COLUMNS, TEXT, quantities, systems
from moesim.measured.user_rows import as_numbers, first_of, need_columns, read_table, refuse
from moesim.units import US

_ALLOWED = {
    ("nccl", "op_name"): COLLECTIVES,
    ("nccl", "nccl_dtype"): tuple(NCCL_BYTES),
    ("nvl72_alltoall", "op_name"): tuple(dict.fromkeys(op for op, _ in PHASES)),
    ("nvl72_alltoall", "kernel_source"): tuple(dict.fromkeys(source for _, source in PHASES)),
    ("nvl72_alltoall", "moe_dtype"): tuple(MOE_BYTES),
    ("nvl72_alltoall", "distribution"): ("balanced",),
}
_LARGEST = 1 << 48
_MOST_EXPERTS = 1 << 16


def predicted_columns(families) -> list[str]:
    """Return the columns that a prediction of these families adds: evidence, calibration,
    predictions and their 80 % interval.
    """
    names = dict.fromkeys(
        q for family in COLUMNS if family in set(families) for q in quantities(family)
    )
    return [
        "evidence",
        "calibration",
        *(
            f"{kind}_{name}us"
            for name in (f"{q}_" if q else "" for q in names)
            for kind in ("predicted", "low", "high")
        ),
    ]


def read_comm_rows(path: Path):
    """Read and check a table of rows (parquet or CSV).

    Returns:
        The table as a pandas DataFrame, unchanged but for its index 0 to N - 1.

    Raises:
        ConfigError: The file is unreadable, a column is missing, a family, system, collective,
            kernel or format is unknown, or a size in a family's own column is not an integer > 0;
            the message names the column and the first bad row.
    """
    table = read_table(path)
    need_columns(path, table, ("family", "system"))
    everywhere = np.ones(len(table), dtype=bool)
    refuse(
        path,
        table,
        "family",
        everywhere & ~table["family"].isin(COLUMNS),
        f"one of {', '.join(COLUMNS)}",
    )
    for name in table["system"].unique():
        if name not in systems():
            row = first_of(table["system"], name)
            raise ConfigError(
                f"{path.name}: system, row {row}: "
                f"{UnknownNameError('system', str(name), systems())}"
            )
    for family in COLUMNS:
        here = (table["family"] == family).to_numpy()
        if here.any():
            _check_family(path, table, family, here)
    return table


def _check_family(path: Path, table, family: str, here: np.ndarray) -> None:
    need_columns(path, table, COLUMNS[family], f" for family {family}")
    numbers = {}
    for column in COLUMNS[family]:
        if column in TEXT:
            allowed = _ALLOWED[family, column]
            refuse(
                path,
                table,
                column,
                here & ~table[column].isin(allowed),
                f"one of {', '.join(allowed)}",
            )
            continue
        values = as_numbers(table[column]).to_numpy()
        whole = (values > 0) & (values <= _LARGEST) & (values == np.round(values))
        refuse(path, table, column, here & ~whole, "an integer > 0")
        numbers[column] = values
    rules = []
    for column in ("num_topk", "topk"):
        if column in numbers:
            rules.append((column, numbers[column] > numbers["num_experts"], "at most num_experts"))
            rules.append(
                ("num_experts", numbers["num_experts"] > _MOST_EXPERTS, f"at most {_MOST_EXPERTS}")
            )
    if "moe_ep_size" in numbers:
        rules.append(
            ("moe_ep_size", numbers["moe_ep_size"] > numbers["num_experts"], "at most num_experts")
        )
        pairs = [
            tuple(pair) in PHASES
            for pair in table[["op_name", "kernel_source"]].itertuples(index=False)
        ]
        rules.append(("kernel_source", ~np.array(pairs), "a kernel that has this op_name"))
    for column in ("dispatch_sms", "combine_sms"):
        if column in numbers:
            most = np.array([systems()[name].profile.num_sms for name in table["system"]])
            rules.append((column, numbers[column] > most, "at most the device's SMs"))
    for column, wrong, rule in rules:
        refuse(path, table, column, here & wrong, rule)


def predict_comm_rows(table, *, few_shot: bool) -> dict[str, np.ndarray]:
    """Predict every row of a checked table.

    Args:
        table: DataFrame of `read_comm_rows` or `moesim.measured.exchanges.table.load_family`, index
            0 to N - 1.
        few_shot: Whether to use factors from ten measured rows of a device where the calibration
            has them; otherwise only its spec sheet.

    Returns:
        The columns of `predicted_columns`, each an ndarray of shape (N,), in the table's order; NaN
        where a column does not apply.
    """
    columns = predicted_columns(table["family"].unique())
    out: dict[str, np.ndarray] = {c: np.full(len(table), np.nan) for c in columns[2:]}
    out = {c: np.full(len(table), "", dtype=object) for c in columns[:2]} | out
    for family in table["family"].unique():
        positions = np.flatnonzero((table["family"] == family).to_numpy())
        keep = [
            c for c in ("family", "system", "dataset", "version", *COLUMNS[family]) if c in table
        ]
        for batch in batches(table.iloc[positions][keep].reset_index(drop=True)):
            profile = systems()[batch.system].profile
            calibration = load_calibration(CALIBRATION[family], profile, few_shot=few_shot)
            at, seconds = positions[batch.at], batch.seconds(calibration)
            name = f"{batch.quantity}_us" if batch.quantity else "us"
            low, high = batch.interval(calibration)
            out[f"predicted_{name}"][at] = seconds / US
            out[f"low_{name}"][at], out[f"high_{name}"][at] = (
                seconds * low / US,
                seconds * high / US,
            )
            out["evidence"][at] = "simulated"
            out["calibration"][at] = batch.level(calibration)
    return out
