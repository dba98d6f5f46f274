"""Clusters: what joins their devices, one-line errors, and the shipped ones."""

from typing import get_args

import numpy as np
import pytest

from moesim.costs.comm.choose import exchange_kernel
from moesim.errors import ConfigError, UnknownNameError
from moesim.files import toml
from moesim.files.toml import Kind
from moesim.hardware import ClusterFile, check_devices, load_cluster, load_profile, single_device
from moesim.hardware.fabric import fabric_of, relative_rates
from moesim.hardware.routes import link_bytes
from moesim.hardware.sizing import sized

CLUSTER = """
title = "Four of them"
profile = "h100-sxm"
num_nodes = 1
devices_per_node = 4
[scale_up]
kind = "switch"
link_gb_per_s = {value = 450.0, kind = "datasheet", source = "s"}
[sources.s]
title = "A datasheet"
"""
FABRIC = CLUSTER[CLUSTER.index("[scale_up]") : CLUSTER.index("[sources.s]")]


@pytest.fixture
def write(tmp_path):
    def make(old="", new=""):
        assert old in CLUSTER
        (tmp_path / "four.toml").write_text(CLUSTER.replace(old, new) if old else CLUSTER)
        return load_cluster(str(tmp_path / "four.toml"))

    return make


def test_cluster(write):
    four = write()
    assert (four.name, four.num_devices, four.file.scale_up.kind, four.link_bytes_per_s) == (
        "four",
        4,
        "switch",
        450e9,
    )
    assert four.profile is load_profile("h100-sxm")
    assert four.provenance == {"scale_up.link_gb_per_s": ("datasheet", "s")}


def test_the_digest_changes_with_cluster_and_with_device(write, tmp_path, monkeypatch):
    first = write().digest
    assert write("value = 450.0", "value = 451.0").digest != first
    shipped = toml.find("devices", "h100-sxm").read_text()
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "h100-sxm.toml").write_text(shipped + "\n# changed\n")
    monkeypatch.setenv("MOESIM_PROFILES", str(tmp_path))
    assert write().digest != first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[scale_up]",
            "[scale_up",
            (
                "four.toml: not valid TOML: Expected ']' at the end of a table declaration (at "
                "line 6, column 10)"
            ),
        ),
        ("num_nodes = 1", "num_node = 1", "four.toml: num_nodes: expected a value, got nothing"),
        (
            "num_nodes = 1",
            "num_nodes = 1\nnodes = 1",
            "four.toml: nodes: no such key (remove it or check its spelling)",
        ),
        (
            "devices_per_node = 4",
            "devices_per_node = 0",
            "four.toml: devices_per_node: expected a number >= 1, got 0",
        ),
        (
            "devices_per_node = 4",
            "devices_per_node = '4'",
            "four.toml: devices_per_node: expected an integer, got '4'",
        ),
        (
            "num_nodes = 1",
            "num_nodes = 2",
            "four.toml: scale_out: expected a [scale_out] table that joins the nodes, got nothing",
        ),
        (
            FABRIC,
            "",
            (
                "four.toml: scale_up: expected a [scale_up] table that joins the devices of a "
                "node, got nothing"
            ),
        ),
        (
            'kind = "switch"',
            'kind = "nvlink"',
            "four.toml: scale_up.kind: expected one of switch, mesh, pcie or torus, got 'nvlink'",
        ),
        (
            'kind = "switch"',
            'kind = "torus"',
            "four.toml: scale_up.axes: expected the size of every axis, such as [4, 4, 8], got []",
        ),
        (
            'kind = "switch"',
            'kind = "torus"\naxes = [2, 3]',
            (
                "four.toml: scale_up.axes: expected axes that multiply to devices_per_node = 4, "
                "got 2x3 = 6"
            ),
        ),
        (
            'kind = "switch"',
            'kind = "torus"\naxes = [2, 2]\ntwisted = true',
            "four.toml: scale_up.axes: expected k x k x 2k for a twisted torus, got [2, 2]",
        ),
        (
            'kind = "switch"',
            'kind = "pcie"',
            (
                "four.toml: scale_up.devices_per_switch: expected it and uplink_gb_per_s for "
                "pcie, got nothing"
            ),
        ),
        (
            "value = 450.0",
            "value = 0.0",
            "four.toml: scale_up.link_gb_per_s.value: expected a number > 0, got 0.0",
        ),
        (
            "value = 450.0",
            "value = -1.0",
            "four.toml: scale_up.link_gb_per_s.value: expected a number > 0, got -1.0",
        ),
        (
            'profile = "h100-sxm"\n',
            "",
            "four.toml: profile: expected either a profile or [[groups]], got neither",
        ),
        (
            "value = 450.0",
            "value = '450GB'",
            "four.toml: scale_up.link_gb_per_s.value: expected a number > 0, got '450GB'",
        ),
        (
            '"datasheet", source = "s"',
            '"datasheet", source = "t"',
            "four.toml: scale_up.link_gb_per_s.source: expected one of [sources]: s, got 't'",
        ),
    ],
)
def test_one_line_errors(write, old, new, message):
    with pytest.raises(ConfigError) as caught:
        write(old, new)
    assert str(caught.value) == message


