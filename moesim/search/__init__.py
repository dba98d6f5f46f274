"""Search spaces of designs in studies with objectives and constraints.

No other package imports Optuna.
"""

from moesim.search.serving_space import ServingSpace
from moesim.search.serving_workload import ServingWorkload
from moesim.search.space import Space
from moesim.search.study import Study, run_study
from moesim.search.training_space import TrainingSpace
from moesim.search.training_workload import TrainingWorkload

__all__ = [
    "ServingSpace",
    "ServingWorkload",
    "Space",
    "Study",
    "TrainingSpace",
    "TrainingWorkload",
    "run_study",
]
