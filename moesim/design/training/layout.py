"""Say how a model in training is spread over devices.

Ranks are numbered as Megatron-Core numbers them (``tp-cp-ep-dp-pp``): tensor-parallel ranks are
neighbors, pipeline stages are furthest apart, and the experts' ranks fold over the same devices
independently of attention's (arXiv 2504.14960).
"""

import re
from dataclasses import dataclass, fields

from moesim.errors import ConfigError, require, require_int, shown
from moesim.limits import MOST_DEVICES


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainLayout:
    """How a model in training is spread.

    Attributes:
        dp: Data-parallel ranks, each with sequences of its own.
        tp: Devices that share the heads and widths of dense parts; tokens between them are divided
            along the sequence (arXiv 2205.05198).
        cp: Devices that share the sequences of a rank, of which each holds a part.
        ep: Expert-parallel ranks.
        etp: Devices that share the width of an expert.
        pp: Pipeline stages.
        vp: Parts of the model that each stage holds (virtual stages); 1 for a plain pipeline.

    Raises:
        ConfigError: A degree is below 1, or experts do not fold over the devices of a stage.
    """

    dp: int = 1
    tp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    pp: int = 1
    vp: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            require_int(f"layout.{field.name}", getattr(self, field.name), 1, MOST_DEVICES)
        require(
            self.devices_per_stage % self.devices_per_exchange == 0,
            "layout",
            f"ep x etp that divides dp x tp x cp = {self.devices_per_stage} devices of a stage",
            f"{self.ep} x {self.etp}",
        )
        require(self.vp == 1 or self.pp > 1, "layout.vp", "1 without a pipeline", self.vp)

    @classmethod
    def parse(cls, text: str, num_devices: int) -> "TrainLayout":
        """Return the layout in a text such as ``tp2 pp8 ep32 vp4``; ``dp`` follows from the number
        of devices.

        Raises:
            ConfigError: A word is no degree, or the degrees do not divide the devices.
        """
        found: dict[str, int] = {}
        for word in text.replace(",", " ").split():
            match = re.fullmatch(r"(etp|dp|tp|cp|ep|pp|vp)([1-9][0-9]*)", word)
            if match is None or match[1] in found:
                raise ConfigError(
                    "layout: expected degrees such as 'tp2 pp8 ep32' or 'pp4 ep8 vp2', got "
                    f"{shown(text)}"
                )
            found[match[1]] = int(match[2])
        rest = found.get("tp", 1) * found.get("cp", 1) * found.get("pp", 1)
        if "dp" not in found:
            require(
                num_devices % rest == 0,
                "layout",
                f"tp x cp x pp that divides {num_devices} devices",
                rest,
            )
            found["dp"] = num_devices // rest
        return cls(**found)

    @property
    def devices_per_stage(self) -> int:
        """The number of devices of a pipeline stage."""
        return self.dp * self.tp * self.cp

    @property
    def devices_per_exchange(self) -> int:
        """The number of devices among which tokens travel to experts."""
        return self.ep * self.etp

    @property
    def num_devices(self) -> int:
        """The number of devices of the run."""
        return self.devices_per_stage * self.pp

    @property
    def dense_copies(self) -> int:
        """The number of devices that hold the same dense parameters, and reduce their gradients."""
        return self.dp * self.cp

    @property
    def expert_copies(self) -> int:
        """The number of devices that hold the same experts, and reduce their gradients."""
        return self.devices_per_stage // self.devices_per_exchange

    def __str__(self) -> str:
        words = [f"{f.name}{n}" for f in fields(self) if (n := getattr(self, f.name)) > 1]
        return " ".join(words) or "dp1"