def test_unknown_device_of_a_cluster(write):
    with pytest.raises(
        UnknownNameError, match=r"unknown profile 'h100-smx': did you mean h100-sxm"
    ):
        write('profile = "h100-sxm"', 'profile = "h100-smx"')


def test_unknown_cluster_comes_with_near_ones():
    with pytest.raises(
        UnknownNameError, match=r"^unknown cluster 'hgx-h100-9': did you mean hgx-h100-8"
    ):
        load_cluster("hgx-h100-9")


def test_a_misspelt_device_is_told_the_device():
    """A device's name stands for that device alone, so the near matches are devices too."""
    with pytest.raises(
        UnknownNameError, match=r"^unknown cluster 'h100-smx': did you mean .*h100-sxm"
    ):
        load_cluster("h100-smx")


def test_name_of_a_device_is_that_device_alone():
    alone = load_cluster("h100")
    assert (alone.name, alone.num_devices, alone.file.scale_up) == ("h100-sxm", 1, None)
    assert alone.digest == single_device(load_profile("h100-sxm")).digest


def test_a_layout_must_use_all_devices(hgx):
    check_devices(hgx, 8, "parallelism: ep x tp")
    with pytest.raises(
        ConfigError, match=r"^parallelism: ep x tp: expected the 8 devices of hgx-h100-8, got 4$"
    ):
        check_devices(hgx, 4, "parallelism: ep x tp")


@pytest.mark.parametrize("name", toml.names("clusters"))
def test_shipped_clusters_load_and_every_number_has_kind_and_source(name):
    path = toml.find("clusters", name)
    file = toml.parse(path.read_text(encoding="utf-8"), ClusterFile, path.name)
    cluster = load_cluster(name)
    assert cluster.num_devices == file.num_nodes * file.devices_per_node
    for key, quantity in toml.quantities(file):
        assert quantity.kind in get_args(Kind), key
        assert file.sources[quantity.source].title, key
    assert 1e9 < cluster.link_bytes_per_s < 1e13
    assert exchange_kernel(cluster, cluster.exchange()).level in (
        "calibrated",
        "few_shot",
        "spec_sheet",
        "none",
    )
    bytes_SD = 1.0 - np.eye(cluster.num_devices)
    assert (link_bytes(fabric_of(cluster), bytes_SD) >= 0).all()
    for alias in file.aliases:
        assert load_cluster(alias).name == name


def test_a_cluster_varied_in_code(hgx):
    faster = hgx.with_(nvlink_gb_per_s=900.0)
    assert faster.link_bytes_per_s == 900e9
    assert faster.provenance["scale_up.link_gb_per_s"] == ("assumed", "what-if")
    assert faster.digest != hgx.digest
    larger = load_cluster("h100-rail-8x8").with_(num_nodes=16, oversubscription=2.0)
    assert larger.num_devices == 128
    assert "leaf_up" in dict(fabric_of(larger).runs)
    assert load_cluster("tpu-v5p-4x4x4").with_(axes=[4, 8, 8]).num_devices == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"links": 3}, "cluster.with_: expected one of .*, got 'links'"),
        (
            {"nic_gb_per_s": 50.0},
            r"cluster.with_: nic_gb_per_s: expected a cluster with \[scale_out\], got hgx-h100-8",
        ),
        ({"axes": 4}, "cluster.with_: axes: expected a list of integers, got 4"),
        ({"axes": [2.5, 4]}, r"cluster.with_: axes: expected a list of integers, got \[2.5, 4\]"),
        (
            {"scale_up_gb_per_s": -1.0},
            (
                "cluster.with_: scale_up_gb_per_s: expected a number > 0 or a factor such as "
                ".2x., got -1.0"
            ),
        ),
        (
            {"num_nodes": 2},
            (
                r"cluster.with_: scale_out: expected a \[scale_out\] table that joins the nodes, "
                r"got nothing"
            ),
        ),
    ],
)
def test_refused_variations(hgx, changes, message):
    with pytest.raises(ConfigError, match=message):
        hgx.with_(**changes)


