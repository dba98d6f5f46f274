"""How many requests of a closed loop a rank's KV blocks and sequences have room for."""

from dataclasses import dataclass
from math import ceil

from moesim.errors import ConfigError
from moesim.serving.loop import RequestTraffic, ServerConfig
from moesim.serving.loop.lengths import Lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The requests of the rank that has most clients.

    Attributes:
        clients: Number of its clients.
        batch: Requests that it admits at once.
        most_blocks: KV blocks of a request that is about to end.
    """

    clients: int
    batch: float
    most_blocks: int


def room_of(config: ServerConfig, traffic: RequestTraffic) -> Room:
    """Return how many requests a rank of some servers admits at once.

    Args:
        config: The servers, which share the clients.
        traffic: The requests, of a closed loop and without a file.

    Raises:
        ConfigError: The traffic is no closed loop, or a request needs more KV blocks than a rank
            has.
    """
    if traffic.concurrency is None or traffic.file is not None:
        raise ConfigError(
            "traffic: expected a closed loop (concurrency) of drawn lengths, got "
            + ("a file of requests" if traffic.file is not None else "open arrivals")
        )
    prompt, answer = Lengths.parse(traffic.isl, "isl"), Lengths.parse(traffic.osl, "osl")
    isl, osl, size = prompt.mean, answer.mean, config.block_size
    last = config.draft_length - 1
    longest = ceil((prompt.high + answer.high + last) / size)
    if longest > config.kv_blocks:
        raise ConfigError(
            f"server.kv_blocks: expected at least {longest} blocks of {size} tokens for a "
            f"request (isl {prompt.high}, osl {answer.high}), got {config.kv_blocks}: "
            f"{longest - config.kv_blocks} too few"
        )
    clients = ceil(traffic.concurrency / (config.replicas * config.dp))
    most = ceil((isl + osl + last) / size)
    batch: float = min(clients, config.max_seqs)
    if batch * most > config.kv_blocks:
        # requests that do not all fit are of all ages
        batch = min(batch, max(config.kv_blocks / ceil((isl + osl / 2.0) / size), 1.0))
    return Room(clients=clients, batch=batch, most_blocks=most)


__all__ = ["Room", "room_of"]
