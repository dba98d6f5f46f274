"""The calls of torch that ranks make around their exchanges, as the simulation counts them."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed as dist
from moesim_kernels.cpu.train import TRAIN_PHASES, CpuTraining
from moesim_kernels.ranks.train import PHASES, RankTraining
from torch.utils._python_dispatch import TorchDispatchMode

from moesim.model import MoELayer
from moesim.simulation.training.layer import PRICED_CALLS, RANK_CALLS

LAYER = MoELayer(hidden_size=64, expert_intermediate_size=32, num_experts=8, top_k=2)
#: exchanges, which are priced by themselves, and torch's own records
OTHERS = ("c10d", "profiler")


class Calls(TorchDispatchMode):
    """Counts calls by phase."""

    def __init__(self, phases):
        super().__init__()
        self.left, self.found = iter(phases), Counter()
        self.next()

    def next(self):
        self.phase = next(self.left, "")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not str(function).startswith(OTHERS):
            self.found[self.phase] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_calls_of_ranks_are_those_that_are_priced(one_rank, dtype):
    """More tokens or ranks do not change how often torch is called."""
    rng = np.random.default_rng(0)
    ids_TK = np.array([rng.permutation(8)[:2] for _ in range(16)], dtype=np.int32)
    several = RankTraining(LAYER, torch.from_numpy(ids_TK), 0, dtype, 0)
    several.select(0)
    with Calls(PHASES) as ranks:
        several.step(lambda _: ranks.next())
    alone = CpuTraining(LAYER, ids_TK.astype(np.int64), dtype)
    with torch.no_grad(), Calls(("begin", *TRAIN_PHASES)) as one:

        def clock():
            one.next()
            return 0.0

        alone.forward(clock)
    forward = ranks.found["forward"] - one.found["forward"]
    backward = ranks.found["backward"] - one.found["dgrad"] - one.found["wgrad"]
    assert forward - PRICED_CALLS == pytest.approx(RANK_CALLS["forward"], abs=3)
    assert backward - PRICED_CALLS == pytest.approx(RANK_CALLS["backward"], abs=3)
