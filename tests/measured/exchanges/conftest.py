"""Rows of measured exchanges as somebody may hand them in, a good one of each family."""

import pandas as pd
import pytest

from moesim.measured.exchanges.predict import predict_comm_rows

NCCL = {
    "family": "nccl",
    "system": "h200_sxm",
    "op_name": "alltoall",
    "nccl_dtype": "half",
    "num_gpus": 8,
    "message_size": 1 << 20,
}
NORMAL = {
    "family": "deepep_normal",
    "system": "h200_sxm",
    "node_num": 1,
    "hidden_size": 7168,
    "num_token": 4096,
    "num_topk": 8,
    "num_experts": 256,
    "dispatch_sms": 20,
    "combine_sms": 20,
}
LOW = {
    "family": "deepep_ll",
    "system": "b200_sxm",
    "node_num": 1,
    "hidden_size": 7168,
    "num_token": 128,
    "num_topk": 8,
    "num_experts": 256,
}
NVL72 = {
    "family": "nvl72_alltoall",
    "system": "gb200",
    "op_name": "alltoall_dispatch",
    "kernel_source": "NVLinkOneSided",
    "moe_dtype": "nvfp4",
    "num_tokens": 1024,
    "hidden_size": 7168,
    "topk": 8,
    "num_experts": 256,
    "moe_ep_size": 32,
    "distribution": "balanced",
}
GOOD = {"nccl": NCCL, "normal": NORMAL, "low": LOW, "nvl72": NVL72}


@pytest.fixture
def row_of():
    """Make a good row of a family."""
    return lambda family: dict(GOOD[family])


@pytest.fixture
def mixed():
    """Rows of all families and several systems that do not come sorted."""
    return pd.DataFrame(
        [
            NCCL,
            LOW,
            NORMAL,
            NCCL | {"system": "a100_sxm"},
            NVL72,
            NVL72 | {"op_name": "alltoall_prepare", "kernel_source": "NVLinkTwoSided"},
            NORMAL | {"system": "b300_sxm", "num_token": 1},
            NCCL | {"op_name": "all_gather"},
            NORMAL | {"node_num": 4, "combine_sms": 24},
            LOW | {"system": "h100_sxm", "node_num": 8},
            NCCL | {"num_gpus": 2, "dataset": "nccl/2.23"},
        ]
    )


@pytest.fixture(scope="session")
def predictions():
    """Predict the rows of a table."""

    def run(table, *, few_shot=True):
        return pd.DataFrame(predict_comm_rows(table.reset_index(drop=True), few_shot=few_shot))

    return run
