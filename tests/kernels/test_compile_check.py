"""Every kernel compiles for every target without spills, within shared memory and, with the
Triton that recorded them, within its budgets. No GPU needed, but minutes of a compiler."""

from dataclasses import replace

import pytest
from moesim_kernels.compile import check
from moesim_kernels.compile.cases import cases
from moesim_kernels.compile.check import CompileResult
from moesim_kernels.tiles.budgets import Budgets, write_budgets
from moesim_kernels.tiles.occupancy import MULTIPROCESSORS, ctas_per_sm
from moesim_kernels.tiles.tiles import LIMITS


def test_shared_memory_budgets_are_the_vendors():
    kib = {target: limits.shared_bytes // 1024 for target, limits in LIMITS.items()}
    assert (kib["sm_80"], kib["sm_90"], kib["sm_100"]) == (163, 227, 227)
    assert MULTIPROCESSORS.keys() == LIMITS.keys()
    assert all(
        MULTIPROCESSORS[target].shared_bytes >= limits.shared_bytes
        for target, limits in LIMITS.items()
    )


@pytest.mark.parametrize("target", LIMITS)
def test_names_tell_cases_apart_and_each_has_a_budget(target):
    names = [(target, case.kernel, case.dtype, case.tile) for case in cases(target)]
    assert len(set(names)) == len(names) >= 40
    assert {name for name, case in zip(names, cases(target), strict=True) if case.supported} == {
        name for name in Budgets.load("").rows if name[0] == target
    }


@pytest.mark.long
@pytest.mark.parametrize("target", LIMITS)
def test_budgets(target):
    assert_budgets(check.compile_all([target]))


@pytest.mark.full
@pytest.mark.parametrize("target", ["sm_90", "gfx950"])
def test_budgets_of_some_kernels(target):
    """Those that take masks: each family of kernels has one."""
    assert_budgets(check.compile_all([target], "masked"))


def assert_budgets(rows):
    for row in rows:
        assert row.status in ("ok", "unsupported"), row
        if row.status == "ok":
            assert row.held_to == Budgets.load(check.triton.__version__).held_to
            assert row.spills == 0, row
            assert 0 < row.registers <= 512, row
            assert row.shared_bytes <= LIMITS[row.target].shared_bytes, row
            assert row.ctas_per_sm >= 1, row


@pytest.mark.long
def test_the_big_gemms_use_the_tensor_cores_shared_memory():
    rows = {
        (row.kernel, row.dtype, row.tile): row for row in check.compile_target("sm_90", "swiglu")
    }
    assert rows["swiglu", "bf16", "128x128x64"].shared_bytes == 192 * 1024


def test_one_kernel_compiles_quickly():
    rows = list(check.compile_all(["sm_90"], "stream"))
    assert [(row.kernel, row.status, row.spills, row.shared_bytes) for row in rows] == [
        ("stream", "ok", 0, 0),
        ("stream sizes of 1", "ok", 0, 0),
    ]
    assert all(row.registers > 0 and row.ctas_per_sm >= 1 and row.compile_s > 0 for row in rows)


def test_refuses_unknown_names():
    with pytest.raises(ValueError, match="target: expected one of sm_80"):
        check.compile_target("sm_10")
    with pytest.raises(ValueError, match="targets: expected any of sm_80"):
        list(check.compile_all(["sm_10"]))
    with pytest.raises(ValueError, match="no kernel's name contains 'attention'"):
        list(check.compile_all(["sm_90"], "attention"))


def test_a_crash_costs_one_row(monkeypatch):
    head = '"target": "sm_90", "dtype": "i32", "tile": "1"'
    outputs = [
        f'{{{head}, "kernel": "a", "registers": 3}}\n{{"begin": {{{head}, "kernel": "b"}}}}\n',
        f'{{"begin": {{}}}}\n{{{head}, "kernel": "c", "registers": 4}}\n',
    ]
    first = []

    class Done:
        stderr = "no module"

    def run(command, **_):
        first.append(command[-1])
        Done.stdout, Done.returncode = (
            (outputs.pop(0), -6 if outputs else 0) if outputs else ("", 1)
        )
        return Done

    monkeypatch.setattr(check.subprocess, "run", run)
    rows = check.compile_target("sm_90")
    assert [(row.kernel, row.status, row.registers) for row in rows] == [
        ("a", "ok", 3),
        ("b", "failed", 0),
        ("c", "ok", 4),
    ]
    assert rows[1].error == "the compiler ended with code -6"
    assert first == ["0", "2"]
    with pytest.raises(RuntimeError, match="compiling for sm_90 failed: no module"):
        check.compile_target("sm_90")


def test_budgets_hold_for_the_version_they_were_recorded_with_and_physics_for_all(tmp_path):
    row = CompileResult(
        target="sm_80",
        kernel="k",
        dtype="f32",
        tile="1",
        registers=80,
        shared_bytes=800,
        ctas_per_sm=3,
    )
    file = tmp_path / "budgets.csv"
    write_budgets(
        [
            {
                "target": "sm_80",
                "kernel": "k",
                "dtype": "f32",
                "tile": "1",
                "registers": 80,
                "spills": 0,
                "shared_bytes": 800,
                "ctas_per_sm": 3,
            }
        ],
        "3.7.1",
        path=file,
    )
    same, newer = Budgets.load("3.7.1", file), Budgets.load("3.9.0", file)
    assert (same.held_to, newer.held_to, newer.triton_version) == ("budget", "physical", "3.7.1")
    assert same.broken_by(row) == newer.broken_by(row) == ""
    assert same.broken_by(replace(row, registers=81)) == "registers 81, budget 80"
    assert same.broken_by(replace(row, tile="2")) == "no budget in budgets.csv"
    assert newer.broken_by(replace(row, registers=255, shared_bytes=9000)) == ""
    assert newer.broken_by(replace(row, tile="2")) == ""
    for budgets in (same, newer):
        assert budgets.broken_by(replace(row, spills=1)) == "1 spills"
        assert "the target has 166912" in budgets.broken_by(replace(row, shared_bytes=2**20))
        assert "too much for a multiprocessor" in budgets.broken_by(replace(row, ctas_per_sm=0))


@pytest.mark.parametrize(
    ("target", "numbers", "programs"),
    [
        ("sm_90", {"registers": 168, "shared_bytes": 100 * 1024, "num_warps": 4}, 2),
        ("sm_90", {"registers": 255, "shared_bytes": 0, "num_warps": 8}, 1),
        ("sm_90", {"registers": 10, "shared_bytes": 0, "num_warps": 4}, 16),
        ("sm_89", {"registers": 10, "shared_bytes": 0, "num_warps": 4}, 12),
        ("sm_80", {"registers": 32, "shared_bytes": 164 * 1024, "num_warps": 4}, 0),
        ("gfx942", {"registers": 128, "shared_bytes": 0, "num_warps": 4}, 4),
        ("gfx942", {"registers": 20, "shared_bytes": 32 * 1024, "num_warps": 4}, 2),
    ],
)
def test_programs_of_a_multiprocessor(target, numbers, programs):
    assert ctas_per_sm(target, **numbers) == programs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sm_10", 1, 0, 1), "target: expected one of sm_80"),
        (("sm_90", 0, 0, 1), "registers and num_warps >= 1"),
    ],
)
def test_occupancy_refuses(arguments, message):
    target, registers, shared_bytes, num_warps = arguments
    with pytest.raises(ValueError, match=message):
        ctas_per_sm(target, registers=registers, shared_bytes=shared_bytes, num_warps=num_warps)
