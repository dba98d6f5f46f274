"""Compile every kernel for GPUs that are not here, and read what it would cost there.

`compile_all` is what ``moesim kernels compile`` runs. One subprocess per target compiles (the
compiler can abort its process, and an interpreting process has no compiler) and reports kernel by
kernel; after an abort the next one goes on behind the kernel that caused it, so an abort costs one
row. Nothing is taken from Triton's cache.

Triton rejects no kernel for its shared memory here, a launch on the GPU would: `tiles.LIMITS` is
the check. Static numbers can rule a tile out; they cannot rank tiles by time.

``python -m moesim_kernels.compile.check --write-budgets [NAME]`` compiles all kernels, or those
whose name contains NAME, and makes the numbers their budgets.
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

from moesim_kernels.compile.cases import Case, cases
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
_PROCESSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileResult:
    """One kernel compiled for one target.

    Attributes:
        target: Architecture, such as "sm_90" or "gfx942".
        kernel: The kernel and what it was specialised for.
        dtype: Format of its operands.
        tile: What one program takes.
        status: "ok"; "over_budget": compiled, but worse than what it is held to; "failed": not
            compiled; "unsupported": the hardware lacks the format.
        registers: Per thread (AMD: vector registers).
        shared_bytes: Shared memory of a program.
        spills: NVIDIA: instructions that load or store local memory. AMD: vector registers spilled.
        ctas_per_sm: Programs one multiprocessor holds at once.
        compile_s: Seconds the compiler took.
        held_to: "budget": the numbers recorded with this Triton, and what is physical
            (`moesim_kernels.tiles.budgets`); "physical": that alone, since this Triton is another;
            "" if not compiled.
        error: Why it did not compile, or what is over budget; "" otherwise.
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
    widths = {"hidden", "width", "inner"} - set(case.constexprs)
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in widths
    }
    source = triton.compiler.ASTSource(case.function, signature, case.constexprs, aligned)
    amd = target.startswith("gfx")
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
    # Warps the compiler adds for asynchronous copies need registers, too; none of these kernels has
    # any.
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
    return {
        "registers": _number(r"REG:(\d+)", usage),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", asm["sass"])),
    }


def _worker(target: str, only: str, first: int) -> None:
    """Print a line of JSON before and after each case from the ``first`` on."""
    for case in _chosen(target, only)[first:]:
        name = {"target": target, "kernel": case.kernel, "dtype": case.dtype, "tile": case.tile}
        print(json.dumps({"begin": name}), flush=True)
        if not case.supported:
            row = {"status": "unsupported"}
        else:
            try:
                row = _compile(target, case)
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[-1]
                row = {"status": "failed", "error": f"{type(error).__name__}: {reason}"}
        print(json.dumps(name | row), flush=True)


def _chosen(target: str, only: str) -> list[Case]:
    return [case for case in cases(target) if only in case.kernel]


def compile_target(target: str, only: str = "") -> list[CompileResult]:
    """Compile all kernels for one target, in a subprocess.

    Args:
        target: One of `LIMITS`.
        only: Compile kernels whose name contains this.

    Returns:
        One result per case, in the order of `cases`; failures included.

    Raises:
        ValueError: An unknown target.
        RuntimeError: Triton is not installed, or the subprocess failed before the first kernel.
    """
    if target not in LIMITS:
        raise ValueError(f"target: expected one of {', '.join(LIMITS)}, got {target!r}")
    if triton is None:
        raise RuntimeError(
            "compiling needs Triton, which is not installed here (it exists for Linux only)"
        )
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
        results += [CompileResult(**line) for line in lines if "begin" not in line]
        if not lines or "begin" not in lines[-1]:
            return results
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
    """Compile for several targets, two at a time, and compare with what is physical and the
    budgets.

    Args:
        targets: Of `LIMITS`.
        only: Compile kernels whose name contains this.

    Yields:
        Results, target by target.

    Raises:
        ValueError: An unknown target, or no kernel of that name.
        RuntimeError: Triton is not installed, or a subprocess failed before the first kernel.
    """
    targets = list(targets)
    if unknown := [target for target in targets if target not in LIMITS]:
        raise ValueError(f"targets: expected any of {', '.join(LIMITS)}, got {unknown[0]!r}")
    if triton is not None and not _chosen("sm_90", only):
        raise ValueError(f"kernel: no kernel's name contains {only!r}")
    budgets = Budgets.load(triton.__version__ if triton is not None else "")
    with ThreadPoolExecutor(_PROCESSES) as pool:
        for rows in pool.map(lambda target: compile_target(target, only), targets):
            yield from (_judged(row, budgets) for row in rows)


def main(arguments: list[str]) -> int:
    """``--worker TARGET ONLY FIRST`` (for this module itself) or ``--write-budgets [NAME]``."""
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
