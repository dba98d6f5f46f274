"""Check the columns of a user's table that say whose kernel each row is, in one-line errors."""

from pathlib import Path

from moesim.costs.calibration import load_calibration
from moesim.costs.devices.fused_formats import format_parameters
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import load_profile
from moesim.measured.kernels.draws import PRECISION
from moesim.measured.kernels.family_calibrate import fit_rows
from moesim.measured.kernels.family_records import FAMILIES, TRITON, family_of
from moesim.measured.user_rows import as_numbers, refuse

_TRITON_KERNELS = {
    "sglang": ("sglang_fused_moe_triton",),
    "vllm": (
        "vllm_unquantizedfusedmoe_triton_tritonexperts",
        "vllm_fp8moe_triton_tritonexperts",
        "vllm_modeloptfp8moe_triton_tritonexperts",
    ),
}


def library_of(dataset: str, kernel_source: str, op_name: str = "") -> str | None:
    """Return the library of a row: `TRITON`, the name of a
    `moesim.measured.kernels.family_records.KernelFamily`, or None.
    """
    if "triton" in kernel_source and not dataset.startswith("trtllm/"):
        return TRITON
    family = family_of(dataset, kernel_source, op_name)
    return None if family is None else family.name


def libraries(table):
    """Return the library of each row, see `library_of`: object Series of shape (N,)."""
    import pandas as pd

    names = table[["dataset", "kernel_source"]].astype(str)
    ops = table["op_name"].fillna("").astype(str) if "op_name" in table else ""
    keys = pd.Series(list(names.assign(op=ops).itertuples(index=False, name=None)), table.index)
    return keys.map({key: library_of(*key) for key in keys.unique()})


def check_libraries(path: Path, table) -> None:
    """Check that each row has a library that prices its format on its device.

    Args:
        path: The table's file, for messages.
        table: DataFrame whose columns ``dataset``, ``moe_dtype`` and sizes are already checked.

    Raises:
        ConfigError: A kernel is unknown (the message lists near matches), an operation is missing,
            a library has no prices of a format on a device, or slots or entering tokens do not go
            with the other sizes.
    """
    library = libraries(table)
    if library.isna().any():
        raise ConfigError(_unknown(path, table, int(library.isna().to_numpy().argmax())))
    triton = library == TRITON
    refuse(
        path,
        table,
        "moe_dtype",
        triton & ~table["moe_dtype"].isin(PRECISION),
        f"one of {', '.join(PRECISION)} of Triton kernels",
    )
    shaped = table["distribution"].str.endswith("_eplb") | (table["distribution"] == "uniform")
    refuse(path, table, "distribution", triton & shaped, "balanced or power_law_ALPHA")
    for name, family in FAMILIES.items():
        own = library == name
        for column in set(family.columns) & {"num_slots", "rank0_num_tokens"} & set(table):
            _check_size(path, table, column, own)
    priced = table[["system", "moe_dtype"]].assign(library=library)[~triton].drop_duplicates()
    for row, system, dtype, name in priced.itertuples(name=None):
        profile = load_profile(str(system))
        try:
            format_parameters(load_calibration(str(name), profile), str(dtype), profile)
        except ConfigError as error:
            raise ConfigError(f"{path.name}: moe_dtype, row {row}: {error}") from None


def _check_size(path: Path, table, column: str, own) -> None:
    """Turn a column of sizes that only some rows need into numbers, and check those."""
    given, values = own & table[column].notna(), as_numbers(table[column])
    whole = (values > 0) & (values == values.round())
    if column == "rank0_num_tokens":
        right, rule = whole & (values <= table["num_tokens"]), "an integer from 1 to num_tokens"
    else:
        enough = (values >= table["num_experts"]) & (values % table["moe_ep_size"] == 0)
        right, rule = whole & enough, "num_experts or more, a multiple of moe_ep_size"
    refuse(path, table, column, given & ~right, rule)
    table[column] = values


def _unknown(path: Path, table, row: int) -> str:
    """Return what is wrong with a row that has no library."""
    kernel, dataset = str(table["kernel_source"].iloc[row]), str(table["dataset"].iloc[row])
    framework = dataset.partition("/")[0]
    ops = [
        one.op_name
        for one in FAMILIES.values()
        if one.op_name and one.has(dataset, kernel, one.op_name)
    ]
    if ops:
        got = repr(table["op_name"].iloc[row]) if "op_name" in table else "no such column"
        return (
            f"{path.name}: op_name, row {row}: expected {' or '.join(ops)} of kernel {kernel}, "
            f"got {got}"
        )
    known = {r["kernel_source"] for r in fit_rows() if r["dataset"].startswith(f"{framework}/")}
    known |= set(_TRITON_KERNELS.get(framework, ()))
    error = UnknownNameError(f"kernel of {framework}", kernel, known)
    return f"{path.name}: kernel_source, row {row}: {error}"
