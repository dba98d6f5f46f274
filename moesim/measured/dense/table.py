"""Read measured GEMMs, all-reduces and attention from NVIDIA's aiconfigurator-core, and say which
may be fitted.

One row is the mean latency of a kernel, called back to back on one GPU. Weights of GEMMs are cold;
the KV cache of attention is warm if it fits in the L2. Rows that differ only in what no price knows
become their median. Left out are:

- vLLM's GEMMs of fp8 blocks: they were timed without a graph, and none takes under 55 us.
- All-reduces outside CUDA graphs, which the host decides.
- Attention by the fallbacks of the engines, which differ from the kernels that they use (Triton),
  and by FlashAttention-4 for heads of 512.

What is fitted is decided by group: the columns and depth of a GEMM's weights, the size of a
message, or the heads of attention. A group is fitted if the first byte of the SHA-256 of its name
is even; only groups of `FITTED` are, and all others score.

The package is aiconfigurator-core 0.12 (Apache-2.0); only its parquet files are read.
"""

import hashlib
from functools import cache
from typing import Literal

import numpy as np

from moesim.costs.dense.gemm import FORMATS as GEMM_FORMATS
from moesim.costs.dense.prices import Op
from moesim.errors import MeasurementError
from moesim.files import toml
from moesim.measured.kernels import table as silicon
from moesim.units import US

Kind = Literal["dense", "attention"]
#: kind of table -> its prices
OPS: dict[Kind, tuple[Op, ...]] = {
    "dense": ("gemm", "all_reduce"),
    "attention": ("prefill", "decode", "mla_prefill", "mla_decode"),
}
#: price -> columns of its size, all integers
SIZES: dict[Op, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "all_reduce": ("num_gpus", "message_size"),
    "prefill": (
        "batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "window_size",
    ),
    "decode": (
        "batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "window_size",
    ),
    "mla_prefill": ("batch_size", "isl", "step", "num_heads"),
    "mla_decode": ("batch_size", "isl", "step", "num_heads"),
}  # fmt: skip
#: columns of sizes that may be 0
MAY_BE_ZERO = ("step", "window_size")
#: price -> columns whose values are a group
GROUP: dict[Op, tuple[str, ...]] = {
    "gemm": ("n", "k"),
    "all_reduce": ("message_size",),
    "prefill": ("num_heads", "num_key_value_heads"),
    "decode": ("num_heads", "num_key_value_heads"),
    "mla_prefill": ("num_heads",),
    "mla_decode": ("num_heads",),
}
_FILES: dict[Op, str] = {
    "gemm": "gemm/*/*/gemm_perf",
    "all_reduce": "comm/*/*/custom_allreduce_perf",
    "prefill": "attention/*/*/context_attention_perf",
    "decode": "attention/*/*/generation_attention_perf",
    "mla_prefill": "mla/*/*/context_mla_perf",
    "mla_decode": "mla/*/*/generation_mla_perf",
}
_LEFT_OUT = "triton|fa4"
#: kernels of attention that are fitted: FlashAttention-3 on Hopper, TensorRT-LLM's on Blackwell
_MAIN = (
    r"^(?:fa3|vllm_flash_attn_fa3|flash_attention|trtllm_mha|trtllm_mla|vllm_flashinfer_trtllm.*)$"
)
DATASETS = ("sglang/0.5.14", "vllm/0.24.0")
#: kind of price -> systems whose groups may be fitted
FITTED: dict[Kind, tuple[str, ...]] = {
    "dense": ("h100_sxm",),
    "attention": ("h100_sxm", "b200_sxm"),
}
#: a latency is in milliseconds
_MS = 1e3 * US


def is_fitted_group(*sizes: int) -> bool:
    """Return whether a group of rows is one of the half that may be fitted.

    Args:
        *sizes: The group's numbers in the order of `GROUP`.
    """
    name = ",".join(str(int(size)) for size in sizes)
    return hashlib.sha256(name.encode()).digest()[0] % 2 == 0


