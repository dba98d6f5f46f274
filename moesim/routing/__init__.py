"""Which experts tokens go to: distributions of load, traces, gates' limits and capacities,
and the resulting choices."""

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
