"""Predict a user's table of measured kernels: ``moesim validate kernels --rows FILE``.

The table has aiconfigurator's moe_perf columns plus ``system`` and ``dataset``. Tile columns,
``op_name``, ``num_slots`` and ``rank0_num_tokens`` are used if they are present. A latency column
is never used for predictions, only for scoring them afterwards.
"""

from pathlib import Path
from typing import Any

import numpy as np

from moesim.costs.devices.fused_formats import FORMATS
from moesim.errors import ConfigError
from moesim.files.toml import UnknownNameError
from moesim.hardware import load_profile
from moesim.measured.kernels import table as silicon
from moesim.measured.kernels.draws import (
    TILE_FIELDS,
    draw_rows,
    residual_class,
    row_kernels,
)
from moesim.measured.kernels.family_predict import DISTRIBUTIONS, predict_family
from moesim.measured.kernels.family_records import FAMILIES, TRITON
from moesim.measured.kernels.row_checks import check_libraries, libraries
from moesim.measured.kernels.scoreboard import roofline_s
from moesim.measured.user_rows import as_numbers, first_of, need_columns, read_table, refuse

_SIZES = (
    "num_tokens",
    "hidden_size",
    "inter_size",
    "topk",
    "num_experts",
    "moe_tp_size",
    "moe_ep_size",
)
_POWERS = ("block_m", "block_n", "block_k", "num_warps")
#: limits beyond which nothing was measured, and histograms would not fit into memory or floats
_MOST_TOKENS, _MOST_EXPERTS, _LARGEST, _LARGEST_ALPHA = 1 << 24, 1 << 16, 1 << 48, 10
_LATENCIES = ("latency", "latency_ms")
#: columns that a prediction adds to a row
PREDICTED = ("predicted_latency_ms", "low_ms", "high_ms", "roofline_ms", "evidence", "calibration")


def read_rows(path: Path):
    """Read and check a table of rows (parquet or CSV).

    Returns:
        The table as a pandas DataFrame, with index 0 to N - 1 and sizes as integers.

    Raises:
        ConfigError: The file is unreadable, a column is missing, a system, format or distribution
            is unknown, a size is not an integer > 0, two sizes do not go together (such as a topk
            above num_experts), or a latency is not a number > 0; the message names the column and
            the first bad row.
    """
    table = read_table(path)
    need_columns(path, table, [*silicon.COLUMNS, *(TILE_FIELDS if "block_m" in table else ())])
    for column in _SIZES:
        values = as_numbers(table[column])
        refuse(path, table, column, ~_whole(values), "an integer > 0")
        table[column] = values.astype(np.int64)
    if "block_m" in table:
        untiled = table["block_m"].isna()  # these rows run their framework's tile
        for column in TILE_FIELDS:
            values = as_numbers(table[column])
            power = column in _POWERS
            right = _whole(values) & (
                (np.log2(values.where(values > 0)) % 1 == 0) if power else True
            )
            refuse(
                path,
                table,
                column,
                ~(untiled | right),
                "a power of two" if power else "an integer > 0",
            )
            table[column] = values
    for column in _LATENCIES:
        if column in table:
            values = as_numbers(table[column])
            refuse(path, table, column, ~((values > 0) & np.isfinite(values)), "a number > 0")
    refuse(
        path,
        table,
        "moe_dtype",
        ~table["moe_dtype"].isin(FORMATS),
        f"one of {', '.join(FORMATS)}",
    )
    refuse(path, table, "dataset", table["dataset"].isna(), "FRAMEWORK/VERSION")
    refuse(path, table, "kernel_source", table["kernel_source"].isna(), "the name of a kernel")
    refuse(
        path,
        table,
        "distribution",
        ~table["distribution"].astype(str).str.fullmatch(DISTRIBUTIONS),
        "balanced, uniform, power_law_ALPHA or power_law_ALPHA_eplb",
    )
    refuse(path, table, "topk", table["topk"] > table["num_experts"], "at most num_experts")
    refuse(
        path,
        table,
        "moe_ep_size",
        table["num_experts"] % table["moe_ep_size"] != 0,
        "a divisor of num_experts",
    )
    refuse(
        path,
        table,
        "moe_tp_size",
        table["inter_size"] // table["moe_tp_size"] < 1,
        "at most inter_size",
    )
    refuse(path, table, "num_tokens", table["num_tokens"] > _MOST_TOKENS, f"at most {_MOST_TOKENS}")
    refuse(
        path, table, "num_experts", table["num_experts"] > _MOST_EXPERTS, f"at most {_MOST_EXPERTS}"
    )
    known = table["dataset"].astype(str).str.fullmatch(r"(sglang|vllm|trtllm)/.+")
    refuse(path, table, "dataset", ~known, "sglang/VERSION, vllm/VERSION or trtllm/VERSION")
    alphas = as_numbers(table["distribution"].astype(str).str.extract(r"power_law_([\d.]+)")[0])
    refuse(
        path,
        table,
        "distribution",
        alphas > _LARGEST_ALPHA,
        f"an ALPHA of at most {_LARGEST_ALPHA}",
    )
    for system in table["system"].unique():
        try:
            profile = load_profile(str(system))
        except UnknownNameError as error:
            row = first_of(table["system"], system)
            raise ConfigError(f"{path.name}: system, row {row}: {error}") from None
        if profile.execution != "waves":
            refuse(
                path, table, "system", table["system"] == system, "a GPU, which runs Triton kernels"
            )
    check_libraries(path, table)
    return table


def _whole(values):
    return (values > 0) & (values <= _LARGEST) & (values == values.round())


def predict_rows(table, *, few_shot: bool) -> dict[str, np.ndarray]:
    """Predict every row of a checked table.

    Args:
        table: DataFrame of `read_rows`.
        few_shot: Whether to use factors from a few measured rows of a device where the calibration
            has them; otherwise only its spec sheet.

    Returns:
        The columns of `PREDICTED`, each an ndarray of shape (N,), in the table's order.
    """
    out: dict[str, np.ndarray] = {name: np.empty(len(table)) for name in PREDICTED[:4]}
    out |= {name: np.empty(len(table), dtype=object) for name in PREDICTED[4:]}
    for (system, dataset, dtype, name), part in table.groupby(
        ["system", "dataset", "moe_dtype", libraries(table).fillna(TRITON)]
    ):
        profile = load_profile(str(system))
        if name != TRITON:
            found = predict_family(part.to_dict("records"), profile, FAMILIES[str(name)])
            for column, values in found.items():
                out[column][part.index.to_numpy()] = values
            out["evidence"][part.index.to_numpy()] = "simulated"
            continue
        kernels = row_kernels(str(dataset), profile, few_shot=few_shot)
        records: list[dict[str, Any]] = part.to_dict("records")
        draws = draw_rows(records, profile)
        at = part.index.to_numpy()
        predicted = draws.price(kernels) * 1e3
        classes = [residual_class(dtype, r["moe_ep_size"]) for r in records]
        of_class = {name: kernels.calibration.interval(name, str(dataset)) for name in set(classes)}
        factors = np.array([of_class[name] for name in classes])
        out["predicted_latency_ms"][at] = predicted
        out["low_ms"][at], out["high_ms"][at] = predicted * factors[:, 0], predicted * factors[:, 1]
        out["roofline_ms"][at] = roofline_s(draws, profile) * 1e3
        out["evidence"][at], out["calibration"][at] = "simulated", kernels.calibration.level
    return out