def test_short_names():
    assert load_cluster("star-24").num_devices == 24
    assert load_cluster("rail-3x4").num_devices == 12
    assert load_cluster("rail-3x4").devices_per_domain == 4
    assert load_cluster("torus-2x3x4").file.scale_up.axes == [2, 3, 4]
    with pytest.raises(UnknownNameError):
        load_cluster("star-0")


def test_mixed_clusters_have_devices_of_both_kinds():
    mixed = load_cluster("mixed-h100-b200")
    assert [(profile.name, count) for profile, count in mixed.groups] == [
        ("h100-sxm", 32),
        ("b200-sxm", 32),
    ]
    egress = dict(fabric_of(mixed).runs)["egress"]
    assert (egress[0], egress[-1]) == (450e9, 900e9)


def test_axes_that_do_not_fit_come_with_the_way_out():
    """Which exists and works."""
    plain, twisted = load_cluster("tpu-v4-4x4x8"), load_cluster("tpu-v4-4x4x8-twisted")
    with pytest.raises(ConfigError, match=r"; cluster.with_\(axes=\[...\]\) sets axes and dev"):
        plain.with_(devices_per_node=64)
    assert plain.with_(axes=[4, 4, 4]).num_devices == 64
    with pytest.raises(ConfigError, match=r"cluster.with_\(axes=\[...\], twisted=False\)"):
        twisted.with_(axes=[4, 4, 4])
    assert twisted.with_(axes=[4, 4, 4], twisted=False).num_devices == 64
    with pytest.raises(ConfigError, match=r"cluster.with_\(axes=\[...\], twisted=False\)"):
        sized(twisted, 24)
    assert sized(plain, 64).num_devices == 64


def test_a_device_file_is_a_cluster_of_one_or_of_several(tmp_path):
    path = tmp_path / "mine.toml"
    text = toml.find("devices", "h100-sxm").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    alone = load_cluster(str(path))
    assert (alone.name, alone.num_devices, alone.scale_up_kind) == ("mine", 1, None)
    several = sized(alone, 4)
    assert several.num_devices == 4
    assert several.link_bytes_per_s == 64e9  # of the link to the host
    bare = text[: text.index("[host_link_gb_per_s]")] + text[text.index("[power_watt]") :]
    path.write_text(bare, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"states no host_link_gb_per_s .* with \[scale_up\]"):
        sized(load_cluster(str(path)), 4)


def test_paths_in_a_cluster_file_begin_at_its_folder(tmp_path, monkeypatch):
    text = toml.find("devices", "h100-sxm").read_text(encoding="utf-8")
    cluster = toml.find("clusters", "hgx-h100-8").read_text(encoding="utf-8")
    cluster = cluster.replace('profile = "h100-sxm"', 'profile = "chips/mine.toml"')
    digests = []
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "chips").mkdir(parents=True)
        (folder / "chips" / "mine.toml").write_text(text, encoding="utf-8")
        (folder / "node.toml").write_text(cluster, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        found = load_cluster(f"{name}/node.toml")
        assert found.profile.name == "mine"
        monkeypatch.chdir(folder)
        assert load_cluster("node.toml").digest == found.digest
        # changes in code look there, too
        monkeypatch.chdir("/")
        assert found.with_(devices_per_node=4).num_devices == 4
        digests.append(found.digest)
    # what the numbers say does not depend on where the files lie
    assert digests[0] == digests[1]


def test_groups_of_a_mixed_cluster_have_ports_of_their_own():
    near_D, far_D = relative_rates(load_cluster("mixed-h100-b200"))
    assert near_D.tolist() == [1.0] * 32 + [2.0] * 32
    assert far_D.tolist() == [1.0] * 64
