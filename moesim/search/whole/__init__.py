"""Search whole models that are served: layouts, batches, formats, placements, schedules."""

from moesim.search.whole.problem import ServingProblem
from moesim.search.whole.space import ServingSpace
from moesim.search.whole.workload import ServingWorkload

__all__ = ["ServingProblem", "ServingSpace", "ServingWorkload"]
