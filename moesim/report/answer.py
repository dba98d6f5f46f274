"""The three sentences that end a command: what to build, how sure that is, and what to do next."""

import textwrap
from dataclasses import dataclass

from moesim.errors import printable
from moesim.report.document import record
from moesim.report.terminal import print_gap, text_width

#: heading of each part
_PARTS = {"build": "Build", "confidence": "How sure", "next_step": "Next"}
_USUAL_WIDTH = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command found, for someone who has to decide.

    Attributes:
        build: What to build, or to choose, and why; one or two sentences.
        confidence: How sure that is: which intervals overlap, what is extrapolated, what a
            measurement confirmed.
        next_step: What to measure or to change next.
        assumptions: What was assumed, a phrase each.
    """

    build: str
    confidence: str
    next_step: str
    assumptions: tuple[str, ...] = ()

    def text(self, columns: int = _USUAL_WIDTH) -> str:
        """Return the parts as paragraphs, each with its heading, words never split.

        Args:
            columns: Width of a line in characters.
        """
        parts = {"Assumed": "; ".join(self.assumptions)} if self.assumptions else {}
        parts |= {heading: getattr(self, name) for name, heading in _PARTS.items()}
        return "\n".join(
            textwrap.fill(
                f"{heading}: {printable(said)}",
                width=max(columns, 20),
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            for heading, said in parts.items()
        )

    def row(self) -> dict[str, object]:
        """Return the parts as a flat mapping, for JSON."""
        return {name: getattr(self, name) for name in (*_PARTS, "assumptions")}


def print_answer(answer: Answer) -> None:
    """Print an answer on stdout after an empty line, or record it; nothing should follow it."""
    if not record({"answer": answer.row()}):
        print_gap()
        print(answer.text(text_width()))


__all__ = ["Answer", "print_answer"]
