"""Run moesim as a user does, with the interpreter that runs this script and what is installed for
it: in an empty folder, ``python smoke.py STUDY.toml``.

Every command must work; where a package is missing, what needs it must say how to install it in one
line, with exit code 2. Prints a line for each command, and the versions at the end.
"""

import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

LOAD = ["--isl", "128", "--osl", "16", "--slo", "ttft<=2s,tpot<=50ms"]
NODE = ["--cluster", "hgx-h100-8"]
LOADS_NOTHING = "import moesim, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
#: packages whose versions matter
NAMED = ("moesim", "numpy", "numba", "pandas", "pydantic", "optuna", "torch", "triton")


def works(study):
    """Commands that need nothing but what moesim cannot do without."""
    return [
        ["doctor"],
        ["profiles", "list"],
        ["simulate", "--preset", "mixtral-8x7b", *NODE, "--tokens", "1024", "--trace", "t.json"],
        ["recommend", "--model", "mixtral-8x7b", *NODE, *LOAD],
        ["study", "run", study, "--trials", "30", "--confirm", "2", "--out", "out"],
        ["study", "status", "out"],
        ["study", "export", "out", "--out", "map.json"],
        ["report", "out", "--out", "report.html"],
    ]


def needs(study):
    """Package -> commands that need it."""
    short = ["study", "run", study, "--trials", "6"]
    compiled = ["kernels", "compile", "--targets", "sm_90", "--kernel", "outer gate up"]
    return {
        "torch": [
            ["measure", "--device", "cpu", "--seconds", "0.5", "--out", "local.toml"],
            [*short, "--sampler", "gp", "--confirm", "0", "--out", "gp"],
        ],
        "triton": [[*compiled, "--out", "c.csv"]],
        "matplotlib": [["report", "out", "--out", "report.html", "--figures", "figures"]],
        "pyarrow": [["simulate", "--preset", "mixtral-8x7b", "--routing", "trace:t.parquet"]],
        "distributed": [[*short, "--executor", "dask://127.0.0.1:9", "--out", "dask"]],
        "psycopg": [["study", "status", "postgresql://nobody@127.0.0.1:9/none"]],
        "aiconfigurator_core": [["validate", "kernels"]],
    }


#: packages with which their commands run here, without a server, a file or minutes
QUICK = ("torch", "triton", "matplotlib")


def run(words):
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "moesim", *words], capture_output=True, text=True, timeout=300
    )
    print(f"{time.monotonic() - begun:6.1f} s  exit {done.returncode}  moesim {' '.join(words)}")
    return done


def main(study):
    """Run everything; the exit code says whether all of it did what it should."""
    Path("t.parquet").write_text("x")
    subprocess.run([sys.executable, "-c", LOADS_NOTHING], check=True)
    wrong = []
    for words in works(study):
        done = run(words)
        if done.returncode or "Traceback" in done.stderr:
            wrong.append(f"{words}: {done.stderr[-2000:]}")
    for package, commands in needs(study).items():
        there = find_spec(package) is not None
        for words in commands if not there or package in QUICK else ():
            done = run(words)
            said = done.stderr.splitlines()[-1:]
            print(*said)
            hints = done.returncode == 2 and "pip install" in "".join(said)
            if "Traceback" in done.stderr or not (done.returncode == 0 if there else hints):
                wrong.append(f"{words}: {done.stderr[-2000:]}")
    versions = {}
    for name in NAMED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    print(f"Python {sys.version.split()[0]}:", *(f"{k} {v}" for k, v in versions.items()))
    print(*wrong, sep="\n", file=sys.stderr)
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
