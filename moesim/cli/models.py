"""``moesim models``: what a published model consists of."""

from collections.abc import Iterator
from itertools import count
from string import ascii_uppercase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.options import Lenient

if TYPE_CHECKING:
    from moesim.model.hf_config import Model

models_app = typer.Typer(no_args_is_help=True, help="Read published models.")


@models_app.command("show")
def show_model(
    model: Annotated[
        str, typer.Argument(help="Preset, config.json or params.json, or a folder with one.")
    ],
    lenient: Lenient = False,
) -> None:
    """Show the layers of a model in order, its parameters, what it keeps per token and sequence,
    and the format of its experts.
    """
    from moesim.model.hf_config import load_model
    from moesim.report.document import record
    from moesim.report.terminal import print_table, tell

    found = load_model(model, lenient)
    facts, kinds, order = _facts(found), _kinds(found), _order(found)
    shown = {"name": found.name, "source": found.source, **facts}
    if record(shown | {"order": order, "kinds": kinds}):
        return
    print_table(f"{found.name}: {found.source}", kinds, list(kinds[0]))
    tell(f"{'order':26} {order}")
    notes = facts.pop("notes")
    for name, value in facts.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            text = f"{value:,.0f}"
        else:
            text = {None: "-", True: "yes", False: "no"}.get(value, str(value))
        tell(f"{name:26} {text}")
    for note in notes:
        tell(f"{'note':26} {note}")


def _facts(model: "Model") -> dict[str, Any]:
    """Return the figures of a model by name."""
    spec, moe = model.spec, model.spec.moe
    assert moe is not None, "a model without experts is refused where it is read"
    return {
        "total_params": spec.total_params,
        "active_params": spec.active_params,
        "num_layers": spec.num_layers,
        "num_moe_layers": spec.num_moe_layers,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "tied_embeddings": spec.tied_embeddings,
        "kv_bytes_per_token": round(spec.kv_bytes_per_token),
        "index_bytes_per_token": round(spec.index_bytes_per_token),
        "state_bytes_per_sequence": round(spec.state_bytes_per_sequence),
        "num_experts": moe.num_experts,
        "top_k": moe.top_k,
        "expert_intermediate_size": moe.width,
        "num_shared_experts": moe.num_shared_experts,
        "shared_width": moe.shared_width,
        "dense_intermediate_size": model.dense_part.dense_intermediate_size,
        "gated": moe.gated,
        "latent_size": moe.latent_size,
        "gate": str(moe.gate),
        "expert_format": model.published_as,
        "notes": list(model.notes),
    }


def _kinds(model: "Model") -> list[dict[str, Any]]:
    """Return the kinds of layers, each with a letter, its number and its weights."""
    from moesim.model.weights import total, total_active

    spec = model.spec
    rows = []
    for letter, (kind, number) in zip(_letters(), spec.kinds.items(), strict=False):
        weights = kind.weights(spec.hidden_size)
        rows.append(
            {
                "letter": letter,
                "count": number,
                "kind": kind.name,
                "params": total(weights),
                "active": round(total_active(weights)),
            }
        )
    return rows


def _letters() -> Iterator[str]:
    """Yield A to Z, then A1, B1 and so on."""
    for round_ in count():
        yield from (f"{letter}{round_ or ''}" for letter in ascii_uppercase)


def _order(model: "Model") -> str:
    """Return the order of layers as runs of letters, with what repeats in brackets."""
    letter = dict(zip(model.spec.kinds, _letters(), strict=False))
    runs = [f"{number} {letter[kind]}" for kind, number in model.spec.runs]
    parts, first = [], 0
    while first < len(runs):
        size, times = max(
            ((size, _repeats(runs, first, size)) for size in range(1, len(runs) // 2 + 1)),
            key=lambda found: (found[0] * found[1] if found[1] > 1 else 1, -found[0]),
            default=(1, 1),
        )
        size, times = (size, times) if times > 1 else (1, 1)
        text = ", ".join(runs[first : first + size])
        parts.append(f"{times} x ({text})" if times > 1 else text)
        first += size * times
    return ", ".join(parts)


def _repeats(runs: list[str], first: int, size: int) -> int:
    """Return how often the ``size`` runs from ``first`` follow each other."""
    pattern, times = runs[first : first + size], 1
    while runs[first + times * size : first + (times + 1) * size] == pattern:
        times += 1
    return times
