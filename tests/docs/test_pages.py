"""Every command and snippet of README and docs runs; pages that follow from code and data do."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(bash|python)\n(.*?)^```$", re.S | re.M)
#: pages whose commands take five seconds and more
LONG = {
    "README.md",
    "tutorial.md",
    "index.md",
    "how-to/serve.md",
    "how-to/train.md",
    "how-to/operate.md",
    "how-to/search.md",
    "how-to/paper-figures.md",
}
#: pages whose output is looked at, in test_how_to.py
FOLLOWED = {"how-to/own-hardware.md", "how-to/own-trace.md", "how-to/timeline.md"}


def name_of(page):
    return str(page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT))


def blocks(page):
    return FENCE.findall(page.read_text(encoding="utf-8"))


def new_blocks(page):
    """The blocks of a page that no earlier page has: what is said twice runs once."""
    before = {block for other in PAGES[: PAGES.index(page)] for block in blocks(other)}
    return [block for block in blocks(page) if block not in before]


def run_block(kind, text, folder):
    """Run a block as a reader would: with the environment's commands first on the path."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": programs,
        "COLUMNS": "80",
        "MOESIM_HOME": str(folder / "home"),
    }
    words = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(
        words if kind == "bash" else [sys.executable, "-c", text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=name_of(p), marks=[pytest.mark.full] if name_of(p) in LONG else [])
        for p in PAGES
        if new_blocks(p) and name_of(p) not in FOLLOWED
    ],
)
def test_commands_and_snippets_of_a_page_run(page, tmp_path):
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    for kind, text in new_blocks(page):
        done = run_block(kind, text, tmp_path)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_readme_is_one_screen_with_a_picture():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    assert len(re.findall(r"!\[.+?\]\(.+?\)", text)) == 1
    for target in re.findall(r"\]\(([^)#:]+)", text):
        assert (ROOT / target).exists(), target


def test_make_targets_exist():
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    for page in PAGES:
        for command in re.findall(r"`?make (\w[\w-]*)`", page.read_text(encoding="utf-8")):
            assert command in targets, f"{name_of(page)}: make {command}"


def tool(name):
    """Load one of the scripts that write pages."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "script", "function"),
    [
        ("reference/csv.md", "reference", "columns_page"),
        ("reference/cli.md", "reference", "commands_page"),
        ("accuracy.md", "accuracy", "page"),
        ("performance.md", "performance", "page"),
    ],
)
def test_generated_pages_are_up_to_date(page, script, function):
    made = getattr(tool(script), function)()
    assert made == (DOCS / page).read_text(encoding="utf-8"), f"run python docs/tools/{script}.py"


@pytest.mark.full
def test_the_site_builds_without_a_warning(tmp_path):
    """mkdocs takes links to missing pages and anchors for errors; the pages ask no other host."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]+src=\"(https?:[^\"]+)", text)
        fetched += re.findall(
            r"<link[^>]+rel=\"(?:stylesheet|preload)\"[^>]+href=\"(https?:[^\"]+)", text
        )
        assert fetched == [], page
