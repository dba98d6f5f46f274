"""Say what each phase of a training step rests on."""

from moesim.costs.dense.prices import Op
from moesim.costs.grades import ASSUMED_GRADE, Grade
from moesim.costs.steps.mixers import DensePricing
from moesim.design.training.model import TrainedModel
from moesim.hardware import Cluster
from moesim.model.latent import LatentAttention
from moesim.model.spec import LayerKind
from moesim.simulation.steps.simulate import stage_of
from moesim.simulation.training.kinds import KindTimes
from moesim.simulation.trust import trust_of


def grades_of(
    trained: TrainedModel,
    cluster: Cluster,
    kinds: dict[LayerKind, KindTimes],
    pricing: DensePricing,
) -> dict[str, Grade]:
    """Return the grade of each phase; a phase without one is assumed.

    Backward passes have the grade of the forward's kernels, of which they are multiples.
    """
    gemm = pricing.prices.grade("gemm", trained.dense_format)
    latent = any(isinstance(kind.mixer, LatentAttention) for kind in kinds)
    attention: Op = "mla_prefill" if latent else "prefill"
    found = {
        "projections": gemm,
        "dense": gemm,
        "shared": gemm,
        "head": pricing.prices.grade("gemm", "bfloat16"),
        "attention": pricing.prices.grade(attention, "bfloat16"),
    }
    moe = trained.spec.moe
    if moe is not None:
        stage = stage_of(cluster, trained.layout.devices_per_exchange)
        name = next(times.kernels for kind, times in kinds.items() if kind.moe is not None)
        found |= trust_of(trained.candidate(moe), stage, name)[0]
    return found | dict.fromkeys(("norm", "embedding", "gate", "optimizer"), ASSUMED_GRADE)
