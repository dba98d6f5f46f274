"""Which feed-forward each layer has, by every spelling that a file uses."""

from collections.abc import Callable, Iterator
from typing import Any

from moesim.model.hf_config.keys import Keys
from moesim.model.hf_config.words import (
    DENSE,
    HASH_MOE,
    MOE,
    Answers,
    check_inside,
    check_numbers,
    where,
)


def block_answers(keys: Keys) -> Answers:
    """Yield the feed-forward of every layer by each spelling that the file uses."""
    count = keys.num_layers
    words = keys.of_each_layer("mlp_layer_types", str, "a list of words for layers")
    if words is not None:
        known = {"dense": DENSE, "sparse": MOE, "moe": MOE, "hash_moe": HASH_MOE}
        for word in words:
            keys.require(word in known, "mlp_layer_types", f"words of {', '.join(known)}", word)
        yield "mlp_layer_types", [known[word] for word in words]
    for name in ("is_moe_layer", "moe_layer_freq"):
        if isinstance(keys.given.get(name), list):
            flags = keys.of_each_layer(name, (bool, int), "a list of truth values for layers")
            if flags is not None:
                yield name, [MOE if flag else DENSE for flag in flags]
    for name in ("moe_layers", "moe_layers_enum"):
        numbers = _enumerated(keys, name)
        if numbers:
            yield name, where(count, lambda i, n=numbers: i in n, MOE, DENSE)  # type: ignore[misc]
    rules = [rule for rule in _rules(keys) if rule is not None]
    if rules:
        names = " and ".join(name for name, _ in rules)
        yield names, where(count, lambda i: all(holds(i) for _, holds in rules), MOE, DENSE)


def _enumerated(keys: Keys, name: str) -> list[int] | None:
    """Return the layer numbers of a list, or of a text such as ``3,4,5``."""
    found = keys.stated(name)
    if found is None or not found[1]:
        return None
    value = found[1]
    if isinstance(value, str):
        parts = value.split(",")
        keys.require(all(p.strip().isdigit() for p in parts), name, "numbers with commas", value)
        value = [int(part) for part in parts]
    check_numbers(keys, name, value, 0, keys.num_layers + keys.num_extra - 1)
    return [number for number in value if number < keys.num_layers]


#: keys with the number of dense layers before the first with experts
_FIRST = ("first_k_dense_replace", "num_dense_layers", "n_dense_layers", "moe_layer_num_skipped")
#: keys with the number of layers from one with experts to the next
_STEPS = (
    "moe_layer_freq",
    "moe_layer_frequency",
    "decoder_sparse_step",
    "interleave_moe_layer_step",
    "moe_every_n_layers",
    "moe_every_n_layer",
    "route_every_n",
)
Rule = tuple[str, Callable[[int], bool]] | None


def _rules(keys: Keys) -> Iterator[Rule]:
    """Yield the rules that a layer with experts must all meet; one that all meet is none."""
    for name in _FIRST:
        if keys.has(name):
            yield _from(keys, name)
    for name in _STEPS:
        if keys.has(name) and not isinstance(keys.given.get(name), list):
            yield _every(keys, name)
    if keys.has("expert_layer_period", "expert_layer_offset"):
        period = keys.whole("expert_layer_period", what="layers from one MoE layer to the next")
        offset = keys.whole("expert_layer_offset", what="the first MoE layer", default=0, low=0)
        check_inside(keys, "expert_layer_offset", offset, period)
        yield "expert_layer_period", lambda i: i % period == offset
    yield _between(keys)
    plain = keys.list_of("mlp_only_layers", int, "a list of layers")
    if plain is not None:
        check_numbers(keys, "mlp_only_layers", plain, 0, keys.num_layers - 1)
        yield "mlp_only_layers", lambda i: i not in plain


def _from(keys: Keys, name: str) -> Rule:
    first = keys.whole(name, what="dense layers before the first with experts", low=0)
    return (name, lambda i: i >= first) if first else None


def _every(keys: Keys, name: str) -> Rule:
    step = keys.whole(name, what="layers from one with experts to the next")
    if step == 1:
        return None
    # DeepSeek's classes count from the first layer, the others to the last
    ahead = 0 if name == "moe_layer_freq" else 1
    return name, lambda i: (i + ahead) % step == 0


def _between(keys: Keys) -> Rule:
    """Return the rule of ERNIE: layers from start to end, each interval-th of them.

    A model of two modalities states a start and an end for each; the first is that of text. An end
    of -1 is the last layer, and one behind it means the same.
    """
    names = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
    if not keys.has(*names):
        return None
    start, end, step = (
        _first(keys.stated(name), default) for name, default in zip(names, (0, -1, 1), strict=True)
    )
    for name, value, low in zip(names, (start, end, step), (0, -1, 1), strict=True):
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        keys.require(good, name, f"an integer >= {low}", value)
    last = keys.num_layers - 1 if end == -1 else end
    keys.require(start <= last, names[1], f"at least the start {start}", end)
    return names[0], lambda i: start <= i <= last and (i + 1) % step == 0


def _first(found: tuple[str, Any] | None, default: int) -> Any:
    if found is None:
        return default
    value = found[1]
    return value[0] if isinstance(value, list) and value else value
