"""The kernels that move bytes move exactly the right ones."""

import pytest
import torch
from moesim_kernels.ops.memory import BLOCK, gather, gather_reference, stream, stream_reference


@pytest.mark.parametrize("size", [0, 1, 911, BLOCK, 2 * BLOCK + 1025])
def test_stream(device, size):
    source_N = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
    found, expected = torch.full((size + 1,), -1.0, device=device), torch.empty(size, device=device)
    stream(source_N, found[:size])
    stream_reference(source_N, expected)
    assert torch.equal(found[:size], expected)
    assert found[size] == -1.0, "written past the end"


@pytest.mark.parametrize(
    ("rows", "columns"), [(1000, 8), (37, 16), (5, 911), (3, 16384), (1, 1), (0, 8)]
)
def test_gather(device, rows, columns):
    generator = torch.Generator().manual_seed(1)
    table_SC = torch.randn(53, columns, generator=generator).to(device)
    rows_R = torch.randint(0, 53, (rows,), generator=generator).int().to(device)
    found, expected = (
        torch.full((rows + 1, columns), -1.0, device=device),
        torch.empty(rows, columns, device=device),
    )
    gather(table_SC, rows_R, found[:rows])
    gather_reference(table_SC, rows_R, expected)
    assert torch.equal(found[:rows], expected)
    assert (found[rows] == -1.0).all(), "written past the end"


def test_refusals(device):
    vector, table = torch.ones(4, device=device), torch.ones(4, 2, device=device)
    rows = torch.zeros(3, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"^target_N: expected shape \(4,\), got \(3,\)$"):
        stream(vector, vector[:3])
    with pytest.raises(
        ValueError, match=r"^source_N: expected torch.float32 of 1 dimensions, got torch.float16"
    ):
        stream(vector.half(), vector)
    with pytest.raises(
        ValueError, match=r"^rows_R: expected torch.int32 of 1 dimensions, got torch.int64"
    ):
        gather(table, rows.long(), table[:3])
    with pytest.raises(ValueError, match=r"^target_RC: expected shape \(3, 2\), got \(4, 2\)$"):
        gather(table, rows, table)
