"""moesim: simulate, search and check Mixture-of-Experts designs on hardware you may not have yet.

The names load their modules when they are first used, so that importing moesim costs nothing.

>>> from moesim import Candidate, MoELayer, Parallelism, Workload, load_cluster, simulate
>>> layer = MoELayer(hidden_size=4096, expert_intermediate_size=1536, num_experts=128, top_k=8)
>>> candidate = Candidate(layer=layer, parallelism=Parallelism(ep=8))
>>> result = simulate(candidate, load_cluster("hgx-h100-8"), Workload(num_tokens_per_device=1024))
>>> result.evidence
'simulated'
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moesim.design.candidate import Candidate, Parallelism, Workload
    from moesim.errors import MoesimError
    from moesim.hardware import Cluster, Profile, load_cluster, load_profile
    from moesim.model import DensePart, Gate, MoELayer, Precision
    from moesim.model.presets import load_preset
    from moesim.simulation.result import Result
    from moesim.simulation.run import simulate

    __version__: str

_MODULE_OF = {
    "Candidate": "design.candidate",
    "Cluster": "hardware",
    "DensePart": "model",
    "Gate": "model",
    "MoELayer": "model",
    "MoesimError": "errors",
    "Parallelism": "design.candidate",
    "Precision": "model",
    "Profile": "hardware",
    "Result": "simulation.result",
    "Workload": "design.candidate",
    "load_cluster": "hardware",
    "load_preset": "model.presets",
    "load_profile": "hardware",
    "simulate": "simulation.run",
}

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


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("moesim.version").VERSION
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
