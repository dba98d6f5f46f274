"""What a ``quantization_config`` says of experts or attention.

Methods name groups of modules with a format each, modules with bits of their own, and modules that
they leave out (`moesim.model.hf_config.modules`). Rules that name single layers apply if they name
most of those with experts.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from moesim.model.hf_config.keys import Keys
from moesim.model.hf_config.modules import EXPERT_NAMES, is_named, layer_numbers, listed
from moesim.model.hf_config.schemes import (
    METHODS,
    MODELOPT,
    of_group,
    of_integers,
    of_quark,
    recipe,
)

#: bits of a weight that is not quantized
_PLAIN_BITS = 16
#: targets of groups that are classes of experts
_EXPERT_CLASSES = {"FusedMoE", "Experts"}
#: keys under which methods list the modules that keep their format
_LEFT_OUT = (
    "modules_to_not_convert",
    "ignore",
    "exclude_modules",
    "ignored_layers",
    "exclude",
    "llm_int8_skip_modules",
    "exclude_layers",
    "ignored_modules",
)


class Quantization:
    """What one ``quantization_config`` says of modules.

    Attributes:
        keys: The keys of the file; what is assumed goes to their notes.
        config: The table.
        moe_layers: Number of layers with experts.
        method: The method, in lower case with dashes.
    """

    def __init__(self, keys: Keys, config: dict[str, Any], moe_layers: int) -> None:
        self.keys, self.config, self.moe_layers = keys, config, moe_layers
        self.method = str(config.get("quant_method", "")).lower().replace("_", "-")
        if not self.method and "quant_algo" in config:  # the maker's tool is named elsewhere
            self.method = "modelopt"
        elif not self.method and "bits" in config and "group_size" in config:
            self.method = "mlx"
        elif not self.method and "config_groups" in config:
            self.method = "compressed-tensors"

    def recipe(self, names: tuple[str, ...], prefix: str) -> str | None:
        """Return the recipe of the modules with these names; None if they keep their format.

        Args:
            names: Names that such a module may have.
            prefix: What keys of an algorithm of their own begin with.

        Raises:
            ConfigError: The format is none of those known, and the reading is strict.
        """
        left = [str(n) for key in _LEFT_OUT for n in listed(self.config.get(key))]
        left += [rule for rule, bits in self._own_bits() if bits >= _PLAIN_BITS]
        if self._name(left, names):
            return None
        return self._by_method(names, prefix)

    def _own_bits(self) -> list[tuple[str, int]]:
        """Return the modules with bits of their own, as (rule, bits): those of GPTQModel
        (``+:PATTERN``, or ``-:PATTERN`` for modules left out) and of AutoRound.
        """
        found = []
        for key in ("dynamic", "extra_config"):
            tables = self.config.get(key)
            for rule, table in tables.items() if isinstance(tables, dict) else ():
                bits = table.get("bits") if isinstance(table, dict) else None
                if key == "dynamic":
                    bits = _PLAIN_BITS if rule.startswith("-:") else bits
                    rule = f"re:{rule.removeprefix('-:').removeprefix('+:')}"
                elif set(rule) & set("\\^$*"):  # a pattern, otherwise the name of a module
                    rule = f"re:{rule}"
                if isinstance(bits, int):
                    found.append((rule, bits))
        return found

    def _name(self, rules: Iterable[str], names: tuple[str, ...]) -> bool:
        """Return whether rules name these modules, in most layers with experts if one by one."""
        layers = set()
        for rule in rules:
            numbers = layer_numbers(rule)
            if not is_named(rule, names):
                continue
            if not numbers:
                return True
            layers.update(numbers)
        return 2 * len(layers) > self.moe_layers

    def _by_method(self, names: tuple[str, ...], prefix: str) -> str | None:
        config, method = self.config, self.method
        own = config.get(f"{prefix}quant_algo")
        if prefix and own:
            return self._modelopt(str(own), names)
        if method == "mxfp4" and not prefix:  # a format of experts only (arXiv 2508.10925)
            return None
        if method == "w4afp8" and not prefix:  # its attention is that of the fp8 model
            return "fp8"
        if method.replace("-", "_") in METHODS:
            return METHODS[method.replace("-", "_")]
        if method == "fp8":
            return self._fp8()
        if method in ("gptq", "awq", "auto-round", "gptq-marlin", "awq-marlin", "intel/auto-round"):
            return self._integers(names)
        if method == "mlx":
            return self._mlx(names)
        if method == "bitsandbytes":
            return self._bitsandbytes()
        if method.startswith("modelopt") or "quant_algo" in config:
            return self._modelopt(str(config.get("quant_algo", "")), names)
        if method == "compressed-tensors":
            return self._grouped(names)
        if method == "quark":
            return self._quark(names)
        return self._unknown(f"quant_method {method or '(none)'}")

    def _unknown(self, what: str) -> str | None:
        self.keys.differ("quantization_config", "a format that moesim knows", what)
        note = "quantization_config: bf16 assumed"
        if note not in self.keys.notes:
            self.keys.notes.append(note)
        return None

    def _fp8(self) -> str:
        block = self.config.get("weight_block_size")
        if not block:
            return "fp8_tensor"
        # blocks of 1 x 32 are those of MXFP8
        return METHODS["mxfp8"] if block == [1, 32] else "fp8"

    def _integers(self, names: tuple[str, ...]) -> str | None:
        bits, kind = self.config.get("bits", self.config.get("w_bit")), self.config.get("data_type")
        own = self._own_bits()
        for number in sorted({number for _, number in own}):
            if self._name((rule for rule, other in own if other == number), names):
                bits = number
        found = of_integers(bits, str(kind or "int"))
        return found or self._unknown(f"{bits} bits of {self.method}")

    def _mlx(self, names: tuple[str, ...]) -> str | None:
        """Return the recipe of MLX: one for all, and tables under the names of modules."""
        own = (t for n, t in self.config.items() if isinstance(t, dict) and is_named(n, names))
        table = self.config | next(own, {})
        mode, bits = str(table.get("mode", "affine")), table.get("bits")
        found = METHODS.get(mode) if mode != "affine" else of_integers(bits, "int")
        return found or self._unknown(f"{bits} bits of MLX, mode {mode}")

    def _bitsandbytes(self) -> str | None:
        config = self.config
        if config.get("load_in_4bit") or config.get("_load_in_4bit"):
            note = f"{config.get('bnb_4bit_quant_type', 'fp4')} of bitsandbytes is priced as int4"
            if note not in self.keys.notes:
                self.keys.notes.append(note)
            return "int4"
        if config.get("load_in_8bit") or config.get("_load_in_8bit"):
            return recipe("int8")
        return self._unknown("bitsandbytes with neither 4 nor 8 bits")

    def _modelopt(self, algorithm: str, names: tuple[str, ...]) -> str | None:
        if algorithm.upper() in MODELOPT:
            return MODELOPT[algorithm.upper()]
        if algorithm.upper() == "MIXED_PRECISION":
            return self._mixed(names)
        if not algorithm and self.config.get("config_groups"):
            return self._grouped(names)
        return self._unknown(f"quant_algo {algorithm or '(none)'}")

    def _mixed(self, names: tuple[str, ...]) -> str | None:
        """Return the recipe of modules in a file of several algorithms."""
        each = self.config.get("quantized_layers")
        if isinstance(each, dict) and each:
            found = Counter(
                str(one.get("quant_algo"))
                for name, one in each.items()
                if isinstance(one, dict) and is_named(name, names)
            )
            return self._modelopt(found.most_common(1)[0][0], names) if found else None
        if self.config.get("config_groups"):
            return self._grouped(names)
        note = "quantization_config names no layers: experts in nvfp4, the rest in fp8 assumed"
        if note not in self.keys.notes:
            self.keys.notes.append(note)
        return "nvfp4" if names == EXPERT_NAMES else "fp8_tensor"

    def _grouped(self, names: tuple[str, ...]) -> str | None:
        """Return the recipe of the group that names the modules, those by name first."""
        groups = self.config.get("config_groups")
        tables = (
            [g for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
        )
        if not tables:
            return self._unknown("config_groups without a table")
        for group in tables:
            targets = listed(group.get("targets"))
            if any(is_named(target, names) for target in targets) or (
                names == EXPERT_NAMES and _EXPERT_CLASSES & set(targets)
            ):
                return self._of_group(group)
        for group in tables:
            targets = listed(group.get("targets"))
            if not targets or "Linear" in targets:
                return self._of_group(group)
        return None

    def _of_group(self, group: dict[str, Any]) -> str | None:
        weights = group.get("weights")
        if not isinstance(weights, dict):
            return self._unknown("a group without weights")
        bits, kind = weights.get("num_bits"), weights.get("type")
        found = of_group(weights, group.get("input_activations"))
        return found or self._unknown(f"weights of {bits} bits {kind}")

    def _quark(self, names: tuple[str, ...]) -> str | None:
        """Return the recipe of AMD's Quark: one for all, or one per pattern of names."""
        special = self.config.get("layer_quant_config")
        table = self.config.get("global_quant_config")
        if isinstance(special, dict):
            table = next((t for rule, t in special.items() if is_named(rule, names)), table)
        table = table if isinstance(table, dict) else {}
        weight = table.get("weight")
        if isinstance(weight, list):
            weight = weight[0] if weight else None
        if not isinstance(weight, dict):
            return None
        found = of_quark(weight, table.get("input_tensors"))
        return found or self._unknown(f"Quark's {weight.get('dtype')}")
