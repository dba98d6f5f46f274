"""The kernels' tests run on a GPU where there is one and in Triton's interpreter elsewhere.

The interpreter's variable must be set before triton is first imported and stay set, for triton
reads it again at the first launch. Where torch or triton do not exist there is nothing to collect
here, and the summary says so.
"""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

collect_ignore_glob = []
_missing = ""


def _import_triton() -> None:
    import torch

    if not torch.cuda.is_available():
        if sys.modules.get("triton") and os.environ.get("TRITON_INTERPRET") != "1":
            raise pytest.UsageError(
                "tests/kernels: triton was imported before TRITON_INTERPRET=1 was set; set it for "
                "the whole run"
            )
        os.environ["TRITON_INTERPRET"] = "1"
    import triton.language  # noqa: F401


try:
    _import_triton()
except ImportError as error:
    _missing = str(error)
    os.environ.pop("TRITON_INTERPRET", None)
    collect_ignore_glob.append("test_*.py")
else:
    from moesim_kernels.ops import runtime

    collect_ignore_glob.append(
        "test_no_gpu.py" if runtime.triton_mode() == "gpu" else "test_gpu.py"
    )


def pytest_terminal_summary(terminalreporter):
    if _missing:
        terminalreporter.write_line(f"tests/kernels: not collected, {_missing}")


@pytest.fixture
def device():
    return runtime.device()


@pytest.fixture(scope="session")
def fake():
    """The module of the GPU that is made of two clocks."""
    spec = spec_from_file_location("fake_gpu", Path(__file__).with_name("fake_gpu.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
