"""The page of a study: what it holds, what it refuses, and that no text in it can act."""

import base64
import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import moesim.page.folder as folder_module
from moesim import Candidate, Parallelism, Workload, load_cluster, load_preset
from moesim.errors import ConfigError
from moesim.page.charts import XYChart, heights, plain, thinned
from moesim.page.folder import read_folder
from moesim.page.gather import gather
from moesim.page.layer import anatomy
from moesim.page.metrics import interval, metric
from moesim.page.parts import strips_of
from moesim.page.repeat import study_file
from moesim.page.shown import shown_trials
from moesim.page.write import page_text, write_report
from moesim.report.embedded import figure_page
from moesim.search.problems import problem_of
from moesim.search.session.studyfile import load_study_file
from moesim.simulation.prepare import prepare

KINDS = ("layers", "serving", "training")
#: texts that act in a page, a terminal or a spreadsheet that trusts them
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "\"'><b>bold",
    "\x1b[31mred",
    "🙂 <!-- ",
    "=1+2",
    "+cmd",
    "-2+3",
    "@sum",
)


def data_of(page):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found[1])


@pytest.fixture
def copy(folders, tmp_path):
    def make(kind="layers", name="study"):
        return shutil.copytree(folders[kind], tmp_path / name)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_holds_everything_itself(folders, kind, tmp_path):
    page = tmp_path / "deep" / "report.html"
    found = write_report(folders[kind], out=page)
    text = page.read_text()
    assert len(text) < 8 << 20
    # scripts, styles, icon: nothing is loaded
    assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?!data:)', text) == []
    assert "<title>" in text
    assert found.answer.build in text.replace("&#x27;", "'")
    data = data_of(text)
    charts = [chart["key"] for part in data["sections"].values() for chart in part]
    assert {"front", "bottleneck", "parallel"} <= set(charts)
    assert any(key.startswith("history_") for key in charts)
    assert data["cards"][0]["role"] == "winner"
    plainest = "plainest design that was tried"
    assert any(plainest in card["says"] for card in data["cards"])
    if kind != "training":
        assert "expert_load" in charts


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_the_time_sum_to_100(folders, kind):
    study = read_folder(folders[kind]).study
    shown = shown_trials(study, study.chosen(), study.pareto_trials())
    assert len({one.trial.number for one in shown}) == len(shown)
    strips = [strip for one in shown for strip in strips_of(study, one, one.role)]
    assert len(strips) == len(shown) * (2 if kind == "serving" else 1)
    for strip in strips:
        assert sum(strip.shares().values()) == pytest.approx(100.0)
        assert min(strip.shares().values()) > 0
    (chart,) = gather(read_folder(folders[kind])).data["sections"]["bottleneck"]
    for values in zip(*chart["parts"].values(), strict=True):
        assert sum(values) == pytest.approx(100.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_an_interrupted_study_opens(copy, kind):
    folder = copy(kind)
    for table in folder.glob("*.csv"):
        table.unlink()
    found = write_report(folder)
    assert not found.data["finished"]
    assert "interrupted" in (folder / "report.html").read_text()
    assert found.data["checks"] == []
    if sum(t.feasible for t in read_folder(folder).study.trials) >= 20:
        # computed, since no file says it
        assert "importance" in [chart.key for chart in found.charts]


def test_a_study_without_trials_has_a_page(copy):
    folder = copy()
    for table in folder.glob("*.csv"):
        table.unlink()
    read = read_folder(folder)
    empty = replace(read, study=replace(read.study, trials=[]))
    found = gather(empty)
    assert found.data["cards"] == []
    assert found.charts == ()
    assert "Nothing yet" in page_text(found, "no trial")


def truncated(folder, name):
    path = folder / name
    path.write_text(path.read_text()[:-20])


def short_row(folder, name):
    path = folder / name
    lines = path.read_text().splitlines()
    lines[1] = ",".join(lines[1].split(",")[:3])
    path.write_text("\n".join(lines) + "\n")


def mixed(folder, name):
    path = folder / name
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    rows[1][rows[0].index("version")] = "0.0.9"
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def lacking(folder, name):
    path = folder / name
    path.write_text(path.read_text().replace("version", "revision", 1))


def foreign(folder, name):
    path = folder / name
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    rows[1][rows[0].index("design")] = "0123"
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("check.csv", truncated),
        ("pareto.csv", truncated),
        ("winners.csv", truncated),
        ("check.csv", short_row),
        ("pareto.csv", short_row),
        ("pareto.csv", mixed),
        ("check.csv", mixed),
        ("check.csv", lacking),
        ("pareto.csv", foreign),
    ],
)
def test_damaged_tables_are_refused_by_name(copy, make_checks, name, spoil):
    folder = copy()
    make_checks(folder, {}, {"verdict": "refuted"})
    spoil(folder, name)
    with pytest.raises(ConfigError, match=name) as refused:
        write_report(folder)
    assert "\n" not in str(refused.value)
    assert not (folder / "report.html").exists()


