"""The static picture of a timeline: two ranks, two micro-batches."""

import xml.etree.ElementTree as ET

import pytest

from moesim import Candidate, Parallelism, Workload, load_cluster, load_preset
from moesim.design.schedule import Schedule
from moesim.errors import ConfigError
from moesim.report.plots.timeline import timeline_figure, timeline_svg
from moesim.simulation.prepare import prepare
from moesim.simulation.run import simulate_prepared
from moesim.timeline.layer import layer_sheet


@pytest.fixture(scope="module")
def sheet():
    candidate = Candidate(
        layer=load_preset("qwen3-30b-a3b").layer,
        parallelism=Parallelism(ep=8),
        schedule=Schedule(num_micro_batches=2),
    )
    prepared = prepare(candidate, load_cluster("hgx-h100-8"), Workload(num_tokens_per_device=1024))
    return layer_sheet(prepared, simulate_prepared(prepared))


def test_figure_and_svg_show_the_slices_of_two_ranks(sheet):
    shown = [one for one in sheet.slices if one.process in ("rank 0", "rank 1")]
    chart = timeline_figure(sheet)
    assert sum(len(trace.x) for trace in chart.data) == len(shown)
    assert set(chart.layout.yaxis.categoryarray) == {
        f"rank {rank} {track}" for rank in (0, 1) for track in ("compute", "send", "receive")
    }
    root = ET.fromstring(timeline_svg(sheet))
    titles = root.findall(".//{http://www.w3.org/2000/svg}title")
    assert len(titles) == len(shown)
    # the exchange of one micro-batch travels while the other computes
    overlap = [
        one
        for one in shown
        for other in shown
        if one.track == "compute"
        and other.track == "receive"
        and one.process == other.process
        and one.args["micro_batch"] != other.args["micro_batch"]
        and min(one.end_s, other.end_s) > max(one.begin_s, other.begin_s)
    ]
    assert overlap


def test_processes_that_do_not_exist_are_refused(sheet):
    with pytest.raises(ConfigError, match="expected processes among run, critical path, rank 0"):
        timeline_svg(sheet, ["rank 99"])
