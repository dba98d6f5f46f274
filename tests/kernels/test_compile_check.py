"""Every kernel compiles for every target within its budgets. No GPU needed, but minutes of a compiler."""

import pytest
from moesim_kernels import compile_check
from moesim_kernels.tiles import LIMITS

pytestmark = pytest.mark.full


def test_shared_memory_budgets_are_the_vendors():
    kib = {target: limits.shared_bytes // 1024 for target, limits in LIMITS.items()}
    assert (kib["sm_80"], kib["sm_90"], kib["sm_100"]) == (163, 227, 227)


@pytest.mark.parametrize("target", LIMITS)
def test_budgets(target):
    results = compile_check.compile_target(target)
    assert len(results) >= 20
    for row in results:
        assert not row.error, row
        assert row.spills == 0, row
        assert 0 < row.registers <= 512, row
        assert row.shared_bytes <= LIMITS[target].shared_bytes, row


def test_the_big_gemms_use_the_tensor_cores_shared_memory():
    rows = {row.kernel: row for row in compile_check.compile_target("sm_90")}
    assert rows["swiglu bf16 128x128x64"].shared_bytes == 192 * 1024


def test_refuses_unknown_targets():
    with pytest.raises(ValueError, match="target: expected one of sm_80"):
        compile_check.compile_target("sm_10")


def test_a_crash_costs_one_row(monkeypatch):
    class Done:
        stdout = '{"begin": "a"}\n{"target": "sm_90", "kernel": "a", "registers": 3}\n{"begin": "b"}\n'
        stderr, returncode = "", -6

    monkeypatch.setattr(compile_check.subprocess, "run", lambda *args, **kwargs: Done)
    good, bad = compile_check.compile_target("sm_90")
    assert (good.kernel, good.registers, good.error) == ("a", 3, "")
    assert (bad.kernel, bad.error) == ("b", "the compiler ended with code -6")
    Done.stdout, Done.stderr = "", "no module"
    with pytest.raises(RuntimeError, match="compiling for sm_90 failed: no module"):
        compile_check.compile_target("sm_90")
