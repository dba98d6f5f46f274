"""No password is printed, wherever it stands in an address."""

import pytest

from moesim.cli.root import app
from moesim.cli.script import run_command
from moesim.files.addresses import masked_text, without_password

ADDRESSES = [
    "postgresql://user:hunter2@host/db",
    "postgresql://user:hunter2@p@host/db",
    "postgresql://user:hun/ter2@host/db",
    "postgresql://user:hunter2?x@host/db",
    "postgresql://host/db?user=u&password=hunter2",
    "postgresql://host/db?sslpassword=hunter2&x=1",
    "mysql+pymysql://:hunter2@host",
    "redis://user:hunter2@host",
    "tcp://user:hunter2@host:8786",
    "user:hunter2@host/db",
    "http://host/?access_token=hunter2",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_password_is_masked(address):
    for shown in (without_password(address), masked_text(f"at {address}")):
        assert "hunter2" not in shown or "://" not in address
        assert "ter2" not in without_password(address)
        assert "host" in shown
        assert "***" in shown or "://" not in address


@pytest.mark.parametrize(
    "plain",
    ["postgresql://user@host/db", "dask://host:8786", "sqlite:///a.db", "a/folder", "x?y=1"],
)
def test_what_has_none_stays(plain):
    assert without_password(plain) == plain


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("command", [("study", "worker", "--storage"), ("study", "status")])
def test_no_command_prints_it(address, command, capsys, tmp_path, monkeypatch):
    if address.startswith(("postgresql", "mysql", "redis", "http")) and "host" in address:
        address = f"no{address}"  # no driver, and so no waiting for a server
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: app([*command, address]))
    said = capsys.readouterr()
    assert ended.value.code in (2, 3)
    assert "ter2" not in said.out + said.err
    assert len(said.err.splitlines()) == 1