def test_verdicts_and_numbers_of_checks_are_read(copy, make_checks):
    folder = copy()
    for wrong in ({"verdict": "maybe"}, {"status": "gone"}, {"simulated": "much"}):
        make_checks(folder, wrong)
        with pytest.raises(ConfigError, match=r"check\.csv"):
            read_folder(folder)


def test_a_journal_of_another_version_is_refused(folders, monkeypatch):
    real = folder_module.read_study

    def older(where, **options):
        found = real(where, **options)
        return replace(found, settings=found.settings | {"columns": "0123", "version": "0.0.9"})

    monkeypatch.setattr(folder_module, "read_study", older)
    with pytest.raises(ConfigError, match=r"study\.journal: expected trials with the columns"):
        read_folder(folders["layers"])


def test_the_command_refuses_in_one_line(tmp_path):
    command = [sys.executable, "-m", "moesim.cli", "report", str(tmp_path)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "page.html")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "page.html").exists()


def test_hostile_texts_are_inert(copy, make_checks):
    folder = copy(name="🙂<img src=x onerror=alert(3)>&'\"")
    make_checks(folder, *({"candidate": text, "detail": text} for text in HOSTILE))
    write_report(folder)
    text = (folder / "report.html").read_text()
    assert "<img" not in text
    assert "alert(2)</script>" not in text
    assert "\x1b" not in text
    # four scripts of ours with data, plotly and its loader; none that a text began
    assert len(re.findall(r"<script\b", text)) == 5
    shown = [row["candidate"] for row in data_of(text)["checks"]]
    assert shown == [one.replace("\x1b", "\\x1b") for one in HOSTILE]


@pytest.mark.parametrize("kind", KINDS)
def test_the_study_file_of_a_page_makes_the_same_study(folders, kind, tmp_path):
    settings = read_folder(folders[kind]).settings
    path = tmp_path / "study.toml"
    path.write_text(study_file(settings))
    again = load_study_file(path, settings["seed"])
    problem = problem_of(
        again.space,
        again.cluster,
        again.workload,
        objectives=again.objectives,
        constraints=again.constraints,
        economics=again.economics,
        engine=settings["engine"],
    )
    now = json.loads(json.dumps(problem.settings()))
    assert now == {name: settings[name] for name in now}


def test_stragglers_are_late_by_their_experts_or_their_links():
    layer = load_preset("qwen3-235b-a22b").layer
    found = {}
    for name in ("hgx-h100-8", "l40s-pcie-8"):
        candidate = Candidate(layer=layer, parallelism=Parallelism(ep=8), placement="contiguous")
        work = Workload(num_tokens_per_device=256, routing="power_law:1.2")
        prepared = prepare(candidate, load_cluster(name), work)
        found[name] = anatomy(prepared)
        rows_D = prepared.traffic.counts_DL.sum(axis=1)
        table = found[name].stragglers
        assert {row["device"] for row in table} == set(range(8))
        ends = [row["experts done (us)"] for row in table]
        assert ends == sorted(ends, reverse=True)
        for row in table:
            ratio = rows_D[row["device"]] / rows_D.mean()
            assert row["rows over the mean"] == pytest.approx(ratio)
    # NVLink is fast and its busiest device has the most rows; over PCIe tokens come late
    node = found["hgx-h100-8"].stragglers
    assert node[0]["why"] == "experts"
    assert node[0]["rows over the mean"] == max(row["rows over the mean"] for row in node)
    assert "link" in {row["why"] for row in found["l40s-pcie-8"].stragglers}


