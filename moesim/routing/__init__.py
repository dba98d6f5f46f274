"""Which experts tokens go to: distributions of load, gates' limits, and the resulting choices."""

from moesim.routing.distributions import RoutingSpec
from moesim.routing.sampler import Routing, route

__all__ = ["Routing", "RoutingSpec", "route"]
