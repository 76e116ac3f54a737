"""No network, one thread, a folder of its own and a known seed for every test."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    TOKENIZERS_PARALLELISM="false",
    JSONARGPARSE_DEPRECATION_WARNINGS="off",
    CUDA_VISIBLE_DEVICES="",
    OMP_NUM_THREADS="1",  # of the processes that tests start
)

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_place(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Run each test in an empty folder, and leave environment and seed as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    kept = dict(os.environ)
    torch.manual_seed(0)
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the real data sets; the test is skipped where it is absent."""
    folder = Path(os.environ.get("LMKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set LMKIT_DATA")
    return folder
