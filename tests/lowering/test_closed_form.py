"""On balanced traffic the engines give the communication kernels' closed forms: one model,
not two.
"""

import numpy as np
import pytest

from moesim.costs.comm.choose import exchange_kernel
from moesim.design.candidate import Candidate, Parallelism
from moesim.design.schedule import Schedule
from moesim.engines.run import run
from moesim.hardware import load_cluster
from moesim.lowering.layer import lower_layer
from moesim.lowering.priced import Priced
from moesim.lowering.traffic import Traffic
from moesim.model import MoELayer


def balanced(devices, domains, tokens, reach):
    """Every device sends ``reach`` x tokens copies evenly to all devices, its own included."""
    copies = np.full((devices, devices), tokens * reach / devices)
    return Traffic(
        num_tokens_S=np.full(devices, tokens),
        copies_SD=copies,
        choices_SD=copies * 8 / reach,
        domains_SG=np.full((devices, domains), tokens * min(reach, domains) / domains),
        counts_DL=np.full((devices, 4), tokens * 2),
        dropped_fraction=0.0,
    )


@pytest.mark.parametrize("tokens", [64, 1024, 8192])
@pytest.mark.parametrize("direction", ["dispatch", "combine"])
@pytest.mark.parametrize(
    ("name", "dispatch"),
    [
        ("hgx-h100-8", "nccl"),
        ("hgx-h100-8", "deepep_normal"),
        ("hgx-h100-8", "deepep_ll"),
        ("hgx-a100-8", "nccl"),
        ("hgx-h100-8", "all_gather"),
        ("gb200-nvl72", "nvl72"),
        ("h100-rail-8x8", "deepep_ll"),
        ("h100-rail-8x8", "nccl"),
        ("hgx-h100-8", "ideal"),
        ("h100-rail-8x8", "deepep_normal"),
        ("mi300x-8", "nccl"),
    ],
)
def test_flow_gives_the_closed_form(name, dispatch, direction, tokens):
    cluster = load_cluster(name)
    devices = cluster.num_devices
    traffic = balanced(devices, devices // cluster.devices_per_domain, tokens, min(5.0, devices))
    layer = MoELayer(
        hidden_size=4096, expert_intermediate_size=512, num_experts=4 * devices, top_k=8
    )
    candidate = Candidate(
        layer=layer, parallelism=Parallelism(ep=devices), schedule=Schedule(exchange=dispatch)
    )
    kernel = exchange_kernel(cluster, cluster.exchange(candidate.schedule))
    priced = Priced.of(
        layer,
        traffic,
        kernel,
        cluster,
        exchange=cluster.exchange(candidate.schedule),
        num_experts=4 * devices,
    )
    near_out, near_in, far_out, far_in = (
        d * priced.copy_bytes[direction] for d in priced.movement.near_far_D
    )
    price = priced.prices[direction]
    stages = [
        price.sm_s_D,
        np.maximum(near_out, near_in) * price.near_factor_D / cluster.link_bytes_per_s,
    ]
    if cluster.nic_bytes_per_s:
        stages.append(np.maximum(far_out, far_in) * price.far_factor_D / cluster.nic_bytes_per_s)
    closed_s = float((price.latency_s_D + np.maximum.reduce(stages)).max())
    program = lower_layer(candidate, cluster, [traffic], kernel)
    timeline = run(program, "flow")
    ops = (program.phase_N == program.phase_names.index(direction)) & (program.solo_s_N() > 0)
    took_s = float(timeline.end_s_N[ops].max() - timeline.start_s_N[ops].min())
    assert took_s == pytest.approx(closed_s, rel=0.03)
