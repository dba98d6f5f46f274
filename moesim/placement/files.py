"""Write the placements of all layers as files that serving engines load, and read them back.

``sglang`` is an object with one key, ``physical_to_logical_map`` (layers x slots), for
``--init-expert-location FILE``; its loader accepts no other key and requires a row for every layer
of the model, dense ones included. ``vllm`` is the list of lists alone, one row per MoE layer, the
layout of vLLM's ``physical_to_logical_map`` (its loader is proposed in vllm-project/vllm pull
request 49572, option ``initial_expert_map_path``). ``vllm_ascend`` lists experts device by device,
for ``expert_map_path`` of vllm-project/vllm-ascend. A file written by `moesim study export` may
also hold ``nearest_within``, the number of ranks within which tokens prefer replicas.

Slots are numbered rank by rank, with the same number on each rank, since the engines compute the
rank of a slot by division.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import ConfigError, UnknownNameError
from moesim.files.output import write_file
from moesim.files.texts import read_json
from moesim.limits import check_request
from moesim.placement.slots import Placement

FORMATS = ("sglang", "vllm", "vllm_ascend")
#: bytes and microseconds of a slot of a layer that is planned and written, as measured
_ENTRY_BYTES, _ENTRY_US = 45.0, 2.5


def slot_map(placement: Placement) -> list[int]:
    """Return the expert of each slot, rank by rank.

    Raises:
        ConfigError: Ranks hold different numbers of slots, which no engine can load.
    """
    held = placement.slots_of_rank()
    if held.min() != held.max():
        raise ConfigError(
            f"placement: engines load equally many slots on every rank, got {held.min()} to "
            f"{held.max()}"
        )
    return [int(e) for e in placement.expert_of_slot_P]


def map_text(layers: Sequence[Placement], layout: str, *, num_dense_layers: int = 0) -> str:
    """Return placements as the text of a file.

    Args:
        layers: One placement per MoE layer, with the same ranks, slots and experts.
        layout: A name in `FORMATS`.
        num_dense_layers: Number of layers before the first MoE layer; ``sglang`` needs rows for
            them but never reads them.

    Raises:
        UnknownNameError: The layout is unknown.
        ConfigError: There are no layers, or they differ in ranks, slots or experts.
    """
    if layout not in FORMATS:
        raise UnknownNameError("placement format", layout, FORMATS)
    sizes = {(p.num_ranks, p.num_slots, p.num_experts) for p in layers}
    if len(sizes) != 1:
        raise ConfigError(
            f"placement: expected layers of the same ranks, slots and experts, got {len(sizes)} "
            "kinds"
        )
    rows = [slot_map(p) for p in layers]
    ranks, slots, experts = sizes.pop()
    if layout == "sglang":
        dense = [[slot % experts for slot in range(slots)]] * num_dense_layers
        return json.dumps({"physical_to_logical_map": dense + rows})
    if layout == "vllm":
        return json.dumps(rows)
    per_rank = slots // ranks
    return json.dumps(
        {
            "moe_layer_count": len(rows),
            "layer_list": [
                {
                    "layer_id": layer,
                    "device_count": ranks,
                    "device_list": [
                        {
                            "device_id": rank,
                            "device_expert": row[rank * per_rank : (rank + 1) * per_rank],
                        }
                        for rank in range(ranks)
                    ],
                }
                for layer, row in enumerate(rows)
            ],
        }
    )


def check_map(num_layers: int, num_slots: int) -> None:
    """Refuse a map that is larger than memory, or whose plans nobody waits for.

    Args:
        num_layers: Rows of the map, those of layers without experts included.
        num_slots: Slots of a layer.

    Raises:
        CapacityError: It would be; the message has the figure and the limit.
    """
    entries = float(num_layers) * num_slots
    check_request(
        f"a map of {num_layers:,} layers of {num_slots:,} slots",
        memory_bytes=_ENTRY_BYTES * entries,
        work_us=_ENTRY_US * entries,
        advice="fewer replicas",
    )


def write_map(
    path: Path, layers: Sequence[Placement], layout: str, *, num_dense_layers: int = 0
) -> Path:
    """Write the text of `map_text` to a file atomically.

    Raises:
        ConfigError: The file cannot be written.
    """
    return write_text(path, map_text(layers, layout, num_dense_layers=num_dense_layers))


def write_text(path: Path, text: str) -> Path:
    """Write a text and a newline to a file atomically.

    Raises:
        ConfigError: The file cannot be written.
    """
    return write_file(path, text + "\n")


def read_map(path: Path, num_ranks: int, num_experts: int | None = None) -> list[Placement]:
    """Read placements from a file in any of the layouts.

    Args:
        path: Path of a JSON file.
        num_ranks: Number of ranks W, which must divide the slots.
        num_experts: Number of experts E; by default one more than the highest index that appears.

    Raises:
        ConfigError: The file is not in any of the layouts, the slots do not divide over the ranks,
            or an expert has no slot. The text names the file, the layer and the number.
    """
    data = read_json(path)
    rows = _rows(path, data, num_ranks)
    experts = num_experts if num_experts is not None else 1 + max(max(row) for row in rows)
    nearest = data.get("nearest_within", 0) if isinstance(data, dict) else 0
    if type(nearest) is not int or nearest < 0:
        raise ConfigError(f"{path}: nearest_within: expected an integer >= 0, got {nearest!r}")
    layers = []
    for number, row in enumerate(rows):
        if len(row) % num_ranks:
            raise ConfigError(
                f"{path}: layer {number}: expected slots divisible by {num_ranks} ranks, got "
                f"{len(row)}"
            )
        try:
            layers.append(
                Placement(
                    rank_of_slot_P=np.arange(len(row)) // (len(row) // num_ranks),
                    expert_of_slot_P=np.array(row),
                    num_ranks=num_ranks,
                    num_experts=experts,
                    nearest_within=nearest,
                )
            )
        except ConfigError as error:
            raise ConfigError(f"{path}: layer {number}: {error}") from None
    return layers


def _rows(path: Path, data: Any, num_ranks: int) -> list[list[int]]:
    """Return the experts of the slots of each layer."""
    if isinstance(data, dict) and "layer_list" in data:
        try:
            layers = [
                [d["device_expert"] for d in layer["device_list"]] for layer in data["layer_list"]
            ]
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: expected layer_list[].device_list[].device_expert, missing {error}"
            ) from None
        for number, devices in enumerate(layers):
            if len(devices) != num_ranks:
                raise ConfigError(
                    f"{path}: layer {number}: expected {num_ranks} devices, got {len(devices)}"
                )
        data = [[e for device in devices for e in device] for devices in layers]
    elif isinstance(data, dict):
        data = data.get("physical_to_logical_map")
    if isinstance(data, list) and data and all(isinstance(e, int) for e in data):
        data = [data]  # a single map for all layers
    if not (
        isinstance(data, list)
        and data
        and all(isinstance(row, list) and row for row in data)
        and all(type(e) is int for row in data for e in row)
    ):
        raise ConfigError(
            f"{path}: expected physical_to_logical_map, a list of lists of expert numbers, or "
            "layer_list"
        )
    return data
