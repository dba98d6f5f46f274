"""Compile every kernel for GPUs that are not here, and read what it would cost there.

``python -m moesim_kernels.compile_check [TARGET ...]`` prints one line per kernel and target: registers per thread,
spilled accesses, shared memory. One subprocess per target compiles (the compiler can abort its process, and an
interpreting process has no compiler); it reports kernel by kernel, so an abort costs one row, not all.

Triton rejects no kernel for its shared memory here, a launch on the GPU would: `tiles.LIMITS` is the check. Static
numbers can rule a tile out; they cannot rank tiles by time.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from moesim_kernels.gpu_memory import BLOCK, WARPS, _gather_kernel, _stream_kernel
from moesim_kernels.grouped_down import _combine_kernel
from moesim_kernels.grouped_linear import _linear_kernel
from moesim_kernels.grouped_swiglu import _swiglu_kernel
from moesim_kernels.plan import _offsets_kernel, _prefix_kernel, _rank_kernel, _scatter_kernel, _tile_map_kernel
from moesim_kernels.router import MAX_ROW, _route_kernel, route_warps
from moesim_kernels.runtime import tl, triton
from moesim_kernels.tiles import LIMITS, Limits, tile_config

_OPERANDS = {"x_ptr", "a_ptr", "w_ptr", "y_ptr", "out_ptr"}
_FLOAT32 = {"logits_ptr", "weights_ptr", "source_ptr", "target_ptr"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileResult:
    """One kernel compiled for one target.

    Attributes:
        target: Architecture, such as "sm_90" or "gfx942".
        kernel: The kernel and what it was specialised for.
        registers: Per thread (AMD: vector registers).
        spills: NVIDIA: instructions that load or store local memory. AMD: vector registers spilled.
        shared_bytes: Shared memory of a program.
        error: Why it did not compile; the numbers are 0 then.
    """

    target: str
    kernel: str
    registers: int = 0
    spills: int = 0
    shared_bytes: int = 0
    error: str = ""


def _gemm(limits: Limits, kernel: Any, tokens: int, bits: int, **flags: bool) -> tuple[str, Any, dict, dict]:
    accumulators = 2 if kernel is _swiglu_kernel else 1
    tile = tile_config(tokens, 4096, operand_bits=bits, result_bits=32 if flags.get("GATHER") else bits,
                       num_accumulators=accumulators, limits=limits)
    constexprs = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "GROUP_M": 4, "TOP_K": 8,
                  "DOT": tl.bfloat16 if bits == 16 else tl.float32} | flags
    what = "swiglu" if accumulators == 2 else "logits" if flags["GATHER"] else "linear"
    masked = "" if flags.get("EVEN_H") or flags.get("EVEN_K") else " masked"
    name = f"{what} {'bf16' if bits == 16 else 'f32'} {tile.block_m}x{tile.block_n}x{tile.block_k}{masked}"
    return name, kernel, constexprs, {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


def _cases(limits: Limits) -> Iterator[tuple[str, Any, dict, dict]]:
    """Name, kernel, constexprs and launch options of everything compiled; GEMMs with the default tiles."""
    for tokens, bits in ((16, 16), (32, 16), (64, 16), (128, 16), (128, 32)):
        yield _gemm(limits, _swiglu_kernel, tokens, bits, EVEN_H=True)
        yield _gemm(limits, _linear_kernel, tokens, bits, EVEN_K=True, GATHER=False)
    yield _gemm(limits, _swiglu_kernel, 128, 16, EVEN_H=False)
    yield _gemm(limits, _linear_kernel, 128, 16, EVEN_K=False, GATHER=False)
    yield _gemm(limits, _linear_kernel, 128, 16, EVEN_K=False, GATHER=True)
    yield "combine", _combine_kernel, {"BLOCK_T": 4, "BLOCK_H": 1024}, {}
    yield ("route 256 experts", _route_kernel, {"SIGMOID": False, "GROUPED": False, "BLOCK_T": 16, "BLOCK_G": 1,
                                                "BLOCK_S": 256, "BLOCK_K": 8}, {})
    yield ("route 8 x 32, sigmoid", _route_kernel, {"SIGMOID": True, "GROUPED": True, "BLOCK_T": 16, "BLOCK_G": 8,
                                                    "BLOCK_S": 32, "BLOCK_K": 8}, {})
    yield (f"route {MAX_ROW} experts", _route_kernel, {"SIGMOID": False, "GROUPED": False, "BLOCK_T": 1, "BLOCK_G": 1,
                                                       "BLOCK_S": MAX_ROW, "BLOCK_K": 8},
           {"num_warps": route_warps(MAX_ROW)})
    yield "stream", _stream_kernel, {"BLOCK": BLOCK}, {"num_warps": WARPS}
    for columns in (8, 1024):
        yield (f"gather of {4 * columns} bytes", _gather_kernel,
               {"BLOCK_R": BLOCK // columns, "BLOCK_C": columns}, {"num_warps": WARPS})
    # A launch makes sizes of 1 compile-time constants, which not every expression survives.
    ones = {"num_tokens": 1, "num_experts": 1, "num_groups": 1, "num_limited_groups": 1, "top_k": 1,
            "max_tiles": 1, "num_elements": 1, "num_rows": 1, "num_columns": 1, "hidden": 1,
            "width": 1, "inner": 1, "num_pairs": 1, "num_segments": 1}
    for name, kernel, constexprs, options in (
            _gemm(limits, _swiglu_kernel, 16, 16, EVEN_H=False),
            _gemm(limits, _linear_kernel, 16, 16, EVEN_K=False, GATHER=True),
            ("combine", _combine_kernel, {"BLOCK_T": 1, "BLOCK_H": 16}, {}),
            ("stream", _stream_kernel, {"BLOCK": BLOCK}, {}),
            ("gather", _gather_kernel, {"BLOCK_R": 1, "BLOCK_C": 1}, {}),
            ("route", _route_kernel, {"SIGMOID": True, "GROUPED": True, "BLOCK_T": 1, "BLOCK_G": 1, "BLOCK_S": 1,
                                      "BLOCK_K": 1}, {})):
        yield f"{name.split()[0]}, sizes of 1", kernel, ones | constexprs, options
    yield "plan rank", _rank_kernel, {"BLOCK": 128, "CHUNKS": 8}, {"num_warps": 8}
    yield "plan prefix", _prefix_kernel, {"BLOCK_S": 64, "BLOCK_E": 64}, {}
    yield "plan offsets", _offsets_kernel, {"BLOCK_M": 128, "BLOCK": 4096}, {}
    yield "plan scatter", _scatter_kernel, {"SEGMENT": 1024, "BLOCK": 1024}, {}
    yield "plan tile map", _tile_map_kernel, {"STEPS": 9, "BLOCK_M": 128, "BLOCK": 1024}, {}


def _type(name: str, constexprs: dict) -> str:
    if name in constexprs:
        return "constexpr"
    if not name.endswith("_ptr"):
        return "i32"
    if name in _OPERANDS:
        float32_logits = name == "out_ptr" and constexprs.get("GATHER")
        return "*fp32" if float32_logits or constexprs.get("DOT") == tl.float32 else "*bf16"
    return "*fp32" if name in _FLOAT32 else "*i32"


def _compile(target: str, kernel: Any, constexprs: dict, options: dict) -> dict:
    names = kernel.arg_names
    constexprs = {name: value for name, value in constexprs.items() if name in names}
    signature = {name: _type(name, constexprs) for name in names}
    widths = {name for name in ("hidden", "width", "inner") if name not in constexprs}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names)
               if signature[name].startswith("*") or name in widths}
    source = triton.compiler.ASTSource(kernel, signature, constexprs, aligned)
    amd = target.startswith("gfx")
    gpu = triton.backends.compiler.GPUTarget("hip", target, 64) if amd else \
        triton.backends.compiler.GPUTarget("cuda", int(target[3:]), 32)
    compiled = triton.compile(source, target=gpu, options=options)
    numbers = _amd_numbers(compiled.asm["amdgcn"]) if amd else _nvidia_numbers(compiled.asm)
    return numbers | {"shared_bytes": compiled.metadata.shared}


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's output has no {pattern!r}")
    return int(found[1])


def _amd_numbers(assembly: str) -> dict:
    return {"registers": _number(r"\.vgpr_count:\s*(\d+)", assembly),
            "spills": _number(r"\.vgpr_spill_count:\s*(\d+)", assembly)}


def _nvidia_numbers(asm: dict) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout
    return {"registers": _number(r"REG:(\d+)", usage), "spills": len(re.findall(r"\b(?:STL|LDL)\b", asm["sass"]))}


def _worker(target: str) -> None:
    for name, kernel, constexprs, options in _cases(LIMITS[target]):
        print(json.dumps({"begin": name}), flush=True)
        try:
            row = _compile(target, kernel, constexprs, options)
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"}
        print(json.dumps(asdict(CompileResult(target=target, kernel=name, **row))), flush=True)


def compile_target(target: str) -> list[CompileResult]:
    """Compile all kernels for one target, in a subprocess.

    Args:
        target: One of `LIMITS`.

    Returns:
        One result per kernel, errors included; a last one for the kernel that brought the compiler down, if any did.

    Raises:
        ValueError: An unknown target.
        RuntimeError: Triton is not installed, or the subprocess failed before the first kernel.
    """
    if target not in LIMITS:
        raise ValueError(f"target: expected one of {', '.join(LIMITS)}, got {target!r}")
    if triton is None:
        raise RuntimeError("compiling needs Triton, which is not installed here (it exists for Linux only)")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "moesim_kernels.compile_check", "--worker", target],
                          capture_output=True, text=True, env=environment, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"compiling for {target} failed: {done.stderr.strip()[-500:]}")
    results = [CompileResult(**line) for line in lines if "begin" not in line]
    if "begin" in lines[-1]:
        results.append(CompileResult(target=target, kernel=lines[-1]["begin"],
                                     error=f"the compiler ended with code {done.returncode}"))
    return results


def compile_all(targets: Iterable[str] = tuple(LIMITS)) -> list[CompileResult]:
    """`compile_target` for each target, one after another."""
    return [result for target in targets for result in compile_target(target)]


def main(arguments: list[str]) -> int:
    """Print the table; 1 if a kernel failed, spilled or needs too much shared memory, 2 for an unknown target."""
    if arguments[:1] == ["--worker"]:
        _worker(arguments[1])
        return 0
    if unknown := [target for target in arguments if target not in LIMITS]:
        print(f"error: target: expected one of {', '.join(LIMITS)}, got {unknown[0]!r}", file=sys.stderr)
        return 2
    bad = 0
    print(f"{'target':8} {'kernel':33} {'registers':>9} {'spills':>6} {'shared KiB':>10}")
    for target in arguments or LIMITS:
        for row in compile_target(target):
            wrong = row.error or row.spills or row.shared_bytes > LIMITS[target].shared_bytes
            bad += bool(wrong)
            print(f"{target:8} {row.kernel:33} {row.registers:9} {row.spills:6} {row.shared_bytes / 1024:10.1f} "
                  f"{row.error or ('<-' if wrong else '')}".rstrip(), flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