@pytest.mark.parametrize(
    ("cluster", "devices", "others", "links"),
    [
        ("hgx-h100-8", 8, 1, 8),
        ("mi300x-8", 8, 0, 28),
        ("h100-rail-8x8", 64, 9, 64 + 8),
        ("tpu-v5p-4x4x4", 64, 0, 3 * 64),
    ],
)
def test_devices_and_links_are_laid_out(cluster, devices, others, links):
    layer = load_preset("qwen3-235b-a22b").layer
    candidate = Candidate(layer=layer, parallelism=Parallelism(ep=devices), placement="contiguous")
    work = Workload(num_tokens_per_device=32, routing="power_law:1.2")
    charts = anatomy(prepare(candidate, load_cluster(cluster), work)).charts
    (chart,) = [chart for chart in charts if chart.key == "topology"]
    values = [value for _, _, value in chart.nodes.values()]
    assert values.count(None) == others
    assert np.mean([value for value in values if value is not None]) == pytest.approx(1.0)
    assert len(chart.links) == links
    loads = [link[-1] for link in chart.links]
    assert max(loads) <= chart.edges[-1] <= 100.1
    assert min(loads) > 0
    places = {(x, y) for x, y, _ in chart.nodes.values()}
    assert len(places) == devices + others


def test_arrays_travel_exactly():
    values = np.array([0.1, 1e300, -2.5e-17] * 20)
    packed = plain(values)
    assert np.array_equal(np.frombuffer(base64.b64decode(packed["f64"]), "<f8"), values)
    whole = plain(np.arange(50))
    assert np.frombuffer(base64.b64decode(whole["i32"]), "<i4")[-1] == 49
    assert plain([1.0, None, float("nan"), "a\x1bb"]) == [1.0, None, None, "a\\x1bb"]


def test_a_cloud_is_thinned_evenly():
    assert list(thinned(5, 10)) == [0, 1, 2, 3, 4]
    kept = thinned(10_000, 100)
    assert len(kept) == 100
    assert kept[0] == 0
    assert kept[-1] == 9_999
    assert np.ptp(np.diff(kept)) <= 1


def test_heights_of_parallel_axes(folders):
    charts = gather(read_folder(folders["layers"])).charts
    (chart,) = [chart for chart in charts if chart.kind == "parallel"]
    found = heights(chart)
    assert found.shape == (len(chart.axes), len(chart.rows))
    assert found.min() >= 0
    assert found.max() == 1


def test_intervals_are_those_of_the_row(folders):
    for kind in KINDS:
        study = read_folder(folders[kind]).study
        for trial in study.pareto_trials():
            row = trial.evaluation.row
            for name in study.objectives:
                ends = interval(row, name)
                if ends is not None:
                    assert ends[0] <= row[name] <= ends[1]
                assert metric(name).says
    assert interval({"loss": 2.0}, "loss") is None
    assert metric("layer_time_high_us").titled == "layer time, P90 (us)"


def test_every_quantity_of_a_chart_is_defined(folders):
    for kind in KINDS:
        for chart in gather(read_folder(folders[kind])).charts:
            assert len(chart.note) > 40
            assert not isinstance(chart, XYChart) or (chart.x.label and chart.y.label)


def test_a_figure_page_may_be_moved():
    import plotly.graph_objects as go

    figure = go.Figure(go.Scatter(x=[1], y=[2], text=["</script><b>"]))
    page = figure_page(figure, "Error <by> tokens")
    assert "<title>Error &lt;by&gt; tokens</title>" in page
    assert " src=" not in page
    assert "</script><b>" not in page
