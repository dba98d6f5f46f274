"""moesim: simulate, search and check Mixture-of-Experts designs on hardware you may not have yet.

>>> from moesim import Candidate, MoELayer, Parallelism, Workload, load_cluster, simulate
>>> layer = MoELayer(hidden_size=4096, expert_intermediate_size=1536, num_experts=128, top_k=8)
>>> candidate = Candidate(layer=layer, parallelism=Parallelism(ep=8))
>>> result = simulate(candidate, load_cluster("hgx-h100-8"), Workload(num_tokens_per_device=1024))
>>> result.evidence
'simulated'
"""

from moesim.design.candidate import Candidate, Parallelism, Workload
from moesim.errors import MoesimError
from moesim.hardware import Cluster, Profile, load_cluster, load_profile
from moesim.model import DensePart, Gate, MoELayer, Precision
from moesim.model.presets import load_preset
from moesim.simulation.result import Result
from moesim.simulation.run import simulate
from moesim.version import VERSION

__version__ = VERSION

__all__ = [
    "Candidate",
    "Cluster",
    "DensePart",
    "Gate",
    "MoELayer",
    "MoesimError",
    "Parallelism",
    "Precision",
    "Profile",
    "Result",
    "Workload",
    "__version__",
    "load_cluster",
    "load_preset",
    "load_profile",
    "simulate",
]
