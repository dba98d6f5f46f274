"""Compute how many programs of a kernel one multiprocessor (AMD: compute unit) holds at once: no
torch, no Triton.

NVIDIA: registers are allocated to warps in blocks of 256, and 1 KiB of shared memory is reserved
for each program (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
AMD: a SIMD unit has 512 vector registers for each lane, allocated in blocks of 8, and holds up to 8
waves; a compute unit has four SIMD units (CDNA 3 and CDNA 4 instruction set architecture guides,
"VGPR allocation").
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiprocessor:
    """Resources that the programs on one multiprocessor share.

    Attributes:
        shared_bytes: Total shared memory or LDS.
        warps: Total number of warps or waves.
        programs: Largest number of programs.
    """

    shared_bytes: int
    warps: int
    programs: int


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(shared_bytes=164 * 1024, warps=64, programs=32),
    "sm_89": Multiprocessor(shared_bytes=100 * 1024, warps=48, programs=24),
    "sm_90": Multiprocessor(shared_bytes=228 * 1024, warps=64, programs=32),
    "sm_100": Multiprocessor(shared_bytes=228 * 1024, warps=64, programs=32),
    "sm_120": Multiprocessor(shared_bytes=100 * 1024, warps=48, programs=24),
    "gfx942": Multiprocessor(shared_bytes=64 * 1024, warps=32, programs=32),
    "gfx950": Multiprocessor(shared_bytes=160 * 1024, warps=32, programs=32),
}


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def ctas_per_sm(target: str, *, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Return how many programs one multiprocessor of ``target`` holds at once; 0 if not even one
    fits.

    Args:
        target: Architecture, a key of `MULTIPROCESSORS`.
        registers: Number of registers per thread; on AMD vector registers, accumulators included.
        shared_bytes: Shared memory of a program.
        num_warps: Number of warps in a program.

    Raises:
        ValueError: The target is unknown, or a number is below 1 (shared memory: below 0).
    """
    if target not in MULTIPROCESSORS:
        raise ValueError(f"target: expected one of {', '.join(MULTIPROCESSORS)}, got {target!r}")
    if min(registers, num_warps) < 1 or shared_bytes < 0:
        raise ValueError(
            f"expected registers and num_warps >= 1 and shared_bytes >= 0, got {registers}, "
            f"{num_warps}, {shared_bytes}"
        )
    unit = MULTIPROCESSORS[target]
    if target.startswith("gfx"):
        # Four SIMD units of 512 registers per lane; a wave lives on one of them.
        by_registers = min(512 // _up(registers, 8), 8) * 4 // num_warps
        by_shared = unit.shared_bytes // shared_bytes if shared_bytes else unit.programs
    else:
        # 65,536 registers for warps of 32 threads, in blocks of 256.
        by_registers = 65536 // (_up(32 * registers, 256) * num_warps)
        by_shared = unit.shared_bytes // (shared_bytes + 1024)
    return min(by_registers, by_shared, unit.warps // num_warps, unit.programs)
