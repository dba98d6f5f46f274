"""Search spaces of designs in studies with objectives and constraints.

No other package imports Optuna.
"""

from moesim.search.space import Space
from moesim.search.study import Study, run_study

__all__ = ["Space", "Study", "run_study"]
