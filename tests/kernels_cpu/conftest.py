"""These tests run torch. Where it is not installed there is nothing to collect here, and the summary says so."""

from importlib.util import find_spec

_missing = find_spec("torch") is None
collect_ignore_glob = ["test_*.py"] if _missing else []


def pytest_terminal_summary(terminalreporter):
    if _missing:
        terminalreporter.write_line("tests/kernels_cpu: not collected, No module named 'torch'")
