"""The request loop of an LLM server: TTFT, TPOT, queues and throughput, given how long steps
take.
"""

from moesim.serving.loop.config import (
    DisaggregatedConfig,
    KvTransfer,
    ServerConfig,
    Speculation,
)
from moesim.serving.loop.result import ServingResult
from moesim.serving.loop.session import serve, serve_disaggregated
from moesim.serving.loop.steps import StepTimes
from moesim.serving.loop.traffic import RequestTraffic

__all__ = [
    "DisaggregatedConfig",
    "KvTransfer",
    "RequestTraffic",
    "ServerConfig",
    "ServingResult",
    "Speculation",
    "StepTimes",
    "serve",
    "serve_disaggregated",
]
