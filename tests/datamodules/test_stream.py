"""A stream is read once, never written, shuffled in windows, and resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lmkit.datamodules import (
    CausalLMDataModule,
    DenoisingDataModule,
    MaskedLMDataModule,
    ReplacedTokenDataModule,
)
from lmkit.datamodules.batch_plan import BatchPlan
from lmkit.datamodules.stream import StreamLoader, WindowBatches
from lmkit.datamodules.stream_window import TextWindow
from lmkit.datamodules.text_rows import Text
from lmkit.modules import MaskedLMModule
from lmkit.types import Batch
from tests import tiny
from tests.cases import make_trainer, weights

MODES = pytest.mark.parametrize("batching", ["pack", "bucket", "chunk"])


@pytest.fixture
def text(tmp_path: Path) -> dict[str, Any]:
    tiny.tokenizer_folder(tmp_path / "tokenizer")
    return {
        "train_file": str(tiny.write_text(tmp_path / "train.txt", 400)),
        "val_file": str(tiny.write_text(tmp_path / "val.txt", 20, seed=1)),
        "tokenizer": str(tmp_path / "tokenizer"),
        "cache_dir": str(tmp_path / "cache"),
        "max_length": 16,
        "batch_size": 2,
        "seed": 3,
        "streaming": True,
        "epoch_batches": 7,
    }


def batches(data: Any, epochs: int) -> list[Batch]:
    loader = data.train_dataloader()
    return [batch for _ in range(epochs) for batch in loader]


def equal(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
        for one, other in zip(ours, theirs, strict=True)
    )


@MODES
def test_each_token_comes_once_in_a_pass(batching: str, text: dict[str, Any]) -> None:
    data = CausalLMDataModule(**text, batching=batching)
    data.setup()
    stored = CausalLMDataModule(**{**text, "streaming": False}, batching=batching)
    stored.setup()
    loader = data.train_dataloader()
    seen: list[int] = []
    while not seen or loader._starts[-1].turn == 0:
        for batch in loader:
            if loader._starts[-1].turn == 0:
                seen += batch["input_ids"][batch["attention_mask"].bool()].tolist()
    whole = [
        t
        for batch in stored.train_dataloader()
        for t in batch["input_ids"][batch["attention_mask"].bool()].tolist()
    ]
    pads = [stored.tokenizer.pad_token_id] if stored.tokenizer else []
    assert sorted(t for t in seen if t not in pads) == sorted(t for t in whole if t not in pads)


def test_nothing_of_the_text_is_written(text: dict[str, Any], tmp_path: Path) -> None:
    data = MaskedLMDataModule(**text)
    data.prepare_data()
    data.setup()
    batches(data, 2)
    stores = list((tmp_path / "cache" / "tokens").glob("*/tokens.bin"))
    assert len(stores) == 1, "that of the validation text"


@MODES
@pytest.mark.parametrize("stop", [1, 7, 8, 20, 95])
def test_a_loader_goes_on_where_its_state_says(
    batching: str, stop: int, text: dict[str, Any]
) -> None:
    whole = batches(MaskedLMDataModule(**text, batching=batching), 16)
    first = MaskedLMDataModule(**text, batching=batching).train_dataloader()
    had = list(islice((b for _ in range(99) for b in first), stop))
    second = MaskedLMDataModule(**text, batching=batching).train_dataloader()
    second.load_state_dict(first.state_dict())
    rest = list(islice((b for _ in range(99) for b in second), len(whole) - stop))
    assert equal(whole, had + rest)


@pytest.mark.parametrize("make", [DenoisingDataModule, ReplacedTokenDataModule])
def test_every_objective_streams_and_goes_on(
    make: Any, text: dict[str, Any], tmp_path: Path
) -> None:
    if make is DenoisingDataModule:
        text["tokenizer"] = tiny.tokenizer_folder(tmp_path / "sentinels", "sentinels")
    whole = batches(make(**text), 16)
    first = make(**text).train_dataloader()
    had = list(islice((b for _ in range(99) for b in first), 30))
    second = make(**text).train_dataloader()
    second.load_state_dict(first.state_dict())
    assert equal(whole, had + list(islice((b for _ in range(99) for b in second), 16 * 7 - 30)))
    assert (whole[0]["labels"] >= 0).any()


def test_two_ranks_have_the_halves_of_each_batch(text: dict[str, Any]) -> None:
    one = MaskedLMDataModule(**{**text, "batch_size": 4}).train_dataloader()
    ours = next(iter(one))

    class Ranked(MaskedLMDataModule):
        rank = 0

        @property
        def trainer(self) -> Any:
            class Two:
                global_rank, world_size = self.rank, 2
                limit_train_batches = None
                lightning_module = None

                class fit_loop:
                    class epoch_progress:
                        class current:
                            processed = 0

            return Two

        @trainer.setter
        def trainer(self, value: Any) -> None: ...

    halves = []
    for rank in range(2):
        data = Ranked(**text)
        data.rank = rank
        halves.append(next(iter(data.train_dataloader())))
    for name in ("input_ids", "labels"):
        joined = torch.stack([halves[0][name], halves[1][name]], 1).flatten(0, 1)
        assert torch.equal(joined, ours[name])


class SaveAt(Callback):
    def __init__(self, batches: set[int], folder: Path) -> None:
        self.batches, self.folder, self.seen = batches, folder, 0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.seen += 1
        if self.seen in self.batches:
            trainer.save_checkpoint(self.folder / f"{self.seen}.ckpt")


def test_an_interrupted_fit_resumed_is_the_uninterrupted_one(
    text: dict[str, Any], tmp_path: Path
) -> None:
    def fit(*callbacks: Callback, **kwargs: Any) -> MaskedLMModule:
        seed_everything(5)
        module = MaskedLMModule(tiny.MASKED["bert"], learning_rate=1e-2, warmup=0)
        trainer = make_trainer(*callbacks, max_steps=12, accumulate_grad_batches=2)
        trainer.fit(module, MaskedLMDataModule(**text), **kwargs)
        return module

    places = {1, 6, 7, 8, 15}
    whole = weights(fit(SaveAt(places, tmp_path)))
    for place in sorted(places):
        resumed = weights(fit(ckpt_path=tmp_path / f"{place}.ckpt"))
        assert all(torch.equal(whole[k], resumed[k]) for k in whole), f"after batch {place}"


def test_an_iterable_data_set_streams(text: dict[str, Any]) -> None:
    rows = [{"id": i, "text": t} for i, t in enumerate(tiny.sentences(50))]
    source = datasets.Dataset.from_list(rows).to_iterable_dataset()
    del text["train_file"]
    data = MaskedLMDataModule(source=source, **text)
    assert len(batches(data, 1)) == 7
    with pytest.raises(TypeError, match="streaming=True"):
        MaskedLMDataModule(source=source, **{**text, "streaming": False}).setup()


def test_what_a_stream_cannot_do_is_said(text: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a stream"):
        MaskedLMDataModule(**{**text, "tokenizer": None}).setup()
    with pytest.raises(ValueError, match="epoch_batches must be at least 1"):
        MaskedLMDataModule(**{**text, "epoch_batches": 0})
    (tmp_path / "blank.txt").write_text("\n\n")
    blank = MaskedLMDataModule(**{**text, "train_file": str(tmp_path / "blank.txt")})
    with pytest.raises(ValueError, match="only blank lines"):
        batches(blank, 1)
    (tmp_path / "control.txt").write_text("\x01\n\x02\n")
    control = MaskedLMDataModule(**{**text, "train_file": str(tmp_path / "control.txt")})
    with pytest.raises(ValueError, match="the tokenizer finds no token in it"):
        batches(control, 1)
    with pytest.raises(ValueError, match="no file or folder"):
        MaskedLMDataModule(**{**text, "train_file": [text["train_file"], "none.txt"]}).setup()


class Windows:
    """Texts of numbers, each a token, and the windows that a loader made of them."""

    def __init__(self, *texts: Text) -> None:
        self.read = list(texts)
        self.made: list[list[int]] = []

    def texts(self, report: bool = False) -> Iterator[Text]:
        return iter(self.read)

    def arrange(self, window: TextWindow, number: int) -> WindowBatches:
        self.made.append(window.ids.tolist())
        return WindowBatches(BatchPlan(1, 1), lambda epoch, rows: {"row": rows})

    def loader(self, window_tokens: int) -> StreamLoader:
        return StreamLoader(
            self,
            encode=lambda texts: [[int(word) for word in text.split()] for text in texts],
            separator=0,
            arrange=self.arrange,
            window_tokens=window_tokens,
            epoch_batches=4,
            global_batch=1,
        )


def test_a_document_in_pieces_is_no_longer_than_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a file that is one document would be held in memory whole."""
    monkeypatch.setattr("lmkit.datamodules.text_rows._CHARACTERS", 3)
    pieces = [Text(f"{i} {i}", "file", i, ends=i == 4) for i in range(1, 5)]
    windows = Windows(*pieces)
    assert len(list(windows.loader(window_tokens=4))) == 4
    assert windows.made[:2] == [[1, 1, 2, 2, 0], [3, 3, 4, 4, 0]]


def test_documents_without_a_token_at_the_end_make_no_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lmkit.datamodules.text_rows._DOCUMENTS", 1)
    windows = Windows(Text("1 2", "file", 1), Text(" ", "file", 2), Text(" ", "file", 3))
    assert len(list(windows.loader(window_tokens=2))) == 4
    assert windows.made[:3] == [[1, 2, 0]] * 3
