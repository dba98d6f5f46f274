"""``moesim profiles``: files of one's own, from the template to what they say."""

import pytest
from typer.testing import CliRunner

from moesim.cli.root import app
from moesim.files import toml
from moesim.files.texts import parse_toml
from moesim.hardware import load_cluster, load_profile
from moesim.hardware.cluster_file import Group, ScaleOut, ScaleUp
from moesim.hardware.profile_file import ProfileFile
from moesim.hardware.templates import template_like
from moesim.report.roofline import bandwidth_lines, roofline_lines

MEASURED = {"measurement", "serial", "residuals", "host_fabric", "peer_copies", "gemm"}


@pytest.mark.parametrize("name", toml.names("devices"))
def test_a_template_says_the_same_numbers_of_a_device(name, tmp_path):
    path = tmp_path / f"{name}.toml"
    path.write_text(template_like(name), encoding="utf-8")
    mine, theirs = load_profile(str(path)), load_profile(name)
    assert {kind for kind, _ in mine.provenance.values()} == {"assumed"}
    for field in (
        *("execution", "peak_flops_per_s", "num_sms", "hbm_bandwidth_bytes_per_s", "power_w"),
        *("gather_efficiency", "streaming_efficiency", "l2_bytes", "kernel_launch_s", "mxu_size"),
        *("host_link_bytes_per_s", "host_launch_s", "calibration", "compute_capability"),
    ):
        assert getattr(mine, field) == getattr(theirs, field), field


@pytest.mark.parametrize("name", toml.names("clusters"))
def test_a_template_says_the_same_of_a_cluster(name, tmp_path):
    path = tmp_path / f"{name}.toml"
    path.write_text(template_like(name), encoding="utf-8")
    mine, theirs = load_cluster(str(path)), load_cluster(name)
    assert mine.groups == theirs.groups
    for field in ("num_devices", "link_bytes_per_s", "nic_bytes_per_s", "bridge", "hop_s"):
        assert getattr(mine, field) == getattr(theirs, field), field
    assert mine.exchange() == theirs.exchange()


def test_templates_name_every_key():
    device, cluster = template_like("h100-sxm"), template_like("hgx-h100-8")
    parse_toml(device, "device")
    for kind in (
        ProfileFile,
        *(ProfileFile.model_fields[f].annotation for f in ("compute", "hbm")),
    ):
        for key in kind.model_fields.keys() - {"aliases", "sources"}:
            assert key in device, key
    for kind in (ScaleUp, ScaleOut, Group):
        for key in kind.model_fields:
            assert key in cluster, key


def test_all_errors_of_a_file_are_printed(tmp_path, monkeypatch, capsys):
    from moesim.cli import main

    path = tmp_path / "my.toml"
    text = template_like("h100-sxm").replace("num_sms = 132.0", 'num_sms = "many"')
    path.write_text(text.replace("clock_ghz", "clock_mhz"), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["moesim", "profiles", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: my.toml: compute.num_sms: expected a number > 0, or a table of value, kind and "
        "source, got 'many'",
        "my.toml: compute.clock_ghz: expected a value, got nothing",
        "my.toml: compute.clock_mhz: no such key (remove it or check its spelling)",
    ]


def test_new_files_are_never_written_over(tmp_path):
    path = tmp_path / "my.toml"
    command = ["profiles", "new", "--like", "hgx-h100-8", "--out", str(path)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert path.read_text(encoding="utf-8") == template_like("hgx-h100-8")
    again = CliRunner().invoke(app, command)
    assert "expected a file that does not exist yet" in str(again.exception)
    unknown = CliRunner().invoke(app, [*command[:3], "h900", *command[4:]])
    assert "unknown device or cluster 'h900'" in str(unknown.exception)


@pytest.mark.parametrize("name", toml.names("devices"))
def test_drawings_fit_80_columns(name):
    profile = load_profile(name)
    lines = [*roofline_lines(profile), *bandwidth_lines(profile)]
    assert max(map(len, lines)) <= 80
    assert sum("knee at" in line for line in lines) == len(set(profile.peak_flops_per_s.values()))
