"""Labels in tables: shared words are cut, and nothing else."""

import pytest

from moesim.report.labels import without_common_end, without_common_words


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], ([], "")),
        (["E8 k2 H64"], (["E8 k2 H64"], "")),
        (["E8 k2 H64", "E8 k2 H64"], (["E8 k2 H64", "E8 k2 H64"], "")),
        (["E8 k2 H64", "E8 k4 H64"], (["E8 k2", "E8 k4"], "H64")),
        (["E8 k2 mb2 H64 L2#a", "E4 k2 H64 L2#a"], (["E8 k2 mb2", "E4 k2"], "H64 L2#a")),
        (["E8 H64", "H64"], (["E8 H64", "H64"], "")),
        (["E8 H64", "E8 H128"], (["E8 H64", "E8 H128"], "")),
    ],
)
def test_what_all_share_at_the_end(labels, expected):
    assert without_common_end(labels) == expected


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], ([], "")),
        (["E8 k2 H64", "E8 k2 H64"], (["E8 k2 H64", "E8 k2 H64"], "")),
        (["E8 k2 flat H64", "E8 k4 flat H64"], (["k2", "k4"], "E8 flat H64")),
        (["E8 k2 mb2 H64", "E4 k2 H64"], (["E8 mb2", "E4"], "k2 H64")),
        (["E8 H64", "H64"], (["E8 H64", "H64"], "")),
    ],
)
def test_what_all_share_anywhere(labels, expected):
    assert without_common_words(labels) == expected
