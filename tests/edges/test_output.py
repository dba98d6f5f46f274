"""Output goes to what stands at a path, and never takes its place."""

import os
import stat
import threading

import pytest

from moesim.errors import ConfigError
from moesim.files.output import check_writable, write_file
from moesim.report import write_csv


def test_a_device_stays_a_device(tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.open("wb").close()
    except PermissionError:  # only root makes devices: a terminal is one that everybody has
        _, terminal = os.openpty()
        device = tmp_path / "terminal"
        device.symlink_to(os.ttyname(terminal))
    check_writable(device)
    write_csv(device, [{"a": 1}])
    assert stat.S_ISCHR(device.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == [device.name]


def test_a_fifo_is_written_through(tmp_path):
    fifo, text, got = tmp_path / "fifo", "x" * 200_000, []
    os.mkfifo(fifo)
    check_writable(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_text()))
    reader.start()
    write_file(fifo, text)
    reader.join(10)
    assert got == [text]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_followed(tmp_path, dangling):
    target, link = tmp_path / "target", tmp_path / "link"
    if not dangling:
        target.write_text("old")
    link.symlink_to("target")
    check_writable(link)
    assert target.exists() is not dangling
    write_file(link, "new")
    assert (link.is_symlink(), target.read_text(), len(list(tmp_path.iterdir()))) == (
        True,
        "new",
        2,
    )


def test_mode_and_owner_stay(tmp_path):
    path = tmp_path / "private"
    path.write_text("old")
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12346)
    before = path.stat()
    write_file(path, "new")
    after = path.stat()
    assert path.read_text() == "new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )


def test_a_new_file_obeys_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_file(tmp_path / "new", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_the_standard_output_is_no_file_to_replace(tmp_path, capfd):
    print("before")
    write_file(tmp_path.__class__("/dev/stdout"), "written\n")
    print("after")
    assert capfd.readouterr().out == "before\nwritten\nafter\n"


@pytest.mark.parametrize("name", ["loop", "n" * 300, "a\0b", "folder", "folder/../plain/x"])
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("x")
    before = sorted(path.name for path in tmp_path.iterdir())
    for act in (check_writable, lambda path: write_file(path, "text")):
        with pytest.raises(ConfigError, match="cannot write this file: ") as error:
            act(tmp_path / name)
        assert len(str(error.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
