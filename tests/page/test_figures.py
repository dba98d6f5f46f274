"""Figures as SVG and PDF: the same charts in the same colors, text as text."""

import re
import sys

import pytest

from moesim.errors import ConfigError
from moesim.page.charts import PALETTE
from moesim.page.figures import write_figures
from moesim.page.folder import read_folder
from moesim.page.gather import gather

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def drawn(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    charts = gather(read_folder(folders["layers"])).charts
    return folder, charts, write_figures(charts, folder)


def test_every_chart_is_a_file_of_each_form(drawn):
    folder, charts, names = drawn
    assert names == [chart.key for chart in charts]
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{end}" for name in names for end in ("svg", "pdf")
    }


def test_text_is_text(drawn):
    folder, charts, _ = drawn
    for chart in charts:
        svg = (folder / f"{chart.key}.svg").read_text()
        said = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
        assert chart.title in said
        for axis in (getattr(chart, "x", None), getattr(chart, "y", None)):
            assert axis is None or axis.label in said
        pdf = (folder / f"{chart.key}.pdf").read_bytes()
        assert b"/FontFile2" in pdf
        assert b"/Type3" not in pdf


def test_colors_are_those_of_the_page(drawn):
    folder, charts, _ = drawn
    front = next(chart for chart in charts if chart.key == "front")
    svg = (folder / "front.svg").read_text().lower()
    for series in front.series:
        assert PALETTE[series.color][0].lower() in svg


def test_the_same_study_gives_the_same_files(drawn, tmp_path):
    folder, charts, _ = drawn
    write_figures(charts[:2], tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name


def test_without_matplotlib_there_is_a_hint(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'moesim\[figures\]'"):
        write_figures((), tmp_path / "none")
    assert not (tmp_path / "none").exists()
