"""The notebooks of the courses: stored with their results, and still running."""

import os
import re
import sys
from pathlib import Path

import pytest

import dlops

ROOT = Path(dlops.__file__).parent.parent
FOLDER = ROOT / "dlops/courses/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SIZE = 1_000_000
# of whoever executed it: home and temporary folders, virtual environments, Windows drives
LOCAL = re.compile(r"/(home|root|Users|tmp|work|mnt|content|opt|var)/|site-packages|\.venv|[A-Z]:\\\\")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


def ran(notebook):
    """Cells of code that are more than comments."""
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [c for c in codes if any(line.strip() and not line.startswith("#") for line in c.source.splitlines())]


def errors(notebook):
    return [output for cell in ran(notebook) for output in cell.outputs if output.output_type == "error"]


def test_there_is_one():
    assert NOTEBOOKS


def test_stored_results_are_whole(notebook):
    """Every cell ran once, from the first to the last, in a fresh kernel, with no error and with pictures."""
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code" if cell.execution_count]
    assert counts == list(range(1, len(counts) + 1))
    assert all(cell.execution_count for cell in ran(notebook))
    assert not errors(notebook)
    pictures = [o for cell in ran(notebook) for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 5


def test_small_and_of_no_particular_machine(path, notebook):
    assert path.stat().st_size < SIZE
    for cell in notebook.cells:
        assert not cell.metadata, f"metadata of the execution: {cell.metadata}"
        texts = [cell.source]
        for output in cell.get("outputs", []):
            texts.append(output.get("text", ""))
            texts += [text for kind, text in output.get("data", {}).items() if kind != "image/png"]
        for text in texts:
            assert not LOCAL.search(text), f"a path of the machine: {LOCAL.search(text).group()!r} in {text[:200]!r}"
            assert "Warning" not in text and "WARNING" not in text
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.full
def test_runs(notebook, tmp_path, monkeypatch):
    """In an empty folder, with nothing but the package on the path."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs the notebooks")
    pytest.importorskip("ipykernel", reason="ipykernel runs the notebooks")
    for package in ("lightning", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises CellExecutionError, which shows the cell and its traceback
    assert not errors(notebook)
    assert all(cell.execution_count for cell in ran(notebook))
