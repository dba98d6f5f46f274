"""Compile every kernel for GPUs that are not in this machine, and read what it would cost there.

``moesim kernels compile`` runs `compile_all`. One subprocess per target compiles, since the
compiler can abort its process and an interpreting process has no compiler, and reports kernel by
kernel. After an abort, the next subprocess continues after the kernel that caused it, so an abort
costs one row. Nothing is taken from Triton's cache.

Triton does not reject a kernel for its shared memory here, although a launch on the GPU would; the
check is `tiles.LIMITS`. Static numbers can rule a tile out; they cannot rank tiles by time.

``python -m moesim_kernels.compile.check --write-budgets [NAME]`` compiles all kernels, or those
whose name contains NAME, and records the numbers as their budgets.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

from moesim_kernels.compile.cases import cases
from moesim_kernels.compile.specialization import Case
from moesim_kernels.ops.runtime import triton
from moesim_kernels.tiles.budgets import Budgets, write_budgets
from moesim_kernels.tiles.occupancy import ctas_per_sm
from moesim_kernels.tiles.tiles import LIMITS

COLUMNS = (
    "target",
    "kernel",
    "dtype",
    "tile",
    "status",
    "registers",
    "shared_bytes",
    "spills",
    "ctas_per_sm",
    "compile_s",
    "held_to",
)
# Compilers at a time.
_PROCESSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileResult:
    """Result of one kernel compiled for one target.

    Attributes:
        target: Architecture, such as "sm_90" or "gfx942".
        kernel: Name of the kernel, with what it was specialized for.
        dtype: Number format of its operands.
        tile: Sizes of what one program takes.
        status: "ok"; "over_budget": compiled, but above its limits; "failed": not compiled;
            "unsupported": the hardware lacks the format.
        registers: Number of registers per thread (AMD: vector registers).
        shared_bytes: Shared memory of a program.
        spills: On NVIDIA, the number of instructions that load or store local memory; on AMD, the
            number of spilled vector registers.
        ctas_per_sm: Number of programs one multiprocessor holds at once.
        compile_s: Seconds the compiler took.
        held_to: "budget": held to the numbers recorded with this Triton, and to physical limits
            (`moesim_kernels.tiles.budgets`); "physical": held to physical limits alone, since the
            numbers were recorded with another Triton; "" if not compiled.
        error: Reason why it did not compile, or what is over budget; "" otherwise.
    """

    target: str
    kernel: str
    dtype: str
    tile: str
    status: str = "ok"
    registers: int = 0
    shared_bytes: int = 0
    spills: int = 0
    ctas_per_sm: int = 0
    compile_s: float = 0.0
    held_to: str = ""
    error: str = ""


def _compile(target: str, case: Case) -> dict:
    signature = case.signature()
    # Pointers and widths are multiples of 16 in practice, and Triton specializes launches on that.
    widths = {"hidden", "width", "inner"} - set(case.constexprs)
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in widths
    }
    source = triton.compiler.ASTSource(case.function, signature, case.constexprs, aligned)
    amd = target.startswith("gfx")
    # Waves of 64 lanes on AMD, warps of 32 on NVIDIA.
    gpu = (
        triton.backends.compiler.GPUTarget("hip", target, 64)
        if amd
        else triton.backends.compiler.GPUTarget("cuda", int(target[3:]), 32)
    )
    start = time.perf_counter()
    compiled = triton.compile(source, target=gpu, options=case.options)
    compile_s = round(time.perf_counter() - start, 3)
    numbers = _amd_numbers(compiled.asm["amdgcn"]) if amd else _nvidia_numbers(compiled.asm)
    numbers["shared_bytes"] = compiled.metadata.shared
    # Warps that the compiler adds for asynchronous copies would also need registers; none of these
    # kernels has such warps.
    programs = ctas_per_sm(
        target,
        registers=numbers["registers"],
        shared_bytes=numbers["shared_bytes"],
        num_warps=compiled.metadata.num_warps,
    )
    return numbers | {"ctas_per_sm": programs, "compile_s": compile_s}


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's output has no {pattern!r}")
    return int(found[1])


def _amd_numbers(assembly: str) -> dict:
    return {
        "registers": _number(r"\.vgpr_count:\s*(\d+)", assembly),
        "spills": _number(r"\.vgpr_spill_count:\s*(\d+)", assembly),
    }


def _nvidia_numbers(asm: dict) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run(
            [tool, "-res-usage", cubin.name], capture_output=True, text=True, check=True
        ).stdout
    # Accesses to local memory are counted as spills.
    return {
        "registers": _number(r"REG:(\d+)", usage),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", asm["sass"])),
    }


def _worker(target: str, only: str, first: int) -> None:
    """Print a line of JSON before and after each case, starting with case number ``first``."""
    for case in _chosen(target, only)[first:]:
        name = {"target": target, "kernel": case.kernel, "dtype": case.dtype, "tile": case.tile}
        # Announced first: if the compiler aborts, the parent knows which kernel it was.
        print(json.dumps({"begin": name}), flush=True)
        if not case.supported:
            row = {"status": "unsupported"}
        else:
            try:
                row = _compile(target, case)
            # Whatever the compiler raises is a row of the table, and the next kernel is tried.
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[-1]
                row = {"status": "failed", "error": f"{type(error).__name__}: {reason}"}
        print(json.dumps(name | row), flush=True)


def _chosen(target: str, only: str) -> list[Case]:
    return [case for case in cases(target) if only in case.kernel]


def compile_target(target: str, only: str = "") -> list[CompileResult]:
    """Compile all kernels for one target, in a subprocess.

    Args:
        target: Architecture, a key of `LIMITS`.
        only: Part of a kernel's name; only kernels that contain it are compiled.

    Returns:
        One result per case, in the order of `cases`; failures are included.

    Raises:
        ValueError: The target is unknown.
        RuntimeError: Triton is not installed, or the subprocess failed before the first kernel.
    """
    if target not in LIMITS:
        raise ValueError(f"target: expected one of {', '.join(LIMITS)}, got {target!r}")
    if triton is None:
        raise RuntimeError(
            "compiling needs Triton, which is not installed here (it exists for Linux only)"
        )
    # An interpreting process has no compiler.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_ALWAYS_COMPILE"] = "1"
    results: list[CompileResult] = []
    while True:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "moesim_kernels.compile.check",
                "--worker",
                target,
                only,
                str(len(results)),
            ],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines and (done.returncode or not results):
            raise RuntimeError(f"compiling for {target} failed: {done.stderr.strip()[-500:]}")
        # Each round adds the finished rows; the next worker skips as many cases.
        results += [CompileResult(**line) for line in lines if "begin" not in line]
        if not lines or "begin" not in lines[-1]:
            return results
        # The last line announced a kernel without its result: that kernel ended the compiler.
        results.append(
            CompileResult(
                **lines[-1]["begin"],
                status="failed",
                error=f"the compiler ended with code {done.returncode}",
            )
        )


def _judged(row: CompileResult, budgets: Budgets) -> CompileResult:
    if row.status != "ok":
        return row
    wrong = budgets.broken_by(row)
    return replace(
        row, status="over_budget" if wrong else "ok", error=wrong, held_to=budgets.held_to
    )


def compile_all(targets: Iterable[str] = tuple(LIMITS), only: str = "") -> Iterator[CompileResult]:
    """Compile for several targets, two at a time, and compare with physical limits and budgets.

    Args:
        targets: Architectures, keys of `LIMITS`.
        only: Part of a kernel's name; only kernels that contain it are compiled.

    Yields:
        Results, target by target.

    Raises:
        ValueError: A target is unknown, or no kernel has that name.
        RuntimeError: Triton is not installed, or a subprocess failed before the first kernel.
    """
    targets = list(targets)
    if unknown := [target for target in targets if target not in LIMITS]:
        raise ValueError(f"targets: expected any of {', '.join(LIMITS)}, got {unknown[0]!r}")
    if triton is not None and not _chosen("sm_90", only):
        raise ValueError(f"kernel: no kernel's name contains {only!r}")
    budgets = Budgets.load(triton.__version__ if triton is not None else "")
    with ThreadPoolExecutor(_PROCESSES) as pool:
        # map keeps the order of the targets, whichever compiles faster.
        for rows in pool.map(lambda target: compile_target(target, only), targets):
            yield from (_judged(row, budgets) for row in rows)


def main(arguments: list[str]) -> int:
    """Run ``--worker TARGET ONLY FIRST`` (for this module itself) or ``--write-budgets [NAME]``."""
    if arguments[:1] == ["--worker"]:
        _worker(arguments[1], arguments[2], int(arguments[3]))
        return 0
    if arguments[:1] != ["--write-budgets"] or len(arguments) > 2:
        print(
            "error: expected --write-budgets [NAME]; `moesim kernels compile` prints the table",
            file=sys.stderr,
        )
        return 2
    only = arguments[1] if len(arguments) == 2 else ""
    rows = list(compile_all(only=only))
    # A kernel that spills must not become its own budget.
    if bad := [row for row in rows if row.status == "failed" or row.spills]:
        print(
            *(
                f"error: {row.target} {row.kernel} {row.dtype} {row.tile}: {row.error}, "
                f"{row.spills} spills"
                for row in bad
            ),
            sep="\n",
            file=sys.stderr,
        )
        return 1
    compiled = (asdict(row) for row in rows if row.status != "unsupported")
    print(f"wrote {write_budgets(compiled, triton.__version__, only)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
