"""The notebooks are what their sources say, and they run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
SOURCES = sorted((FOLDER / "src").glob("*.py"))

jupytext = pytest.importorskip("jupytext", reason="pip install 'lmkit[notebooks]'")


@pytest.fixture
def builder():
    spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_source_has_a_notebook_and_every_notebook_a_source():
    assert {s.stem for s in SOURCES} == {p.stem for p in FOLDER.glob("*.ipynb")}


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_a_notebook_is_what_its_source_says(builder, source):
    product = FOLDER / f"{source.stem}.ipynb"
    assert product.read_text(encoding="utf-8") == builder.build(source), "run `make notebooks`"


def test_drift_is_noticed(builder, tmp_path, monkeypatch, capsys):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("# %%\n1 + 1\n")
    monkeypatch.setattr(builder, "HERE", tmp_path)
    assert builder.main([]) == 0
    assert builder.main(["--check"]) == 0
    (tmp_path / "src" / "a.py").write_text("# %%\n1 + 2\n")
    assert builder.main(["--check"]) == 1
    assert "a.ipynb" in capsys.readouterr().err


#: Those that take up to half a minute, though shortened.
LONG = (
    "02_objectives",
    "03_parameter_efficient_tuning",
    "04_distillation",
    "05_compression",
    "06_augmentation",
    "07_multi_task",
)


@pytest.mark.parametrize(
    "source",
    [pytest.param(s, marks=pytest.mark.slow if s.stem in LONG else ()) for s in SOURCES],
    ids=[s.stem for s in SOURCES],
)
def test_a_notebook_runs(source, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    for name, value in {"LMKIT_STEPS": "4", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    # Jupyter keeps its sockets' files in the home folder, which a test must leave alone.
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    # The kernel runs in another folder, where an lmkit that is not installed is not found.
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    notebook = nbformat.read(FOLDER / f"{source.stem}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
