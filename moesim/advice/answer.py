"""Say what a recommendation comes to: what to serve a model with, how sure, and what is next."""

from collections.abc import Sequence

from moesim.advice.compare import Offer
from moesim.advice.recommendation import Recommendation
from moesim.advice.serving import ServingAdvice
from moesim.report.answer import Answer
from moesim.serving.answer import grounds, served_words
from moesim.units import US

#: share of the best rate within which offers count as ties
_TIE = 0.06


def recommendation_answer(found: Recommendation) -> Answer:
    """Return what a recommendation for MoE layers says."""
    best, result = found.best, found.best.result
    ties = len(found.tied) - 1
    phase, grade = result.graded
    kernels = f" with {result.kernels}" if result.kernels else ""
    others = len(found.choices) - 1
    told = (
        f"{ties} of the {others} other designs cannot be told apart from it by their intervals"
        if ties
        else f"All {others} other designs are slower for certain"
        if others
        else "No other design fits"
    )
    name = " ".join(best.candidate.label.split()[:-2])
    help_ = (
        f"{found.helps[0].change} would help most "
        f"({100 * (found.helps[0].factor.mid - 1):+.0f} % layer tokens/s)"
        if found.helps
        else "no single change helps it"
    )
    return Answer(
        build=f"{name}{kernels}: {result.layer_time_s / US:,.0f} us per MoE layer and "
        f"{best.tokens_per_s_per_device:,.0f} tokens/s per device through all {best.moe_layers}, "
        f"the simplest design that none of {found.num_screened:,} others beats for certain; its "
        f"time goes to {result.bottleneck}.",
        confidence=f"{told}; the layer takes {result.layer_time_low_s / US:,.0f} to "
        f"{result.layer_time_high_s / US:,.0f} us (P10 to P90), grade {grade.letter} by {phase}: "
        f"{grade.rests_on}. It is simulated, not measured on your machine.",
        next_step=f"Launch it (--export sglang or vllm writes the command) and time a layer; "
        f"{help_}.",
    )


def advice_answer(found: ServingAdvice) -> Answer:
    """Return what a recommendation for a served model says."""
    best, task = found.best, found.task
    row = best.row(task.economics)
    rates = [float(str(other["output_tokens_per_s_per_device_high"])) for other in found.others]
    mine = float(str(row["output_tokens_per_s_per_device_low"]))
    ties = sum(rate >= mine for rate in rates)
    told = (
        f"{ties} of the {len(rates)} other layouts may reach as many tokens/s, since their "
        "intervals overlap"
        if ties
        else f"None of the {len(rates)} other layouts reaches its tokens/s within the intervals"
        if rates
        else "No other layout keeps the limits"
    )
    limits = ", ".join(f"{limit.column} <= {limit.most_ms:,.0f}" for limit in task.limits)
    why = f"the most of {found.num_tried} estimates" + (f" that keep {limits}" if limits else "")
    return Answer(
        build=f"{served_words(best, row)}; {why}.",
        confidence=f"{told}. {grounds(row)}" + (f" {found.doubt}." if found.doubt else ""),
        next_step="Launch it, replay your requests, and compare TTFT and TPOT with these; "
        "`moesim serve --requests FILE` follows your own arrivals first.",
    )


def comparison_answer(offers: Sequence[Offer]) -> Answer:
    """Return which of several clusters a comparison favors: by price where all have one, otherwise
    by tokens per second.
    """
    rows = [offer.row() for offer in offers if offer.found is not None]
    if not rows:
        return Answer(
            build=f"None of the {len(offers)} clusters: no design runs on any.",
            confidence="Each refusal follows from memory or from what divides, and stands above.",
            next_step="Raise the budget, name more devices, or choose a narrower format.",
        )
    column, unit = "moe_layers_usd_per_million_tokens", "USD per million tokens"
    if any(row[column] is None for row in rows):
        column, unit = "moe_layers_tokens_per_s", "tokens/s"
    sign = -1.0 if column == "moe_layers_tokens_per_s" else 1.0
    order = sorted(rows, key=lambda row: sign * float(row[column]))
    best, others = order[0], order[1:]
    ties = [
        row["cluster"]
        for row in others
        if abs(float(row[column]) / float(best[column]) - 1.0) <= _TIE
    ]
    told = (
        f"{', '.join(ties)} {'is' if len(ties) == 1 else 'are'} within {_TIE:.0%} of it"
        if ties
        else f"The next, {others[0]['cluster']}, comes to {others[0][column]:,.3g}"
        if others
        else "No other cluster runs the model"
    )
    return Answer(
        build=f"{best['cluster']} with {best['devices']} devices, {best['candidate']}: "
        f"{best[column]:,.3g} {unit} through the MoE layers, the best of {len(rows)} clusters.",
        confidence=f"{told}; grade {best['grade']} of A to D. Prices are assumed, and everything "
        "is simulated, not measured.",
        next_step="Put the prices you are offered into a file for --economics, and recommend for "
        "this cluster alone with --isl, --osl and --slo.",
    )


__all__ = ["advice_answer", "comparison_answer", "recommendation_answer"]
