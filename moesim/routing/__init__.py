"""Choose the experts of tokens: distributions of load, traces, the limits and capacities of gates,
and the resulting choices.
"""

from moesim.routing.distributions import RoutingSpec
from moesim.routing.sampler import Routing, route, sample_counts
from moesim.routing.sequence import route_layers, route_steps
from moesim.routing.trace import Trace, open_trace

__all__ = [
    "Routing",
    "RoutingSpec",
    "Trace",
    "open_trace",
    "route",
    "route_layers",
    "route_steps",
    "sample_counts",
]
