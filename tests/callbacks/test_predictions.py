"""Predictions reach one complete file in the order of the data."""

import json

import pytest
from lightning.pytorch import Trainer

from lmkit.callbacks import PredictionsCallback
from lmkit.callbacks.predictions import _join


def predict(module, loaders, tmp_path, callback):
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(module, loaders, return_predictions=False)


def lines(path):
    return [json.loads(line) for line in path.open()]


def test_rows_are_written_without_fillers(tiny, rows, tmp_path):
    predict(tiny(), rows(), tmp_path, PredictionsCallback())
    written = lines(tmp_path / "predictions.jsonl")
    assert written == [{"index": i, "first": i} for i in range(19)]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_several_loaders_are_told_apart(tiny, rows, tmp_path):
    predict(tiny(), [rows(), rows()], tmp_path, PredictionsCallback(str(tmp_path / "a.jsonl")))
    written = lines(tmp_path / "a.jsonl")
    assert len(written) == 38
    assert written[19] == {"index": 0, "dataloader": 1, "first": 0}


def test_an_interrupted_prediction_leaves_no_complete_file(tiny, rows, tmp_path):
    class Failing(tiny):
        def predict_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise OSError("gone")
            return super().predict_step(batch, batch_idx)

    with pytest.raises(OSError, match="gone"):
        predict(Failing(), rows(), tmp_path, PredictionsCallback())
    assert not (tmp_path / "predictions.jsonl").exists()
    assert len(lines(tmp_path / "predictions.jsonl.rank0.part")) == 4


def test_ranks_are_joined_in_the_order_of_the_data(tmp_path):
    parts = [tmp_path / "0.part", tmp_path / "1.part"]
    for part, indices in zip(parts, ([0, 2, 4], [1, 3, 0]), strict=True):
        records = [{"index": i, "dataloader": 0, "rank": part.name} for i in indices]
        part.write_text("".join(json.dumps(r) + "\n" for r in records))
    _join(parts, tmp_path / "all.jsonl")
    assert [row["index"] for row in lines(tmp_path / "all.jsonl")] == [0, 1, 2, 3, 4]


def test_rows_without_a_number_keep_their_order(tmp_path):
    part = tmp_path / "0.part"
    part.write_text("".join(f'{{"index": null, "dataloader": 0, "n": {n}}}\n' for n in (5, 3, 4)))
    _join([part], tmp_path / "all.jsonl")
    assert lines(tmp_path / "all.jsonl") == [{"n": 5}, {"n": 3}, {"n": 4}]


def test_predictions_that_are_no_rows_are_refused(tiny, rows, tmp_path):
    class Wrong(tiny):
        def predict_step(self, batch, batch_idx):
            return batch["input_ids"]

    with pytest.raises(TypeError, match="a list of dictionaries, got Tensor"):
        predict(Wrong(), rows(), tmp_path, PredictionsCallback())
