"""The steady state of a closed loop over two pools, one that computes prompts and one that decodes.

A client's request is taken in, computed with others that came meanwhile in one step of prompts or
more, travels, waits for the decode step under way and decodes. By Little's law the requests in each
of these stages are throughput x time of the stage; throughput is the one at which they add up to
the clients, unless a pool or the front end is full before: what is left of the clients then waits
for it. While some prompts are computed others come, and are computed together in the next step;
they wait for half of the step under way, if there is one. So they gather until they fill steps.
"""

from dataclasses import dataclass
from math import ceil

from moesim.errors import ConfigError
from moesim.serving.loop import DisaggregatedConfig, RequestTraffic, ServerConfig, StepTimes
from moesim.serving.loop.lengths import Lengths
from moesim.serving.room import Room, room_of
from moesim.serving.steady_result import SteadyResult

#: relative error of the number of sequences
_TOLERANCE = 2e-3
#: rounds in which the prompts of a step are found
_ROUNDS = 6


def steady_split(
    prefill: StepTimes, decode: StepTimes, config: DisaggregatedConfig, traffic: RequestTraffic
) -> SteadyResult:
    """Return the steady state of clients whose requests one pool computes and another decodes.

    Args:
        prefill: How long a step takes where prompts are computed.
        decode: How long a step takes where requests decode.
        config: Both pools, and the transfer.
        traffic: The requests, of a closed loop, without a file, with answers of several tokens.

    Raises:
        ConfigError: The traffic is another, or a request needs more KV blocks than a rank has.
    """
    room = room_of(config.decode, traffic)
    prompts = _Prompts.of(prefill, config.prefill, traffic)
    answer = Lengths.parse(traffic.osl, "osl")
    if answer.mean <= 1.0:
        raise ConfigError("osl: expected answers of several tokens to decode, got 1")
    answers = _Answers(
        times=decode, config=config.decode, isl=prompts.isl, osl=answer.mean, room=room
    )
    clients = traffic.concurrency or 0
    travel_s = config.transfer_s(round(prompts.isl))

    def in_flight(batch: float) -> float:
        rate, step_s = answers.rate(batch), answers.step_s(batch)
        before_s = sum(prompts.times_s(rate)) + travel_s + step_s / 2.0
        return rate * (before_s + answers.seconds(batch))

    def admits(batch: float) -> bool:
        return answers.rate(batch) <= prompts.most and in_flight(batch) <= clients

    low, high = 0.0, float(room.batch)
    if admits(high):
        low = high
    while high - low > _TOLERANCE * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if admits(middle) else (low, middle)
    batch = 0.5 * (low + high)
    rate, decoding_s = answers.rate(batch), answers.seconds(batch)
    queue_s, prompt_s = prompts.times_s(rate)
    least_s = queue_s + prompt_s + travel_s + answers.step_s(batch) / 2.0
    # whoever finds a pool full waits beside
    waiting_s = max(clients / rate - decoding_s - least_s, 0.0)
    return SteadyResult(
        concurrency=clients,
        isl=prompts.isl,
        osl=answers.osl,
        batch=room.batch,
        mean_batch=batch,
        cycle_s=clients / rate,
        ttft_s=least_s + waiting_s,
        queue_s=queue_s + waiting_s,
        tpot_s=decoding_s / (answers.osl - 1.0),
        spread_s=None,
        requests_per_s=rate,
        kv_fraction=min(batch * room.most_blocks / config.decode.kv_blocks, 1.0),
        kv_blocks=config.decode.kv_blocks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompts:
    """The pool that computes prompts."""

    times: StepTimes
    config: ServerConfig
    isl: float
    together: float

    @classmethod
    def of(cls, times: StepTimes, config: ServerConfig, traffic: RequestTraffic) -> "_Prompts":
        isl = Lengths.parse(traffic.isl, "isl").mean
        clients = ceil((traffic.concurrency or 0) / (config.replicas * config.dp))
        held = config.kv_blocks / ceil(isl / config.block_size)
        if held < 1.0:
            raise ConfigError(
                f"server.kv_blocks: expected at least {ceil(isl / config.block_size)} blocks for "
                f"a prompt, got {config.kv_blocks}"
            )
        return cls(
            times=times,
            config=config,
            isl=isl,
            together=max(min(config.chunk / isl, clients, config.max_seqs, held), 1.0),
        )

    @property
    def ranks(self) -> int:
        """The number of ranks that compute prompts."""
        return self.config.replicas * self.config.dp

    @property
    def most(self) -> float:
        """The most requests per second of all ranks and of the front ends."""
        most = self.ranks * self.together / self.batch_s(self.together)
        intake_s = self.config.intake_s
        return min(most, self.config.replicas / intake_s) if intake_s else most

    def batch_s(self, number: float) -> float:
        """Return the seconds in which so many prompts are computed together."""
        tokens, chunk = number * self.isl, float(self.config.chunk)
        full = int(tokens // chunk)
        rest = tokens - full * chunk
        found = full * self._step_s(chunk) if full else 0.0
        return found + (self._step_s(rest) if rest >= 1.0 else 0.0)

    def times_s(self, rate: float) -> tuple[float, float]:
        """Return the seconds from sending to the first step, and from there to the cache, at so
        many requests per second of all ranks.
        """
        away_s = self.config.receive_s + self.config.intake_s
        each, number = rate / self.ranks, 1.0
        for _ in range(_ROUNDS):
            # those that come while others are computed are computed together
            number = min(max(each * self.batch_s(number), 1.0), self.together)
        batch_s = self.batch_s(number)
        busy = min(each * batch_s / number, 1.0)
        return away_s + busy * batch_s / 2.0, batch_s

    def _step_s(self, tokens: float) -> float:
        return self.times.step_s(
            prefill_tokens=round(tokens),
            prefill_context=(self.isl - 1.0) / 2.0,
            sequences=0,
            context=0.0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """The pool that decodes."""

    times: StepTimes
    config: ServerConfig
    isl: float
    osl: float
    room: Room

    def step_s(self, batch: float) -> float:
        """Return the seconds of a decode step of so many sequences of each rank."""
        return self.times.step_s(
            prefill_tokens=0,
            prefill_context=0.0,
            sequences=max(round(batch), 1),
            context=self.isl + (self.osl + 1.0) / 2.0,
            tokens_per_sequence=1 + self.config.draft_length,
        )

    def seconds(self, batch: float) -> float:
        """Return the seconds from the first to the last token."""
        return (self.osl - 1.0) / self.config.tokens_per_step * self.step_s(batch)

    def rate(self, batch: float) -> float:
        """Return the requests per second of all ranks that end with so many sequences of each."""
        return self.config.replicas * self.config.dp * batch / self.seconds(batch)


__all__ = ["steady_split"]
