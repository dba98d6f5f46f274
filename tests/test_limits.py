"""The one guard on the memory and the work of a request."""

import numpy as np
import pytest

from moesim import limits
from moesim.errors import CapacityError
from moesim.limits import MOST_WORK_US, check_request, memory_of_machine
from moesim.placement import place


def test_what_fits_is_let_through():
    check_request("nothing")
    check_request("much", memory_bytes=0.5 * memory_of_machine(), work_us=MOST_WORK_US)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"memory_bytes": 2.0**40}, "it would take 1,024.0 GiB of memory (limit "),
        ({"memory_bytes": float("inf")}, "it would take inf GiB of memory (limit "),
        ({"memory_bytes": float("nan")}, "it would take nan GiB of memory (limit "),
        ({"memory_bytes": 3e9, "most_bytes": 2.0**30}, "2.8 GiB of memory (limit 1.0 GiB): less"),
        ({"work_us": 3.6e9}, "it would take 60.0 minutes (limit 15): less"),
        ({"work_us": float("nan")}, "it would take nan minutes (limit 15): less"),
    ],
)
def test_what_does_not_is_refused_with_its_figure(asked, said):
    with pytest.raises(CapacityError) as refused:
        check_request("it", advice="less", **asked)
    assert said in str(refused.value)
    assert str(refused.value).endswith(": less")


def test_a_container_may_have_less_memory_than_the_machine(tmp_path, monkeypatch):
    whole, limit = memory_of_machine(), tmp_path / "memory.max"
    monkeypatch.setattr(limits, "_CONTAINER", limit)
    limit.write_text("1073741824\n")
    assert memory_of_machine() == 2.0**30
    limit.write_text("max\n")
    assert memory_of_machine() >= whole


@pytest.mark.parametrize("strategy", ["local_search:100000", "affinity", "domain"])
def test_plans_that_compare_every_pair_are_refused_and_eplb_is_not(strategy):
    """The advice holds: EPLB plans as many."""
    loads = np.ones(1 << 15)
    with pytest.raises(CapacityError, match=r"placement: .* of 32,768 experts .*: eplb plans as"):
        place(strategy, loads, 8, 1 << 15)
    assert place("eplb", loads, 8, 8).num_ranks == 8
