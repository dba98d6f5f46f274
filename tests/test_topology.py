"""Clusters: what joins their devices, one-line errors, and the shipped ones."""

from typing import get_args

import pytest

from moesim import configfile
from moesim.configfile import Kind
from moesim.errors import ConfigError, UnknownNameError
from moesim.hardware import load_profile
from moesim.topology import ClusterFile, check_devices, load_cluster, single_device

CLUSTER = '''
title = "Four of them"
profile = "h100-sxm"
num_nodes = 1
devices_per_node = 4
[fabric]
kind = "nvswitch"
calibration = "nccl-alltoall"
link_gb_per_s = {value = 450.0, kind = "datasheet", source = "s"}
[sources.s]
title = "A datasheet"
'''
FABRIC = CLUSTER[CLUSTER.index("[fabric]") : CLUSTER.index("[sources.s]")]


@pytest.fixture
def write(tmp_path):
    def make(old="", new=""):
        assert old in CLUSTER
        (tmp_path / "four.toml").write_text(CLUSTER.replace(old, new) if old else CLUSTER)
        return load_cluster(str(tmp_path / "four.toml"))

    return make


def test_cluster(write):
    four = write()
    assert (four.name, four.num_devices, four.fabric, four.link_bytes_per_s) == ("four", 4, "nvswitch", 450e9)
    assert four.profile is load_profile("h100-sxm")
    assert four.provenance == {"fabric.link_gb_per_s": ("datasheet", "s")}


def test_the_digest_changes_with_cluster_and_with_device(write, tmp_path, monkeypatch):
    first = write().digest
    assert write("value = 450.0", "value = 451.0").digest != first
    shipped = configfile.find("devices", "h100-sxm").read_text()
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "h100-sxm.toml").write_text(shipped + "\n# changed\n")
    monkeypatch.setenv("MOESIM_PROFILES", str(tmp_path))
    assert write().digest != first


@pytest.mark.parametrize(("old", "new", "message"), [
    ("[fabric]", "[fabric",
     "four.toml: not valid TOML: Expected ']' at the end of a table declaration (at line 6, column 8)"),
    ("num_nodes = 1", "num_node = 1", "four.toml: num_nodes: expected a value, got nothing"),
    ("num_nodes = 1", "num_nodes = 1\nnodes = 1", "four.toml: nodes: no such key (remove it or check its spelling)"),
    ("devices_per_node = 4", "devices_per_node = 0", "four.toml: devices_per_node: expected a number >= 1, got 0"),
    ("devices_per_node = 4", "devices_per_node = '4'", "four.toml: devices_per_node: expected an integer, got '4'"),
    ("num_nodes = 1", "num_nodes = 2",
     "four.toml: num_nodes: expected 1: an nvswitch fabric joins the devices of one node, got 2"),
    (FABRIC, "", "four.toml: fabric: expected a [fabric] table that joins the devices, got nothing"),
    ('kind = "nvswitch"', 'kind = "nvlink"', "four.toml: fabric.kind: expected one of none or nvswitch, got 'nvlink'"),
    ("value = 450.0", "value = '450GB'", "four.toml: fabric.link_gb_per_s.value: expected a number > 0, got '450GB'"),
    ('"datasheet", source = "s"', '"datasheet", source = "t"',
     "four.toml: fabric.link_gb_per_s.source: expected one of [sources]: s, got 't'"),
])
def test_one_line_errors(write, old, new, message):
    with pytest.raises(ConfigError) as caught:
        write(old, new)
    assert str(caught.value) == message


def test_several_devices_without_anything_between_them(write):
    """``kind = "none"`` is for one device: eight of them would exchange tokens over nothing."""
    with pytest.raises(ConfigError, match=r"^four.toml: fabric"):
        write('kind = "nvswitch"', 'kind = "none"')


def test_unknown_device_of_a_cluster(write):
    with pytest.raises(UnknownNameError, match=r"unknown profile 'h100-smx': did you mean h100-sxm"):
        write('profile = "h100-sxm"', 'profile = "h100-smx"')


def test_unknown_cluster_comes_with_near_ones():
    with pytest.raises(UnknownNameError, match=r"^unknown cluster 'hgx-h100-9': did you mean hgx-h100-8"):
        load_cluster("hgx-h100-9")


def test_a_misspelt_device_is_told_the_device():
    """A device's name stands for that device alone, so the near matches are devices too."""
    with pytest.raises(UnknownNameError, match=r"^unknown cluster 'h100-smx': did you mean .*h100-sxm"):
        load_cluster("h100-smx")


def test_name_of_a_device_is_that_device_alone():
    alone = load_cluster("h100")
    assert (alone.name, alone.num_devices, alone.fabric) == ("h100-sxm", 1, "none")
    assert alone.digest == single_device(load_profile("h100-sxm")).digest


def test_a_layout_must_use_all_devices(hgx):
    check_devices(hgx, 8, "parallelism: ep x tp")
    with pytest.raises(ConfigError, match=r"^parallelism: ep x tp: expected the 8 devices of hgx-h100-8, got 4$"):
        check_devices(hgx, 4, "parallelism: ep x tp")


@pytest.mark.parametrize("name", configfile.names("clusters"))
def test_shipped_clusters_load_and_every_number_has_kind_and_source(name):
    path = configfile.find("clusters", name)
    file = configfile.parse(path.read_text(encoding="utf-8"), ClusterFile, path.name)
    cluster = load_cluster(name)
    assert cluster.num_devices == file.num_nodes * file.devices_per_node
    for key, quantity in configfile.quantities(file):
        assert quantity.kind in get_args(Kind), key
        assert file.sources[quantity.source].title, key
    if cluster.num_devices > 1:
        assert 1e9 < cluster.link_bytes_per_s < 1e13
        assert configfile.find("calibration", cluster.fabric_calibration).is_file()
    for alias in file.aliases:
        assert load_cluster(alias).name == name
