"""``moesim bench alltoall``: what it prints, that its figures are those of the fabric, and one line
for bad input.
"""

import json
import subprocess
import sys

import pytest

from moesim.cli import main

KEYS = {
    "cluster",
    "num_devices",
    "engine",
    "granularity",
    "routing",
    "bytes_per_pair",
    "time_us",
    "events",
    "wall_s",
    "build_s",
    "peak_memory_bytes",
}
MB = 1e6


@pytest.fixture
def bench(capsys, monkeypatch):
    """Run the command; returns (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["moesim", "bench", "alltoall", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return call


def values(bench, *arguments):
    code, out, err = bench("--json", *arguments)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
    return json.loads(out)


@pytest.mark.parametrize("engine", ["bound", "flow", "event", "event_compiled"])
@pytest.mark.parametrize(
    ("cluster", "expected_us"),
    [
        ("star-16", 15 * MB / 450e9 * 1e6),
        ("rail-4x4", 12 * MB / 50e9 * 1e6),
    ],
)
def test_even_bytes_take_what_the_busiest_port_takes(bench, engine, cluster, expected_us):
    found = values(bench, "--cluster", cluster, "--engine", engine, "--bytes-per-pair", "1e6")
    assert set(found) == KEYS
    assert found["num_devices"] == 16
    assert found["granularity"] == ("pair" if engine.startswith("event") else "device")
    assert found["time_us"] == pytest.approx(expected_us, rel=0.05)
    assert found["events"] == (0 if engine == "bound" else 16 * 15) or engine == "flow"
    assert found["wall_s"] > 0
    assert found["build_s"] > 0
    assert found["peak_memory_bytes"] > 10 * MB


def test_a_torus_by_name(bench):
    found = values(bench, "--cluster", "torus-4x4", "--bytes-per-pair", "1e8", "--engine", "bound")
    assert found["time_us"] == pytest.approx(256 * 1e8 * 4 / (4 * 200e9 * 16) * 1e6, rel=0.01)


def test_skew_takes_longer_and_seeds_differ_in_who_is_hot_only(bench):
    even, zipf = (
        values(bench, "--cluster", "star-16", "--bytes-per-pair", "1e6", "--routing", routing)[
            "time_us"
        ]
        for routing in ("uniform", "zipf:0.8")
    )
    other = values(
        bench,
        "--cluster",
        "star-16",
        "--bytes-per-pair",
        "1e6",
        "--routing",
        "zipf:0.8",
        "--seed",
        "5",
    )
    assert zipf > 1.5 * even
    assert other["time_us"] == pytest.approx(zipf, rel=1e-3)


def test_order_and_window_of_pairs(bench):
    options = (
        "--cluster",
        "star-16",
        "--bytes-per-pair",
        "1e6",
        "--engine",
        "event_compiled",
        "--window",
        "1",
    )
    rotated, naive = (
        values(bench, *options, "--order", order)["time_us"] for order in ("rotated", "naive")
    )
    assert naive > 1.6 * rotated


def test_flow_takes_a_granularity_and_a_tolerance(bench):
    options = ("--cluster", "rail-2x4", "--bytes-per-pair", "1e6", "--routing", "power_law:1.2")
    device, pair, loose = (
        values(bench, *options, *more)
        for more in ((), ("--granularity", "pair"), ("--tolerance", "1e-3"))
    )
    assert (device["granularity"], pair["granularity"]) == ("device", "pair")
    assert pair["time_us"] == pytest.approx(device["time_us"], rel=0.1)
    assert loose["time_us"] == pytest.approx(device["time_us"], rel=0.01)


def test_chunks_are_events(bench):
    options = (
        "--cluster",
        "star-8",
        "--bytes-per-pair",
        "1e6",
        "--engine",
        "event_compiled",
        "--chunks",
    )
    assert [values(bench, *options, chunks)["events"] for chunks in ("1", "3")] == [56, 168]


def test_without_json_a_line_each(bench):
    code, out, _ = bench("--cluster", "star-4", "--bytes-per-pair", "1e6")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} == KEYS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cluster", "star-0"), "unknown cluster 'star-0'"),
        (
            ("--cluster", "h100-sxm"),
            "--cluster: expected at least two devices, got h100-sxm with one",
        ),
        (("--cluster", "star-8", "--engine", "magic"), "unknown engine 'magic'"),
        (("--cluster", "star-8", "--routing", "zipf"), "routing: expected 'uniform', 'zipf:ALPHA'"),
        (
            ("--cluster", "star-8", "--granularity", "atom"),
            "--granularity: expected device or pair, got 'atom'",
        ),
        (
            ("--cluster", "star-8", "--order", "random"),
            "--order: expected rotated or naive, got 'random'",
        ),
        (
            ("--cluster", "star-200000", "--engine", "flow"),
            "200000 devices at device granularity would take",
        ),
        (
            ("--cluster", "star-100000", "--engine", "event_compiled"),
            "100000 devices at pair granularity would take",
        ),
        (
            ("--cluster", "star-99999999999", "--engine", "bound"),
            "devices_per_node: expected a number <= 1.04858e+06, got 99999999999",
        ),
        (
            ("--cluster", "torus-100000x100000", "--engine", "bound"),
            "devices_per_node: expected a number <= 1.04858e+06, got 10000000000",
        ),
    ],
)
def test_bad_input_is_one_line(bench, arguments, message):
    code, out, err = bench("--bytes-per-pair", "1e6", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cluster", "star-8", "--bytes-per-pair", "-1"),
        ("--cluster", "star-8", "--bytes-per-pair", "nan"),
        ("--cluster", "star-8", "--bytes-per-pair", "inf"),
        ("--cluster", "star-8", "--bytes-per-pair", "1e6", "--chunks", "0"),
        ("--cluster", "star-8", "--bytes-per-pair", "1e6", "--window", "-1"),
        ("--cluster", "star-8", "--bytes-per-pair", "1e6", "--seed", "-1"),
        ("--cluster", "star-8", "--bytes-per-pair", "1e6", "--tolerance", "nan"),
        ("--cluster", "star-8"),
    ],
)
@pytest.mark.parametrize("engine", ["bound", "flow", "event_compiled"])
def test_bad_numbers_exit_with_2(bench, arguments, engine):
    code, out, err = bench("--engine", engine, *arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_refusal_for_lack_of_memory_comes_before_any_of_it_is_taken():
    """With the figure, at once, and without the matrix of pairs that it speaks of: 8 x
    10^10 bytes.
    """
    script = (
        "import resource; from moesim.cli import main; "
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); main()"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "bench",
            "alltoall",
            "--cluster",
            "star-100000",
            "--bytes-per-pair",
            "1e6",
            "--engine",
            "flow",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "GiB" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
