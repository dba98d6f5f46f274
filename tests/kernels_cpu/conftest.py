"""These tests run torch. Where it is not installed there is nothing to collect here, and the
summary says so.
"""

from importlib.util import find_spec

import pytest

_missing = find_spec("torch") is None
collect_ignore_glob = ["test_*.py"] if _missing else []


def pytest_terminal_summary(terminalreporter):
    if _missing:
        terminalreporter.write_line("tests/kernels_cpu: not collected, No module named 'torch'")


@pytest.fixture(scope="session")
def cpu_profile_path(tmp_path_factory):
    """A profile of this CPU, measured as shortly as can be."""
    from moesim_kernels.profile.cpu_profile import write_profile

    path = tmp_path_factory.mktemp("profile") / "cpu-local.toml"
    write_profile(path, budget_s=1.0, command="a test")
    return path
