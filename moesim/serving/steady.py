"""The steady state of a closed loop in closed form: what the request loop comes to, without it.

All ranks are alike: each has as many clients as the fullest, and admits as many of their requests
as sequences and KV blocks allow. A request is away until the front end has taken it in, waits for
the step under way, is computed with others in one or more steps of prompts, and decodes. How much
of all that other requests' prompts add follows from the scheduler's rules (`moesim.serving.loop`):

- *Answers of equal length*: requests that begin together end together, so that the prompts of a
  rank come in a burst, in steps of ``chunk`` tokens, and all ranks have theirs at the same time.
  Where steps are not mixed, decoding waits for the burst; where they are, prompts that were
  computed in different steps also end in different steps, and the burst goes beside the decoding
  of the others.
- *Other answers*: requests end one by one, and so come the prompts. In a decode step each of m
  sequences ends with probability 1 / D, where D is the number of its decode steps; the share of
  steps with a prompt is that of Poisson arrivals. A server's ranks meet in every step, which lasts
  as long as a step of prompts if any of them has one.

- *A front end that takes in one request after another* sets prompts apart, too, and lets no more
  requests run than come to its rate; where that is what limits, TPOT is up to 15 % low.

Clients that find no room wait; Little's law, clients = throughput x latency, gives their TTFT.
Where KV blocks are what limits, the loop admits on the prompt alone and preempts; here as many
requests are admitted as have room on average, and nothing is computed twice.
"""

from dataclasses import dataclass, replace
from math import ceil, exp

from moesim.serving.loop import RequestTraffic, ServerConfig, StepTimes
from moesim.serving.loop.lengths import Lengths
from moesim.serving.room import room_of
from moesim.serving.steady_result import SteadyResult


@dataclass(frozen=True, slots=True)
class _Cycle:
    """What happens to a request from its admission to the next: seconds.

    Attributes:
        all_s: Until the next.
        first_s: Until its first token, on average.
        queue_s: Until the first step with its prompt.
        last_s: Until the first token of the last of a burst; None without a burst.
    """

    all_s: float
    first_s: float
    queue_s: float
    last_s: float | None


