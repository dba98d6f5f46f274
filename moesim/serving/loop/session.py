"""Serve requests: one pool of servers, or one that prefills and one that decodes."""

import heapq
from collections.abc import Callable, Generator

import numpy as np
import simpy

from moesim.limits import check_request
from moesim.serving.loop.config import DisaggregatedConfig, ServerConfig
from moesim.serving.loop.gaps import Gaps
from moesim.serving.loop.job import Job
from moesim.serving.loop.records import records_of
from moesim.serving.loop.replica import Pool
from moesim.serving.loop.result import ServingResult, Window
from moesim.serving.loop.steps import StepTimes
from moesim.serving.loop.traffic import REQUEST_BYTES, REQUEST_US, RequestTraffic
from moesim.serving.loop.watching import StepWatch

#: microseconds of a part of a prompt and of a token of an answer, as measured
_CHUNK_US, _TOKEN_US = 25.0, 0.1


def serve(
    times: StepTimes,
    config: ServerConfig,
    traffic: RequestTraffic,
    *,
    watch: StepWatch | None = None,
) -> ServingResult:
    """Simulate a pool of servers that prefill and decode.

    Args:
        times: How long a step takes.
        config: The servers.
        traffic: The requests.
        watch: Takes the steps that have run; None for nobody.

    Returns:
        The same result for the same arguments: requests at one time are served in order of their
        numbers.

    Raises:
        ConfigError: The requests cannot be read, one can never be served, or ``times`` returns no
            time.
        CapacityError: The requests would take too long, or more memory than there is.
    """
    env, gaps = simpy.Environment(), Gaps()
    pool = Pool(env, times, config, gaps, watch=watch)
    clients = _Clients(env, traffic, config)
    pool.check(clients.jobs)
    pool.start(clients.ended)
    clients.start(pool.submit)
    return _result(env, clients, pool, gaps)


def serve_disaggregated(
    prefill_times: StepTimes,
    decode_times: StepTimes,
    config: DisaggregatedConfig,
    traffic: RequestTraffic,
    *,
    watch: StepWatch | None = None,
) -> ServingResult:
    """Simulate a pool of servers that prefill and one that decodes.

    A prompt's KV cache is transferred when all of it has been computed, and keeps its blocks on the
    prefill server until it is there. The decode server admits the request when it has blocks; then
    its first token reaches the client, so that TTFT holds prefill, transfer and both queues. An
    answer of one token comes from the prefill server.

    Args:
        prefill_times: How long a step takes on a prefill server.
        decode_times: How long a step takes on a decode server.
        config: Both pools, and the transfer.
        traffic: The requests.
        watch: Takes the steps that have run; None for nobody.

    Raises:
        ConfigError: The requests cannot be read, one can never be served, or a model of steps
            returns no time.
    """
    env, gaps = simpy.Environment(), Gaps()
    prefill = Pool(
        env, prefill_times, config.prefill, gaps, prefill_only=True, name="prefill", watch=watch
    )
    decode = Pool(env, decode_times, config.decode, gaps, name="decode", watch=watch)
    clients = _Clients(env, traffic, config.prefill)
    prefill.check(clients.jobs)
    decode.check(clients.jobs)

    def transfer(job: Job) -> Generator[simpy.Event, None, None]:
        yield env.timeout(config.transfer_s(job.isl))
        prefill.release(job)
        job.cached = True
        decode.submit(job)

    def prefilled(job: Job) -> None:
        if job.osl > 1:
            env.process(transfer(job))
            return
        prefill.release(job)
        job.first_s = job.end_s = env.now
        clients.ended(job)

    prefill.start(prefilled)
    decode.start(clients.ended)
    clients.start(prefill.submit)
    return _result(env, clients, decode, gaps, prefill=prefill)


class _Clients:
    """Who sends requests: as many clients as a closed loop has, or the arrivals of open traffic.

    Attributes:
        jobs: All requests, in order of sending.
    """

    def __init__(
        self, env: simpy.Environment, traffic: RequestTraffic, config: ServerConfig
    ) -> None:
        self.concurrency = traffic.concurrency
        self._receive_s, self._intake_s = config.receive_s, config.intake_s
        #: when the front end of each copy is done with the requests before
        self._free_s = [0.0] * config.replicas
        requests = traffic.requests()
        count = len(requests.isl_N)
        check_request(
            f"{count:,} requests",
            memory_bytes=REQUEST_BYTES * count,
            work_us=REQUEST_US * count
            + _CHUNK_US * float(np.ceil(requests.isl_N / config.chunk).sum())
            + _TOKEN_US * float(requests.osl_N.sum(dtype=np.float64)),
            advice="fewer requests, shorter prompts and answers or a larger chunk",
        )
        self._arrival_s = None if requests.arrival_s_N is None else requests.arrival_s_N.tolist()
        lengths = zip(requests.isl_N.tolist(), requests.osl_N.tolist(), strict=True)
        self.jobs = [Job(number, isl, osl, 0.0) for number, (isl, osl) in enumerate(lengths)]
        self._env = env
        self._next = 0
        self._submit: Callable[[Job], None] | None = None

    def start(self, submit: Callable[[Job], None]) -> None:
        """Send the first requests, or begin to wait for the first arrival.

        Args:
            submit: Takes each request that is sent.
        """
        self._submit = submit
        if self._arrival_s is not None:
            self._env.process(self._arrive(self._arrival_s))
            return
        for _ in range(self.concurrency or 0):
            self._send()

    def ended(self, job: Job) -> None:
        """Take a finished answer; its client sends the next request."""
        if self._arrival_s is None:
            self._send()

    def _arrive(self, arrival_s: list[float]) -> Generator[simpy.Event, None, None]:
        for time_s in arrival_s:
            yield self._env.timeout(max(time_s - self._env.now, 0.0))
            self._send()

    def _send(self) -> None:
        if self._next == len(self.jobs) or self._submit is None:
            return
        job = self.jobs[self._next]
        self._next += 1
        job.sent_s = job.last_s = float(self._env.now)
        if self._receive_s or self._intake_s:
            first = heapq.heappop(self._free_s)
            free_s = max(first, job.sent_s) + self._intake_s
            heapq.heappush(self._free_s, free_s)
            self._env.process(self._receive(job, free_s - job.sent_s + self._receive_s))
        else:
            self._submit(job)

    def _receive(self, job: Job, delay_s: float) -> Generator[simpy.Event, None, None]:
        yield self._env.timeout(delay_s)
        assert self._submit is not None, "requests are sent to somebody"
        self._submit(job)


def _result(
    env: simpy.Environment,
    clients: _Clients,
    pool: Pool,
    gaps: Gaps,
    *,
    prefill: Pool | None = None,
) -> ServingResult:
    """Run the simulation to its end and collect what it gave."""
    env.run()
    requests = records_of(clients.jobs)
    return ServingResult(
        requests=requests,
        gaps=gaps,
        window=Window.of(requests, clients.concurrency),
        concurrency=clients.concurrency,
        ranks=pool.config.replicas * pool.config.dp,
        steps=pool.steps + (prefill.steps if prefill else 0),
        peak_blocks=pool.peak_blocks,
        kv_blocks=pool.config.kv_blocks,
        prefill_peak_blocks=prefill.peak_blocks if prefill else None,
    )
