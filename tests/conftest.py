"""What most tests need: a home of their own, one node of H100, and small layers."""

import pytest
from hypothesis import settings

from moesim import Candidate, MoELayer, Parallelism, load_cluster

# the same examples every time, and no time limit: machines differ
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_terminal_summary(terminalreporter):
    """Print the seeds of what was drawn, wherever the tests ran."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    told = [f"{k} {v}" for one in reports for k, v in one.user_properties if k.endswith(" seeds")]
    if told:
        terminalreporter.line(", ".join(sorted(set(told))))


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory):
    """Files of the person who runs the tests change nothing, nor does the size of a terminal."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COLUMNS", "LINES"):  # pytest-xdist sets them in its workers
            patch.delenv(name, raising=False)
        patch.delenv("MOESIM_PROFILES", raising=False)
        patch.setenv("MOESIM_HOME", str(tmp_path_factory.mktemp("moesim-home")))
        yield


@pytest.fixture(scope="session")
def hgx(_own_home):
    return load_cluster("hgx-h100-8")


@pytest.fixture(scope="session")
def h100(hgx):
    return hgx.profile


@pytest.fixture(scope="session")
def make_layer():
    """A small layer; anything can be said otherwise."""

    def make(**sizes):
        return MoELayer(
            **{"hidden_size": 1024, "expert_intermediate_size": 512, "num_experts": 16, "top_k": 2}
            | sizes
        )

    return make


@pytest.fixture(scope="session")
def make_candidate(make_layer):
    """A small layer on ``ep`` x ``tp`` devices."""

    def make(*, ep=8, tp=1, placement="contiguous", num_replicas=0, dense_part=None, **sizes):
        return Candidate(
            layer=make_layer(**sizes),
            parallelism=Parallelism(ep=ep, tp=tp),
            placement=placement,
            num_replicas=num_replicas,
            dense_part=dense_part,
        )

    return make
