"""Search spaces of designs in studies with objectives and constraints.

No other package imports Optuna.
"""

from moesim.search.space import Space
from moesim.search.study import Study, run_study
from moesim.search.whole import ServingSpace, ServingWorkload

__all__ = ["ServingSpace", "ServingWorkload", "Space", "Study", "run_study"]
