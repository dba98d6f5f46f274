"""Search: spaces, objectives, constraints, studies. The only place that knows Optuna."""

from moesim.search.space import Space
from moesim.search.study import Study, run_study

__all__ = ["Space", "Study", "run_study"]
