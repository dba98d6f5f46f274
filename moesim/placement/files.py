"""Placements of all layers as files that serving engines load, and back.

``sglang``: an object with one key, ``physical_to_logical_map`` (layers x slots), for
``--init-expert-location FILE``; its loader takes no other key and wants a row for every layer of
the model, dense ones included. ``vllm``: the list of lists alone, one row per MoE layer, the layout
of vLLM's ``physical_to_logical_map`` (its loader is proposed in vllm-project/vllm pull request
49572, option ``initial_expert_map_path``). ``vllm_ascend``: experts device by device, for
vllm-project/vllm-ascend's ``expert_map_path``. What `moesim study export` writes may also hold
``nearest_within``, ranks inside which tokens prefer replicas.

Slots are numbered rank by rank, equally many each: the engines compute a slot's rank by division.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import ConfigError, UnknownNameError
from moesim.files import toml
from moesim.placement.slots import Placement

FORMATS = ("sglang", "vllm", "vllm_ascend")


def slot_map(placement: Placement) -> list[int]:
    """Expert of each slot, rank by rank.

    Raises:
        ConfigError: Ranks hold unequally many slots, which no engine loads.
    """
    held = placement.slots_of_rank()
    if held.min() != held.max():
        raise ConfigError(
            f"placement: engines load equally many slots on every rank, got {held.min()} to "
            f"{held.max()}"
        )
    return [int(e) for e in placement.expert_of_slot_P]


def map_text(layers: Sequence[Placement], layout: str, *, num_dense_layers: int = 0) -> str:
    """Placements as the text of a file.

    Args:
        layers: One placement per MoE layer, of the same ranks, slots and experts.
        layout: One of `FORMATS`.
        num_dense_layers: ``sglang``: layers before the first MoE layer; their rows are never looked
            at.

    Raises:
        UnknownNameError: Another layout.
        ConfigError: No layers, or layers that differ in ranks, slots or experts.
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


def write_map(
    path: Path, layers: Sequence[Placement], layout: str, *, num_dense_layers: int = 0
) -> Path:
    """Write `map_text`, whole file or nothing.

    Raises:
        ConfigError: The file cannot be written.
    """
    return write_text(path, map_text(layers, layout, num_dense_layers=num_dense_layers))


def write_text(path: Path, text: str) -> Path:
    """Write a file's text and a newline, whole or not at all.

    Raises:
        ConfigError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot write this file: {error.strerror}") from None
    return path


def read_map(path: Path, num_ranks: int, num_experts: int | None = None) -> list[Placement]:
    """Placements of a file in any of the layouts.

    Args:
        path: JSON file.
        num_ranks: W: slots divide over them.
        num_experts: E; by default one more than the highest that appears.

    Raises:
        ConfigError: Not such a file; or slots that do not divide, or an expert without a slot:
            file, layer and number.
    """
    data = toml.read_json(path)
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
    """Experts of each layer's slots."""
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
        data = [data]  # one map for every layer
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
