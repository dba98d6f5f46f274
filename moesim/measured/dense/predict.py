"""Predict a user's table of dense parts: ``moesim validate dense --rows FILE``.

A row names its system and has the columns of the package's own tables: those of
`moesim.measured.dense.table.SIZES`; the formats (``gemm_dtype``; ``allreduce_dtype``;
``attn_dtype`` or ``mla_dtype``, and ``kv_cache_dtype``); ``op_name``, which GEMMs may leave out;
and either ``dataset`` (``framework/version``) or ``framework`` and ``version``. A latency is never
used for predictions, only for scoring them afterwards. KV caches are priced as the tables have
them: warm where they fit in the L2.
"""

from pathlib import Path

import numpy as np

from moesim.costs.dense.gemm import FORMATS as GEMM_FORMATS
from moesim.costs.dense.prices import Op
from moesim.files import toml
from moesim.measured.dense.price import batches
from moesim.measured.dense.table import MAY_BE_ZERO, OPS, SIZES, Kind, formats_of
from moesim.measured.user_rows import as_numbers, need_columns, read_table, refuse
from moesim.units import US

Array = np.ndarray
#: columns that a prediction adds
PREDICTIONS = (
    "grade", "calibration", "predicted_us", "low_us", "high_us", "roofline_us", "rests_on",
)  # fmt: skip
#: the package's name of an operation -> kind of price
_OPS: dict[str, Op] = {
    "gemm": "gemm",
    "all_reduce": "all_reduce",
    "context_attention": "prefill",
    "generation_attention": "decode",
    "mla_context": "mla_prefill",
    "mla_generation": "mla_decode",
}
_FORMATS = ("bfloat16", "fp8")
#: kind of price -> columns that say its format
_FORMAT_COLUMNS: dict[Op, tuple[str, ...]] = {
    "gemm": ("gemm_dtype",),
    "all_reduce": ("allreduce_dtype",),
    "prefill": ("attn_dtype", "kv_cache_dtype"),
    "decode": ("kv_cache_dtype",),
    "mla_prefill": ("mla_dtype", "kv_cache_dtype"),
    "mla_decode": ("kv_cache_dtype",),
}
_LARGEST = 1 << 40


def read_rows(path: Path, kind: Kind):
    """Read and check a table of rows (parquet or CSV).

    Args:
        path: The file.
        kind: ``dense`` or ``attention``.

    Returns:
        pandas DataFrame of the file's columns, index 0 to N - 1, with ``op``, ``dataset``,
        ``format`` and ``seconds`` (NaN where no latency is given).

    Raises:
        ConfigError: The file is unreadable, a column is missing, a name is unknown, or a size is
            not an integer > 0; the message names the column and the first bad row.
    """
    table = read_table(path)
    table = table.assign(op=_ops(path, table, kind), dataset=_datasets(path, table))
    _check_systems(path, table)
    formats = np.full(len(table), "", dtype=object)
    for op in OPS[kind]:
        here = (table["op"] == op).to_numpy()
        if here.any():
            _check(path, table, op, here)
            formats[here] = formats_of(op, table[here])
    milliseconds = next((table[c] for c in ("latency_ms", "latency") if c in table), None)
    seconds = (
        np.full(len(table), np.nan)
        if milliseconds is None
        else as_numbers(milliseconds).to_numpy() * 1e3 * US
    )
    return table.assign(format=formats, seconds=seconds)


def predict_rows(rows) -> dict[str, Array]:
    """Predict every row of a checked table.

    Args:
        rows: DataFrame of `read_rows` or `moesim.measured.dense.table.load_all`, index 0 to N - 1.

    Returns:
        The columns of `PREDICTIONS`, each an ndarray of shape (N,), in the table's order.

    Raises:
        ConfigError: A device has no rate for a row's format.
    """
    out: dict[str, Array] = {
        name: np.full(len(rows), np.nan if name.endswith("_us") else "", dtype=None
                      if name.endswith("_us") else object)
        for name in PREDICTIONS
    }  # fmt: skip
    for at, batch, fitted, grade, level in batches(rows, SIZES):
        seconds = batch.seconds(fitted)
        out["predicted_us"][at] = seconds / US
        out["low_us"][at], out["high_us"][at] = (
            seconds * grade.low / US,
            seconds * grade.high / US,
        )
        out["roofline_us"][at] = batch.roofline_s() / US
        out["grade"][at] = grade.letter
        out["rests_on"][at] = grade.rests_on
        out["calibration"][at] = level
    return out


def _ops(path: Path, table, kind: Kind):
    if "op_name" not in table and kind == "dense":
        return "gemm"
    need_columns(path, table, ("op_name",))
    known = {name: op for name, op in _OPS.items() if op in OPS[kind]}
    refuse(path, table, "op_name", ~table["op_name"].isin(known), f"one of {', '.join(known)}")
    return table["op_name"].map(known)


def _datasets(path: Path, table):
    if "dataset" in table:
        return table["dataset"].astype(str)
    need_columns(path, table, ("framework", "version"))
    return table["framework"].astype(str).str.lower() + "/" + table["version"].astype(str)


def _check_systems(path: Path, table) -> None:
    need_columns(path, table, ("system",))
    for name in table["system"].unique():
        # an unknown name is refused with its near matches
        toml.find("devices", str(name))


def _check(path: Path, table, op: Op, here: Array) -> None:
    formats = _FORMAT_COLUMNS[op]
    need_columns(path, table, (*SIZES[op], *formats))
    allowed = GEMM_FORMATS if op == "gemm" else _FORMATS
    for column in formats:
        wrong = here & ~table[column].isin(allowed).to_numpy()
        refuse(path, table, column, wrong, f"one of {', '.join(allowed)}")
    for column in SIZES[op]:
        least = 0 if column in MAY_BE_ZERO else 1
        values = as_numbers(table[column]).to_numpy()
        whole = (values >= least) & (values <= _LARGEST) & (values == np.round(values))
        refuse(path, table, column, here & ~whole, f"an integer >= {least}")
    if "num_key_value_heads" in SIZES[op]:
        own, all_ = (as_numbers(table[name]) for name in ("num_key_value_heads", "num_heads"))
        wrong = here & (own > all_).to_numpy()
        refuse(path, table, "num_key_value_heads", wrong, "at most num_heads")
