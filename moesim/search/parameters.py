"""The parameters of a space of MoE layers."""

PARAMETERS = (
    "num_experts",
    "top_k",
    "expert_intermediate_size",
    "gate",
    "placement",
    "num_replicas",
    "parallelism",
    "precision",
)
#: parameters that exist only if a gate takes groups
GROUPS = ("num_expert_groups", "num_limited_groups")
#: parameters that points name only if the space lists more than one choice
OPTIONAL = (
    "exchange",
    "num_micro_batches",
    "kernels",
    "capacity_factor",
    "overflow",
    "pruned_fraction",
    "cold_fraction",
    "cold_format",
    "cold_rank_fraction",
    "resident_fraction",
    "prefetch_recall",
)
#: parameters by how slowly they change where all points are listed: first what routings depend on,
#: then placements, and the width last
SLOW_FIRST = (
    "gate",
    "num_expert_groups",
    "num_limited_groups",
    "num_experts",
    "top_k",
    "capacity_factor",
    "overflow",
    "pruned_fraction",
    "placement",
    "num_replicas",
    "parallelism",
    "exchange",
    "num_micro_batches",
    "cold_fraction",
    "cold_format",
    "cold_rank_fraction",
    "resident_fraction",
    "prefetch_recall",
    "precision",
    "expert_intermediate_size",
)
#: parameters whose choices decide which others apply
RULING = (
    "gate",
    "parallelism",
    "placement",
    "capacity_factor",
    "cold_fraction",
    "resident_fraction",
)
#: parameters that the loss of a trained model cannot depend on
NOT_OF_LOSS = frozenset(
    {
        "placement",
        "num_replicas",
        "parallelism",
        "exchange",
        "num_micro_batches",
        "kernels",
        "resident_fraction",
        "prefetch_recall",
    }
)
