"""How many programs of a kernel one multiprocessor (AMD: compute unit) holds at once: no torch, no
Triton.

NVIDIA: registers are handed out to warps in blocks of 256, shared memory has 1 KiB reserved for
each program (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"). AMD: a
SIMD unit has 512 vector registers for each lane, handed out in blocks of 8, and up to 8 waves; a
compute unit has four of them (CDNA 3 and CDNA 4 instruction set architecture guides, "VGPR
allocation").
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiprocessor:
    """What the programs on one multiprocessor share.

    Attributes:
        shared_bytes: Shared memory or LDS in all.
        warps: Warps or waves in all.
        programs: Programs at most.
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
    """Programs one multiprocessor of ``target`` holds at once; 0 if not even one fits.

    Args:
        target: One of `MULTIPROCESSORS`.
        registers: Per thread; AMD: vector registers, accumulators included.
        shared_bytes: Shared memory of a program.
        num_warps: Warps of a program.

    Raises:
        ValueError: An unknown target, or a number below 1 (shared memory: below 0).
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
        by_registers = min(512 // _up(registers, 8), 8) * 4 // num_warps
        by_shared = unit.shared_bytes // shared_bytes if shared_bytes else unit.programs
    else:
        by_registers = 65536 // (_up(32 * registers, 256) * num_warps)
        by_shared = unit.shared_bytes // (shared_bytes + 1024)
    return min(by_registers, by_shared, unit.warps // num_warps, unit.programs)
