"""Triton kernels of one Mixture-of-Experts layer, each beside its torch reference.

The path of a token batch, module by module:

| module | does |
|---|---|
| `runtime` | which Triton can run here: a GPU's, the interpreter's, none |
| `launches` | launches of kernels, recorded and replayed |
| `gate_logits` | logits of a gate, its hidden size cut into parts that fill the GPU |
| `router` | sum of the parts, scores, bias, noise, group limits, top-k and histogram in one kernel |
| `hier_gate` | the two-level gate: coarse groups first, then the kept groups' experts only |
| `plan`, `plan_kernels` | (token, expert) pairs sorted by expert and cut into GEMM tiles, on the device |
| `tiles` | tile sizes, and the tile counts every plan must agree with |
| `tile_choice`, `hopper_tiles` | tiles tuned here, those of a rule for Hopper, or the simulator's best |
| `operands`, `fp8` | block-scaled 8-bit operands of the grouped GEMMs, and what makes them |
| `persistent` | the grouped GEMMs with tensor descriptors, a program walking over many tiles |
| `grouped_swiglu`, `wide_swiglu` | gather, gate and up projections, SwiGLU in one kernel; both as one product |
| `grouped_linear`, `grouped_down` | grouped GEMM; down projection and deterministic combine |
| `grouped_outer`, `swiglu_grad` | gradients of expert weights; of SwiGLU and router weights, in one pass |
| `expert_grad` | the expert phase forward and backward |
| `tiny_expert` | experts of a few neurons, up to millions, as gathered vectors |
| `layer`, `weights`, `layer_checks` | a whole layer, with Triton or torch; its weights; what it refuses |
| `prepared` | a layer checked once, whose launches are recorded and replayed |
| `compile_check`, `compile_cases` | registers, spills and shared memory on GPUs that are not here |
| `budgets` | the most of each that a kernel may need |
| `occupancy` | how many programs a multiprocessor holds |
| `kernel_tools` | what `moesim kernels` finds here |
| `bench`, `tune` | times on a GPU that is; tiles found by timing |
| `profilers` | what `moesim measure` finds here |
| `cpu_profile` | a device profile of this CPU: `cpu_curves` rates, `cpu_primitives` calls, `cpu_fit` their prices |
| `gpu_profile` | a device profile of this GPU: `gpu_curves` rates, `gpu_memory` the kernels that stream and gather |
| `host_fabric` | all-to-alls between the processes or GPUs of this host, which `ranks` starts |
| `expert_parallel` | a whole layer over the ranks of a group: uneven all-to-all, gradients |
| `profile_text` | how measured profiles are written |
| `cpu_layer` | a whole layer on this CPU, timed by phase |
| `timed_layers`, `local_loop` | layers run on this CPU in processes of their own; what of them was foretold |
| `triton_source`, `cpu_source`, `gloo_source`, `interpret_source` | the measurement sources moesim finds |
| `interpreted`, `scaling` | a layer through the interpreter; a layer made small enough to run here |

Shape suffixes: T tokens, E experts, G expert groups, S experts of one group, K experts a token uses, H hidden size,
I expert width, N outputs of a grouped GEMM, P = T x K (token, expert) pairs, E1 = E + 1.

Importing this package imports neither torch nor triton; the names below load their module when they are first used.
(`grouped_swiglu` and the like are names of modules here; import those functions from them.) The references need torch
alone.
"""

from importlib import import_module

_MODULE_OF = {
    "triton_mode": "runtime",
    "device": "runtime",
    "route": "router",
    "route_reference": "router",
    "two_level_gate": "hier_gate",
    "two_level_gate_reference": "hier_gate",
    "Plan": "plan",
    "make_plan": "plan",
    "make_plan_reference": "plan",
    "Tile": "tiles",
    "tile_bound": "tiles",
    "tile_config": "tiles",
    "tiles_per_expert": "tiles",
    "combine": "grouped_down",
    "tiny_expert_reference": "tiny_expert",
    "LayerWeights": "weights",
    "moe_layer": "layer",
    "prepare_layer": "prepared",
    "expert_parallel_layer": "expert_parallel",
    "compile_all": "compile_check",
    "time_expert_phase": "bench",
    "measure_profile": "cpu_profile",
    "write_profile": "cpu_profile",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
