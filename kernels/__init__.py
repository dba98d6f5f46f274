"""Triton kernels of one Mixture-of-Experts layer, each with its torch reference.

| folder | holds |
|---|---|
| `tiles` | tile sizes, the choice among them, multiprocessor limits, register and memory budgets |
| `ops` | the kernels in a token's order (router, plan, swiglu, down, combine), and the layer |
| `compile` | compilation of every kernel for GPUs that are not in this machine |
| `timing` | times on the GPU of this machine, and tiles found by timing |
| `cpu` | a whole layer on this CPU, timed by phase |
| `ranks` | processes or GPUs of this host, and a layer that is spread over them |
| `profile` | device profiles, measured on this machine |
| `sources` | the measurement sources and kernel tools that moesim finds through its entry points |

Imports go one way: tiles, cpu; ops; compile, timing, ranks; profile; sources.

Shape suffixes: T tokens, E experts, G expert groups, S experts of one group, K experts a token
uses, H hidden size, I expert width, N outputs of a grouped GEMM, P = T x K (token, expert) pairs,
E1 = E + 1.

Importing this package imports neither torch nor triton; the names below load their module when they
are first used. The references need torch alone.
"""

from importlib import import_module

_MODULE_OF = {
    "triton_mode": "ops.runtime",
    "device": "ops.runtime",
    "route": "ops.router",
    "route_reference": "ops.router",
    "two_level_gate": "ops.hier_gate",
    "two_level_gate_reference": "ops.hier_gate",
    "Plan": "ops.plan",
    "make_plan": "ops.plan",
    "make_plan_reference": "ops.plan",
    "Tile": "tiles.tiles",
    "tile_bound": "tiles.tiles",
    "tile_config": "tiles.tiles",
    "tiles_per_expert": "tiles.tiles",
    "combine": "ops.grouped_down",
    "tiny_expert_reference": "ops.tiny_expert",
    "LayerWeights": "ops.weights",
    "moe_layer": "ops.layer",
    "prepare_layer": "ops.prepared",
    "synchronize": "ops.watch",
    "expert_parallel_layer": "ranks.expert_parallel",
    "compile_all": "compile.check",
    "time_expert_phase": "timing.bench",
    "measure_profile": "profile.cpu_profile",
    "write_profile": "profile.cpu_profile",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
