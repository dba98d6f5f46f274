"""The three sentences at a command's end, and what they count."""

import pytest

from moesim.report.answer import Answer, print_answer
from moesim.report.verdicts import winners_measured

ANSWER = Answer(
    build="E64 k4: loss 2.1, 1,234,567 tokens/s; the best of 60 trials.",
    confidence="It is alone on the front. 1 of 2 winners has a measurement: 1 confirmed.",
    next_step="Measure it.",
    assumptions=("8 h100-sxm", "expert load uniform"),
)


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_words_stay_whole_at_any_width(columns):
    text = ANSWER.text(columns)
    assert all(len(line) <= columns for line in text.split("\n"))
    assert " ".join(text.split()) == (
        "Assumed: 8 h100-sxm; expert load uniform "
        f"Build: {ANSWER.build} How sure: {ANSWER.confidence} Next: {ANSWER.next_step}"
    )


def test_nothing_in_an_answer_commands_a_terminal(capsys):
    print_answer(Answer(build="E8 \x1b[31mred", confidence="b", next_step="c"))
    assert "\x1b" not in capsys.readouterr().out


def check(design, verdict, *, quantity="experts_time_us", detail="a row", role="winner"):
    return {
        "role": role,
        "design": design,
        "quantity": quantity,
        "verdict": verdict,
        "detail": detail,
    }


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "No winner was checked against a measurement."),
        ([check("a", "not_measured"), check("b", "not_measured")], "0 of 2 winners have"),
        (
            [check("a", "confirmed"), check("b", "not_measured")],
            "1 of 2 winners has a measurement: 1 c",
        ),
        # the worst of several, and measured architectures are no winners
        (
            [
                check("a", "confirmed"),
                check("a", "refuted"),
                check("c", "refuted", role="measured"),
            ],
            "1 of 1 winner has a measurement: 1 refuted.",
        ),
        # a stand-in is no measurement of the design
        (
            [check("a", "confirmed", detail="scaled down from E64")],
            "The winner was not measured (1 ",
        ),
        # a numerical check confirms no time, but can refute
        (
            [check("a", "confirmed", quantity="max_abs_error"), check("b", "not_measured")],
            "0 of 2 winners have",
        ),
        (
            [check("a", "refuted", quantity="max_abs_error"), check("b", "confirmed")],
            "2 of 2 winners have a measurement: 1 confirmed, 1 refuted.",
        ),
    ],
)
def test_winners_are_counted_by_what_was_measured_of_themselves(rows, said):
    assert said in winners_measured(rows).sentence()