def systems() -> list[str]:
    """Return the systems of the package that have a device profile and rows of GEMMs.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    known = set(toml.index_names("devices"))
    paths = silicon.find_tables("", f"*/{_FILES['gemm']}.parquet")
    names = sorted({path.parts[-5] for path in paths})
    return [name for name in names if name in known or name.replace("_", "-") in known]


@cache
def load_rows(op: Op, system: str):
    """Return all rows of one kind of price on one system.

    Returns:
        pandas DataFrame with ``op``, ``system``, ``dataset`` (``framework/version``), ``format``,
        the columns of `SIZES`, ``main`` (whether the kernel is one that may be fitted),
        ``fitted`` and ``seconds``; empty if the package has no such rows.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed.
    """
    import pandas as pd

    tables = []
    for path in silicon.find_tables(system, f"{_FILES[op]}.parquet"):
        table = silicon.read_table(path)
        dataset = "/".join(path.parts[-3:-1])
        table = table.assign(
            op=op, system=system, dataset=dataset, format=formats_of(op, table),
            main=_is_main(op, table["kernel_source"]), seconds=table["latency"] * _MS,
        )  # fmt: skip
        tables.append(table[_is_priced(op, dataset, table)])
    keys = ["op", "system", "dataset", "format", *SIZES[op], "main"]
    if not tables:
        return pd.DataFrame(columns=[*keys, "fitted", "seconds"])
    rows = pd.concat(tables, ignore_index=True).groupby(keys, as_index=False)["seconds"].median()
    return rows.assign(fitted=may_fit(op, rows))


def load_all(kind: Kind, names: tuple[str, ...]):
    """Return the rows of all prices of a kind on several systems, see `load_rows`.

    Raises:
        MeasurementError: The extra ``silicon`` is not installed, or there are no such rows.
    """
    import pandas as pd

    tables = [rows for name in names for op in OPS[kind] if len(rows := load_rows(op, name))]
    if not tables:
        raise MeasurementError(
            f"measured rows: aiconfigurator-core has none of {kind} on {', '.join(names)}"
        )
    return pd.concat(tables, ignore_index=True)


def formats_of(op: Op, table) -> np.ndarray:
    """Return the format of each row as prices name it: ndarray of str, shape (rows,).

    Args:
        op: Kind of price.
        table: DataFrame with the package's own columns of number formats.
    """
    if op == "gemm":
        return table["gemm_dtype"].to_numpy(dtype=str)
    if op == "all_reduce":
        return table["allreduce_dtype"].to_numpy(dtype=str)
    kv = np.where(table["kv_cache_dtype"] == "fp8", "fp8", "bfloat16")
    if "decode" in op:
        return kv
    products = table["mla_dtype" if op.startswith("mla") else "attn_dtype"]
    return np.where(products == "fp8", "fp8", np.where(kv == "fp8", "fp8_kv", "bfloat16"))


def may_fit(op: Op, rows) -> np.ndarray:
    """Return which rows may be fitted: ndarray of bool, shape (rows,)."""
    kind: Kind = "dense" if op in OPS["dense"] else "attention"
    groups = rows[list(GROUP[op])].itertuples(index=False, name=None)
    chosen = np.array([is_fitted_group(*group) for group in groups], dtype=bool)
    there = rows["system"].isin(FITTED[kind]) & rows["dataset"].isin(DATASETS)
    return chosen & there.to_numpy() & rows["main"].to_numpy(dtype=bool)


def _is_main(op: Op, kernels) -> np.ndarray:
    if op in OPS["dense"]:
        return np.ones(len(kernels), dtype=bool)
    return kernels.str.match(_MAIN).to_numpy(dtype=bool)


def _is_priced(op: Op, dataset: str, table) -> np.ndarray:
    good = (table["seconds"] > 0).to_numpy()
    if op == "gemm":
        eager = dataset.startswith("vllm") & (table["format"] == "fp8_block").to_numpy()
        return good & table["format"].isin(GEMM_FORMATS).to_numpy() & ~eager
    if op == "all_reduce":
        graph = ~table["kernel_source"].str.contains("eager").to_numpy(dtype=bool)
        return good & graph & (table["format"] == "bfloat16").to_numpy()
    return good & ~table["kernel_source"].str.contains(_LEFT_OUT).to_numpy(dtype=bool)