def steady_state(times: StepTimes, config: ServerConfig, traffic: RequestTraffic) -> SteadyResult:
    """Return the steady state of a closed loop of clients.

    Args:
        times: How long a step takes.
        config: The servers.
        traffic: The requests, of a closed loop and without a file.

    Raises:
        ConfigError: The traffic is no closed loop, or a request needs more KV blocks than a rank
            has.
    """
    rank = _Rank.of(times, config, traffic)
    clients = traffic.concurrency or 0
    ranks = config.replicas * config.dp
    rank = rank.behind_front_end(clients / ranks)
    batch, cycle = rank.batch, rank.cycle()
    rate = rank.rate(clients / ranks) * ranks
    decoding_s = cycle.all_s - cycle.first_s
    latency_s = clients / rate
    waiting_s = max(latency_s - cycle.all_s, 0.0)
    return SteadyResult(
        concurrency=clients,
        isl=rank.isl,
        osl=rank.osl,
        batch=batch,
        mean_batch=rate / ranks * decoding_s,
        cycle_s=cycle.all_s,
        ttft_s=waiting_s + cycle.first_s,
        queue_s=waiting_s + cycle.queue_s,
        tpot_s=decoding_s / (rank.osl - 1.0) if rank.osl > 1.0 else None,
        spread_s=None if cycle.last_s is None else max(cycle.last_s - cycle.first_s, 0.0),
        requests_per_s=rate,
        kv_fraction=min(batch * rank.most_blocks / config.kv_blocks, 1.0),
        kv_blocks=config.kv_blocks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rank:
    """An attention rank, with the clients of the fullest."""

    times: StepTimes
    config: ServerConfig
    isl: float
    osl: float
    equal: bool
    clients: int
    batch: float
    most_blocks: int

    @classmethod
    def of(cls, times: StepTimes, config: ServerConfig, traffic: RequestTraffic) -> "_Rank":
        prompt, answer = Lengths.parse(traffic.isl, "isl"), Lengths.parse(traffic.osl, "osl")
        room = room_of(config, traffic)
        return cls(
            times=times,
            config=config,
            isl=prompt.mean,
            osl=answer.mean,
            equal=answer.low == answer.high,
            clients=room.clients,
            batch=room.batch,
            most_blocks=room.most_blocks,
        )

    @property
    def decode_steps(self) -> float:
        """The decode steps of a request."""
        steps = (self.osl - 1.0) / self.config.tokens_per_step
        return float(ceil(steps - 1e-9)) if self.equal else steps

    @property
    def away_s(self) -> float:
        """The seconds in which a place is empty after a request, if none waits for it."""
        away_s = self.config.receive_s + self.config.intake_s
        return away_s if self.clients <= self.batch else 0.0

    def rate(self, clients: float) -> float:
        """Return the requests per second of a rank with so many clients: those with fewer than
        others end as many in the same time, each for itself.
        """
        return min(clients, self.batch) / self.cycle().all_s

    def behind_front_end(self, clients: float) -> "_Rank":
        """Return the rank with as many requests at once as the front end of its copy lets in."""
        intake_s = self.config.intake_s
        if not intake_s or self.rate(clients) * intake_s * self.config.dp <= 1.0:
            return self
        # fewer at once come to a smaller rate: halve until it is the front end's
        low, high = 0.0, float(self.batch)
        while high - low > 0.01 * high:
            middle = 0.5 * (low + high)
            fewer = replace(self, batch=middle)
            if fewer.rate(clients) * intake_s * self.config.dp > 1.0:
                high = middle
            else:
                low = middle
        return replace(self, batch=high)

    def cycle(self) -> _Cycle:
        """Return what a request and the next in its place take."""
        if not self.equal or self.config.intake_s:
            return self._one_by_one()
        return self._beside() if self.config.mixed else self._in_turn()

    def step_s(self, prompt_tokens: float, sequences: float, share: float = 1.0) -> float:
        """Return the seconds of a step in the middle of the answers, with prompts on a share of the
        ranks.
        """
        decoding = round(sequences)
        tokens = round(prompt_tokens)
        times = self.times if share >= 1.0 else self.times.among(share * prompt_tokens)
        return times.step_s(
            prefill_tokens=tokens,
            prefill_context=(self.isl - 1.0) / 2.0 if tokens else 0.0,
            sequences=decoding,
            context=self.isl + (self.osl + 1.0) / 2.0 if decoding else 0.0,
            tokens_per_sequence=1 + self.config.draft_length,
        )

    def _burst(self) -> tuple[int, float, float]:
        """Return the steps that the prompts of all requests take, their seconds, and the mean time
        at which a prompt is ready.
        """
        chunk, tokens = float(self.config.chunk), self.batch * self.isl
        full = int(tokens // chunk)
        full_s = self.step_s(chunk, 0.0) if full else 0.0
        rest = tokens - full * chunk
        rest_s = self.step_s(rest, 0.0) if rest >= 1.0 else 0.0
        all_s = full * full_s + rest_s
        # the prompts of a step are ready at its end
        done = in_order = 0.0
        for step in range(full):
            ready = ((step + 1) * chunk) // self.isl
            in_order += (ready - done) * (step + 1) * full_s
            done = ready
        in_order += (self.batch - done) * all_s
        return full + (rest >= 1.0), all_s, in_order / self.batch

    def _in_turn(self) -> _Cycle:
        """Return the cycle of equal requests whose decoding waits for prompts."""
        _, prompts_s, ready_s = self._burst()
        decoding_s = self.decode_steps * self.step_s(0.0, self.batch)
        away_s, last_s = self.away_s, self.away_s + prompts_s
        return _Cycle(last_s + decoding_s, away_s + ready_s, away_s, last_s)

    def _beside(self) -> _Cycle:
        """Return the cycle of equal requests whose prompts go beside decoding."""
        batch, steps, away_s = self.batch, self.decode_steps, self.away_s
        tokens = batch * self.isl
        prompts = ceil(tokens / self.config.chunk - 1e-9)
        if prompts == 1:
            prompt_s = self.step_s(tokens, 0.0)
            decoding_s = steps * self.step_s(0.0, batch)
            first_s = away_s + prompt_s
            return _Cycle(first_s + decoding_s, first_s, away_s, first_s)
        # a prompt longer than a chunk takes several steps of its own
        own = max(ceil(self.isl / self.config.chunk), 1)
        plain_s = self.step_s(0.0, batch)
        # steps that run while the first requests that end are away
        away = ceil(away_s / plain_s - 1e-9)
        if prompts >= steps + own + away:
            # prompts never stop: answers end before the last of them are begun
            mixed_s = self.step_s(tokens / prompts, batch * steps / prompts)
            all_s = prompts * mixed_s
            first_s = all_s - steps * mixed_s
            return _Cycle(all_s, first_s, first_s - own * mixed_s, first_s)
        mixed_s = self.step_s(tokens / prompts, batch - batch / prompts)
        all_s = prompts * mixed_s + (steps + own + away - prompts) * plain_s
        # the requests of the j-th step of prompts ended in j-th place: they see `away` more steps,
        # of which those before the first step of prompts are plain
        early = min(away, prompts)
        plain = sum(away - j for j in range(early)) / prompts
        queue_s = plain * plain_s + (away - plain) * mixed_s
        last_s = (away + own) * mixed_s
        return _Cycle(all_s, queue_s + own * mixed_s, queue_s, last_s)

    def _one_by_one(self) -> _Cycle:
        """Return the cycle of requests that end one by one."""
        batch, steps, dp = self.batch, max(self.decode_steps, 1.0), self.config.dp
        ending = batch / steps
        #: share of the decode steps that end at least one answer, and prompts after such a step
        ends = 1.0 - exp(-ending)
        together = ending / ends * self.isl
        chunks = max(together / self.config.chunk, 1.0)
        mixed = self.config.mixed
        plain_s = self.step_s(0.0, batch)
        # steps of this rank for each decode step, and the share of them with prompts of any rank
        per_step = 1.0 if mixed else 1.0 + ends * chunks
        own = min(ends * chunks / per_step, 1.0)
        some = 1.0 - (1.0 - own) ** dp
        # those that have prompts in such a step
        prompt_s = self.step_s(together / chunks, batch if mixed else 0.0, own / some)
        mean_s = some * prompt_s + (1.0 - some) * plain_s
        if mixed:
            # prompts of more tokens than steps can take hold up the next
            mean_s *= max(ends * chunks, 1.0)
        queue_s = self.away_s + (mean_s / 2.0 if self.away_s else 0.0)
        own_s = prompt_s * chunks
        decoding_s = steps * per_step * mean_s
        return _Cycle(queue_s + own_s + decoding_s, queue_s + own_s, queue_s, None)


__all__ = ["steady_state"]
