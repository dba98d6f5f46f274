"""The kernels' tests run on a GPU where there is one and in Triton's interpreter elsewhere.

Triton decides when it is imported, so the variable is set around that import only: subprocesses that tests start (the
compiler) must not inherit it. Where torch or triton do not exist there is nothing to collect here, and the summary says
so.
"""

import os
import sys

import pytest

collect_ignore_glob = []
_missing = ""


def _import_triton() -> None:
    import torch

    if torch.cuda.is_available():
        import triton.language
        return
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError("tests/kernels: triton was imported before TRITON_INTERPRET=1 was set; set it for the "
                                "whole run")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton.language  # noqa: F401
    finally:
        del os.environ["TRITON_INTERPRET"]
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


try:
    _import_triton()
except ImportError as error:
    _missing = str(error)
    collect_ignore_glob.append("test_*.py")
else:
    from moesim_kernels import runtime

    if runtime.triton_mode() != "gpu":
        collect_ignore_glob.append("test_gpu.py")


def pytest_terminal_summary(terminalreporter):
    if _missing:
        terminalreporter.write_line(f"tests/kernels: not collected, {_missing}")


@pytest.fixture
def device():
    return runtime.device()
