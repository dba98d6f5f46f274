"""Speed of communication prices: rows per second of a table, and one exchange as the lowering
prices it.
"""

import numpy as np
import pytest

from moesim import load_profile
from moesim.costs.comm.kernels import NAMES, comm_kernel
from moesim.costs.comm.work import Work
from moesim.measured.exchanges.predict import predict_comm_rows
from moesim.measured.exchanges.table import load_family, systems
from moesim.units import KB


def test_predict_20000_measured_exchanges(benchmark):
    rows = (
        load_family("deepep_normal")
        .sample(20_000, random_state=0, replace=True)
        .reset_index(drop=True)
    )
    predict_comm_rows(rows, few_shot=True)
    benchmark(lambda: predict_comm_rows(rows, few_shot=True))


@pytest.mark.parametrize("devices", [64, 16_384])
@pytest.mark.parametrize("name", NAMES)
def test_price_one_exchange(benchmark, name, devices):
    kernel = comm_kernel(name, systems()["h100_sxm"].ports(devices), load_profile("h100-sxm"))
    tokens = np.random.default_rng(0).integers(0, 2048, devices).astype(float)
    work = Work(
        tokens_D=tokens,
        copies_D=6 * tokens,
        near_bytes_D=5 * KB * tokens,
        far_bytes_D=KB * tokens,
        hidden_size=7168,
        top_k=8,
        num_experts=256,
        copy_bytes=7 * KB,
    )
    benchmark(lambda: kernel.price("dispatch", work))
