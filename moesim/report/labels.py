"""Shorten labels of designs in a table: words that all of them share appear once, beside it."""

from collections.abc import Sequence


def without_common_end(labels: Sequence[str]) -> tuple[list[str], str]:
    """Cut the last words that all labels share.

    A label names everything that makes its design (`moesim.design.candidate.Candidate.label`), and
    ends with what the designs of one study have in common: the width of a token, and the model.

    Args:
        labels: Labels of designs, as words separated by spaces.

    Returns:
        The labels without these words, and the words. A label keeps at least one word; equal
        labels, or a single one, keep all.
    """
    words = [label.split(" ") for label in labels]
    if len(set(labels)) < 2:
        return list(labels), ""
    shared = 0
    shortest = min(map(len, words))
    while shared < shortest - 1 and len({tuple(each[-1 - shared :]) for each in words}) == 1:
        shared += 1
    if not shared:
        return list(labels), ""
    return [" ".join(each[:-shared]) for each in words], " ".join(words[0][-shared:])


def without_common_words(labels: Sequence[str]) -> tuple[list[str], str]:
    """Leave out the words that occur in every label, wherever they stand; otherwise like
    `without_common_end`, for tables with little room.

    Args:
        labels: Labels of designs, as words separated by spaces.

    Returns:
        The labels without these words, and the words in their order. A label that would be empty
        stays whole; equal labels, or a single one, keep all.
    """
    words = [label.split(" ") for label in labels]
    if len(set(labels)) < 2:
        return list(labels), ""
    shared = set(words[0]).intersection(*words[1:])
    short = [" ".join(word for word in each if word not in shared) for each in words]
    if not all(short):
        return list(labels), ""
    return short, " ".join(word for word in words[0] if word in shared)
