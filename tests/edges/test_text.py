"""Text that comes from files and names is text: to a shell, a terminal and a spreadsheet."""

import csv
import shlex
import subprocess

import pytest

from moesim import Workload, load_cluster, simulate
from moesim.errors import ConfigError, one_line, printable, shown
from moesim.measured.winners import read_winners
from moesim.report import write_csv
from moesim.report.tables import escaped, unescaped
from moesim.report.terminal import print_table, say
from moesim.routing import RoutingSpec
from moesim.search.session.export import launch_lines
from moesim.serving.launch import Deployment, _words
from moesim.simulation.prepare import prepare

HOSTILE = [
    "a\ntouch PWNED",
    "a\r\ntouch PWNED",
    "$(touch PWNED)",
    "`touch PWNED`",
    "'; touch PWNED; '",
    "$MODEL; touch PWNED",
    "a\u2028touch PWNED",
    "-x && touch PWNED",
]


@pytest.fixture(scope="module")
def deployed(hgx, make_candidate):
    candidate = make_candidate()
    workload = Workload(num_tokens_per_device=32, phase="decode")
    result = simulate(candidate, hgx, workload)
    return Deployment(
        candidate=candidate,
        cluster=hgx,
        placement=prepare(candidate, hgx, workload).placement,
        row=result.row(),
        num_layers=1,
    )


@pytest.mark.parametrize("engine", ["sglang", "vllm", "trtllm"])
def test_no_name_becomes_a_command(deployed, engine, tmp_path):
    """The script runs in a shell in which every program only prints its arguments."""
    for number, text in enumerate(HOSTILE):
        row = deployed.row | {"routing": text, "kernels": text}
        other = Deployment(
            candidate=deployed.candidate,
            cluster=deployed.cluster,
            placement=deployed.placement,
            row=row,
            num_layers=1,
        )
        try:
            lines = launch_lines(other, engine, text, text)
        except ConfigError as error:
            lines = [f"echo {shlex.quote(str(error))}"]
        programs = "python3() { :; }; vllm() { :; }; trtllm_serve() { :; }; alias trtllm-serve=:\n"
        script = tmp_path / f"{number}.sh"
        script.write_text(programs + "\n".join(lines))
        subprocess.run(["sh", script.name], cwd=tmp_path, capture_output=True, check=False)
    assert not (tmp_path / "PWNED").exists()


def test_flags_of_files_are_words():
    assert _words('--a {"x":1}') == "--a '{x:1}'"
    assert _words("--a 1; rm x") == "--a '1;' rm x"
    for text in ("--a 'open", "--a\nrm"):
        with pytest.raises(ConfigError, match="launch: expected flags"):
            _words(text)


@pytest.mark.parametrize(
    "text", ["power_law:1.2\n", "trace:a\nb", "uniform\x1b[2J", "zipf:1\u2028"]
)
def test_a_routing_with_control_characters_is_refused(text):
    with pytest.raises(ConfigError, match="routing: expected a text without control") as error:
        RoutingSpec.parse(text)
    assert str(error.value).isprintable()


def test_a_cluster_with_control_characters_in_its_name_is_refused(tmp_path):
    (tmp_path / "a\nb.toml").write_text("")
    with pytest.raises(ConfigError, match="expected a name that prints") as error:
        load_cluster(str(tmp_path / "a\nb.toml"))
    assert "\n" not in str(error.value)


def test_a_terminal_gets_no_commands(capsys):
    text = "\x1b[31mred\x07 [bold]x[/bold] :smile: \u202eabc \x9b2J"
    print_table(text, [{"a": text}], ["a"])
    say(text)
    out, err = capsys.readouterr()
    for printed in (*out.splitlines(), *err.splitlines()):
        assert printed.isprintable()
    assert "[bold]x[/bold] :smile:" in out
    assert "[bold]x[/bold] :smile:" in err


def test_errors_are_one_short_line():
    assert one_line("a\nb\x1b[2J") == r"a\nb\x1b[2J"
    long = one_line("begin " + "x" * 3_000_000 + " end")
    assert len(long) <= 300
    assert long.startswith("begin")
    assert long.endswith(" end")
    for value in (
        "x" * 3_000_000,
        10**6000,
        list(range(1000)),
        {"a": "y" * 999},
        "\x1b",
        [10**6000],
    ):
        assert len(shown(value)) <= 130
        assert shown(value).isprintable()
    assert printable("Größe") == "Größe"


FORMULAS = [
    "=1+1",
    "+cmd",
    "-cmd|x",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "'=1",
    "''",
    "'",
    "plain",
    "-",
]


def test_a_spreadsheet_gets_no_formulas(tmp_path):
    path = write_csv(tmp_path / "t.csv", [{"n": n, "=x": text} for n, text in enumerate(FORMULAS)])
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["n", "'=x"]
    for (_, cell), text in zip(rows, FORMULAS, strict=True):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert unescaped(cell) == text
    assert [escaped(text) for text in ("-1.5", "+3", "-inf")] == ["-1.5", "+3", "-inf"]
    assert write_csv(tmp_path / "n.csv", [{"x": -1.5}]).read_text() == "x\n-1.5\n"


def test_winners_are_read_back(hgx, make_candidate, tmp_path):
    result = simulate(make_candidate(), hgx, Workload(num_tokens_per_device=32, phase="decode"))
    path = write_csv(tmp_path / "winners.csv", [result.row()])
    assert read_winners(path)[0].candidate == make_candidate()
