"""Places where points are evaluated: pools whose workers die, and a real Dask cluster."""

import os
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from moesim import Workload
from moesim.errors import ConfigError, MoesimError, UnreachableError
from moesim.processes import Workers
from moesim.search import executors
from moesim.search.evaluate import Problem


class Flaky(Executor):
    """Runs at once; breaks where it is told to."""

    def __init__(self, breaks):
        self.breaks, self.calls = breaks, 0

    def submit(self, function, /, *args):
        self.calls += 1
        future = Future()
        if self.calls in self.breaks:
            future.set_exception(RuntimeError("worker went away"))
        else:
            future.set_result(function(*args))
        return future


def test_a_lost_chunk_is_run_once_more(study, rows, whole, tmp_path):
    flaky = Flaky({2, 5})
    assert rows(study(tmp_path, num_trials=120, executor=flaky)) == rows(whole)
    assert flaky.calls == 120 // executors.CHUNK + 2


def test_a_chunk_lost_twice_runs_point_by_point(study, rows, whole, tmp_path):
    flaky = Flaky({1, 21})  # the first chunk of two batches of ten, and its second try
    assert rows(study(tmp_path, num_trials=120, executor=flaky)) == rows(whole)
    assert flaky.calls == 120 // executors.CHUNK + 1 + executors.CHUNK


def test_a_point_that_takes_its_worker_along_ends_the_search(study, rows, whole, tmp_path):
    flaky = Flaky({1, 21, 23})  # and then its second point, alone
    with pytest.raises(UnreachableError, match="finished trials are kept") as said:
        study(tmp_path, num_trials=120, executor=flaky)
    assert "num_experts" in str(said.value)
    assert said.value.exit_code == 3
    # a lost worker is no result: the next run tries again
    assert rows(study(tmp_path, num_trials=120)) == rows(whole)


@pytest.mark.parametrize("error", [MemoryError, OSError(5, "Input/output error")])
def test_what_says_something_about_the_machine_is_no_trial(study, rows, whole, tmp_path, error):
    evaluate, calls = Problem.evaluate, []

    def broken(self, params):
        calls.append(params)
        if len(calls) == 20:
            raise error
        return evaluate(self, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Problem, "evaluate", broken)
        with pytest.raises((MemoryError, OSError)):
            study(tmp_path, num_trials=120)
    assert rows(study(tmp_path, num_trials=120)) == rows(whole)


def test_an_evaluation_that_breaks_is_a_failed_trial(study, tmp_path, monkeypatch):
    evaluate = Problem.evaluate

    def broken(self, params):
        if params["num_experts"] == 64:
            raise ZeroDivisionError("an\nodd one")
        return evaluate(self, params)

    monkeypatch.setattr(Problem, "evaluate", broken)
    found = study(tmp_path, num_trials=30)
    failed = [t for t in found.trials if t.state == "failed"]
    assert {t.params["num_experts"] for t in failed} == {64}
    assert {t.evaluation.reason for t in failed} == {"ZeroDivisionError: an odd one"}
    assert all(t.row()["layer_time_us"] is None for t in failed)


def test_a_pool_whose_worker_dies_is_made_anew(study, rows, whole, tmp_path, monkeypatch):
    """kill -9 of a worker breaks a process pool: what it held is run again in a new one."""
    made = []

    class Pool(Workers):
        def __init__(self, number):
            super().__init__(number)
            self._dead = False
            made.append(self)

        def submit(self, function, /, *args):
            if len(made) == 1 and not self._dead:
                self._dead = True
                return super().submit(os._exit, 1)
            return super().submit(function, *args)

    monkeypatch.setattr(executors, "Workers", Pool)
    assert rows(study(tmp_path, num_trials=120, num_workers=2)) == rows(whole)
    assert len(made) == 2
    with pytest.raises(BrokenProcessPool):
        made[0].submit(os.getpid)


def _square(problem, piece):
    return piece**2


class Breaking(Flaky):
    """Its workers die."""

    def submit(self, function, /, *args):
        future = super().submit(function, *args)
        if future.exception():
            broken = Future()
            broken.set_exception(BrokenProcessPool("a worker died"))
            return broken
        return future


@pytest.mark.parametrize(("breaks", "lost"), [({2}, False), ({3, 4}, True)])
def test_a_piece_of_a_screening_is_run_once_more_too(make_space, hgx, breaks, lost):
    problem = Problem(
        space=make_space(),
        cluster=hgx,
        workload=Workload(num_tokens_per_device=8),
        objectives=["loss"],
    )
    pool = Breaking(breaks)
    with executors.evaluator(problem, pool, 1) as evaluates:
        if lost:
            with pytest.raises(MoesimError, match="a piece of work took its worker along"):
                list(evaluates.map(_square, [1, 2, 3]))
        else:
            assert list(evaluates.map(_square, [1, 2, 3])) == [1, 4, 9]
            assert pool.calls == 4


@pytest.mark.parametrize("address", ["scheduler:8786", "dask://", "tcp://localhost:1"])
def test_wrong_addresses(study, tmp_path, address):
    with pytest.raises(ConfigError, match="executor: expected dask://HOST:PORT"):
        study(tmp_path, executor=address)


def test_no_scheduler(study, tmp_path, monkeypatch, free_port):
    monkeypatch.setattr(executors, "_DASK_TIMEOUT_S", 1)
    with pytest.raises(
        UnreachableError, match=f"no Dask scheduler answers at tcp://127.0.0.1:{free_port}"
    ):
        study(tmp_path, executor=f"dask://127.0.0.1:{free_port}")


@pytest.mark.full
def test_two_dask_workers_find_what_the_local_pool_does(study, rows, whole, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address.replace("tcp://", "dask://")
        assert rows(study(tmp_path, num_trials=120, executor=address)) == rows(whole)


@pytest.mark.full
def test_a_killed_dask_worker_loses_nothing(study, rows, whole, tmp_path):
    import signal

    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address.replace("tcp://", "dask://")

        def kill(trial):
            if trial.number == 60:
                os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

        assert rows(study(tmp_path, num_trials=120, executor=address, on_trial=kill)) == rows(whole)
