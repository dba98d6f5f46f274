"""The notebook runs from its first cell to its last."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parent.parent.parent / "studies" / "tour.ipynb"


@pytest.mark.full
def test_the_tour_runs(tmp_path):
    book = nbformat.read(TOUR, as_version=4)
    assert all(not cell.get("outputs") for cell in book.cells), "kept without outputs"
    done = NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [cell for cell in done.cells if cell.cell_type == "code"]
    assert len(shown) >= 8
    said = "".join(out.get("text", "") for cell in shown for out in cell.outputs)
    assert "Build:" in said
    kinds = {kind for cell in shown for out in cell.outputs for kind in out.get("data", {})}
    assert {"text/html", "application/vnd.plotly.v1+json"} <= kinds
