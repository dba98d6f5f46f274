"""What people see in Python: short texts, tables in notebooks, frames."""

import pytest

from moesim import Gate, MoELayer, Precision, Workload, load_profile, simulate
from moesim.errors import ConfigError
from moesim.report import to_frame, write_csv

HOSTILE = [
    "<b>&",
    "=1+1",
    "'=1",
    "+x",
    "-x",
    "@x",
    "\t=",
    "say \"a\", 'b'\nc",
    "\x1b[31m",
    "1e5",
    "ü😀",
]


def test_designs_show_what_is_not_usual_and_can_be_made_again(make_candidate):
    layer = MoELayer(
        hidden_size=64,
        expert_intermediate_size=32,
        num_experts=8,
        top_k=2,
        precision=Precision.named("fp8"),
        gate=Gate.parse("two_level:4:2+sigmoid"),
    )
    assert eval(repr(layer)) == layer
    assert "capacity" not in repr(layer)
    work = Workload(num_tokens_per_device=64, routing="zipf:0.8")
    assert repr(work) == "Workload(num_tokens_per_device=64, routing='zipf:0.8')"
    assert len(repr(make_candidate(num_experts=32, top_k=2))) < 300


def test_results_are_short_and_have_a_table_for_notebooks(hgx, make_candidate):
    result = simulate(
        make_candidate(num_experts=32, top_k=2), hgx, Workload(num_tokens_per_device=256)
    )
    for one in (result, hgx, load_profile("h100-sxm")):
        assert len(repr(one)) < 250
        assert "\n" not in repr(one)
        page = one._repr_html_()
        assert page.count("<tr>") == len(one.facts())
    assert f"{result.layer_time_s * 1e6:,.0f} us" in repr(result)
    frame = result.to_frame()
    assert frame.loc[0, "layer_time_us"] == result.row()["layer_time_us"]
    shown = sum(bar.x[0] for bar in result.plot().data)
    assert shown == pytest.approx(result.layer_time_s * 1e6)


def test_names_are_text_in_notebooks(hgx):
    from dataclasses import replace

    page = replace(hgx, name="<script>alert(1)</script>\x1b[31m")._repr_html_()
    assert "<script>" not in page
    assert "\x1b" not in repr(replace(hgx, name="\x1b[31m"))


def test_what_a_csv_escapes_a_frame_gives_back(tmp_path):
    rows = [{"name": name, "=head": number} for number, name in enumerate(HOSTILE)]
    path = write_csv(tmp_path / "table.csv", rows)
    frame = to_frame(path)
    assert list(frame.columns) == ["name", "=head"]
    assert list(frame["name"].astype(str)) == HOSTILE
    assert not any(line.startswith(("=", "+", "@")) for line in path.read_text().splitlines())


def test_a_file_that_is_no_table_is_refused_in_a_line(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ConfigError, match=r"empty\.csv: not a table"):
        to_frame(tmp_path / "empty.csv")
    with pytest.raises(ConfigError, match="cannot read"):
        to_frame(tmp_path / "none.csv")
