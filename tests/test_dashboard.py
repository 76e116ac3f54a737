"""Every logger shows config, provenance, figures and tables; what it wrote is read back."""

import json
import struct
import time
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from lmkit.dashboard import _markdown, log_table
from tests.tiny_run import lmkit, write_config

CALLBACKS = [
    {"class_path": "EfficiencyCallback"},
    {"class_path": "SamplesCallback", "init_args": {"rows": 2}},
]


def fit_with(logger, tmp_path):
    write_config(tmp_path, max_steps=4, val_check_interval=2, callbacks=CALLBACKS, logger=logger)
    assert lmkit("fit -c tiny.yaml") == 0


def wandb_records(path):
    """The records of an offline run: a log of blocks, each with pieces of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, place, buffer = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        buffer += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(buffer)
            buffer = b""
            yield record


def test_wandb_gets_config_provenance_figures_and_tables(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    try:
        fit_with({"class_path": "WandbLogger", "init_args": {"project": "p"}}, tmp_path)
    finally:
        wandb.finish()
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records, deadline = [], time.monotonic() + 60
    # Another process writes the file, and on a busy machine it is not done yet.
    while not any(r.HasField("exit") for r in records) and time.monotonic() < deadline:
        time.sleep(0.2)
        records = list(wandb_records(path))
    config, history = {}, {}
    for record in records:
        for updates in (record.config, record.run.config):
            for item in updates.update:
                config[item.key or item.nested_key[0]] = json.loads(item.value_json)
        for item in record.history.item:
            name, *part = [item.key] if item.key else item.nested_key
            history.setdefault(name, {})[part[0] if part else ""] = json.loads(item.value_json)
    assert config["config"]["model"]["class_path"] == "lmkit.modules.MaskedLMModule"
    provenance = config["provenance"]
    assert {"git", "seed", "versions"} <= provenance.keys()
    assert provenance["data"]["fingerprint"]
    assert provenance["data"]["statistics"]
    assert provenance["parameters"]["trainable"] > 0
    assert {"train/loss", "val/loss", "efficiency/tokens_per_second"} <= history.keys()
    assert history["samples"]["_type"] == "table-file"
    assert history["samples"]["nrows"] == 2


def test_tensorboard_gets_figures_and_tables(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "board", "name": "a"}}
    fit_with(logger, tmp_path)
    events = EventAccumulator(str(tmp_path / "board" / "a" / "version_0"))
    events.Reload()
    tags = events.Tags()
    assert {"val/loss", "efficiency/tokens_per_second"} <= set(tags["scalars"])
    assert "samples/text_summary" in tags["tensors"]
    (text,) = events.Tensors("samples/text_summary")[0].tensor_proto.string_val
    assert text.decode().startswith("| masked | filled | original |")
    settings = yaml.safe_load((tmp_path / "board/a/version_0/hparams.yaml").read_text())
    assert {"config", "provenance"} <= settings.keys()


def test_mlflow_gets_config_figures_and_tables(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    # A database needs sqlalchemy, which mlflow-skinny does without.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    address = f"file:{tmp_path / 'mlruns'}"
    fit_with({"class_path": "MLFlowLogger", "init_args": {"tracking_uri": address}}, tmp_path)
    client = MlflowClient(address)
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert run.data.params["config/model/class_path"] == "lmkit.modules.MaskedLMModule"
    assert run.data.params["provenance/seed"] == "42"
    assert "val/loss" in run.data.metrics
    tables = [file.path for file in client.list_artifacts(run.info.run_id, "samples")]
    assert "samples/step_00000002.json" in tables


def test_csv_stands_beside_another_logger(tmp_path):
    fit_with(
        {"class_path": "CSVLogger", "init_args": {"save_dir": "own", "name": "mine"}}, tmp_path
    )
    assert Path("own/mine/version_0/metrics.csv").is_file()
    assert not Path("runs/tiny/csv").exists()


@pytest.fixture
def trainer(tmp_path):
    return Trainer(
        default_root_dir=tmp_path, logger=False, enable_checkpointing=False, accelerator="cpu"
    )


def test_a_table_keeps_its_cells_in_the_file(trainer, tmp_path):
    log_table(trainer, "a/b", ["x", "y"], [[1, [2, 3]], ["é", {"k": None}]], step=4)
    log_table(trainer, "a/b", ["x", "y"], [[5, 6]], step=8)
    lines = (tmp_path / "tables" / "a" / "b.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 4, "x": 1, "y": [2, 3]},
        {"step": 4, "x": "é", "y": {"k": None}},
        {"step": 8, "x": 5, "y": 6},
    ]


def test_a_row_of_another_length_is_refused(trainer, tmp_path):
    with pytest.raises(ValueError, match=r"columns \['x', 'y'\], but a row has 1 cells"):
        log_table(trainer, "a", ["x", "y"], [[1]])
    assert not (tmp_path / "tables").exists()


def test_only_rank_zero_writes(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    assert log_table(trainer, "a", ["x"], [[1]]) is None
    assert not (tmp_path / "tables").exists()


def test_markdown_keeps_bars_and_lines_within_a_cell():
    assert _markdown(["a"], [["x|y\nz"]]) == "| a |\n| --- |\n| x\\|y z |"
