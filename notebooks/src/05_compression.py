# %% [markdown]
# # Smaller and faster
#
# A classifier of four layers loses half of its heads and inner neurons, then the tokens that its
# texts do without, and last three quarters of its bits. A report says what each step costs and is
# worth.
#
# The task: which word does a paragraph of Python's documentation begin with, when that word is
# taken away?

# %%
import csv
import logging
import os
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from rich.console import Console

import lmkit
from lmkit.callbacks import StructuredPruningCallback
from lmkit.datamodules import MaskedLMDataModule, SequenceClassificationDataModule
from lmkit.datamodules.embedded import embedded_paragraphs
from lmkit.modules import (
    DistillationModule,
    HiddenLoss,
    LogitLoss,
    MaskedLMModule,
    SequenceClassificationModule,
)
from lmkit.report import efficiency

# The tests run this notebook with fewer steps.
STEPS = int(os.environ.get("LMKIT_STEPS", "300"))

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*many workers.*|.*is not empty.*")
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
seed_everything(42, verbose=False)

# %% [markdown]
# ## A dense model
#
# Masked language modelling on the documentation, and then the task: paragraphs that begin with one
# of six frequent words, of which a fifth is kept for the test.

# %%
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "limit_val_batches": 0,
}
CONFIG = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
text = MaskedLMDataModule(max_length=64, batch_size=16, vocab_size=2048)
base = MaskedLMModule(CONFIG, learning_rate=2e-3)
lmkit.Trainer(max_steps=3 * STEPS, **QUIET).fit(base, text)
lmkit.export(base, folder / "base")

# %%
paragraphs = list(embedded_paragraphs())
first = Counter(paragraph.split()[0] for paragraph in paragraphs)
words = [word for word, _ in first.most_common(6)]
rows = [(p.split(maxsplit=1)[1], p.split()[0]) for p in paragraphs if p.split()[0] in words]


def write(name: str, table: list[tuple[str, str]]) -> str:
    """Write texts and labels, and return where."""
    path = folder / name
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *table])
    return str(path)


kept = len(rows) * 4 // 5
train, test = write("train.csv", rows[:kept]), write("test.csv", rows[kept:])


def new_data() -> SequenceClassificationDataModule:
    """The data, the same in the same order for each run."""
    return SequenceClassificationDataModule(
        train_file=train, test_file=test, val_fraction=0, max_length=64, batch_size=16, seed=1
    )


dense = SequenceClassificationModule(str(folder / "base"), learning_rate=5e-4)
lmkit.Trainer(max_steps=2 * STEPS, **QUIET).fit(dense, new_data())
lmkit.export(dense, folder / "dense")

# %% [markdown]
# ## Half of the heads and neurons
#
# From the tenth part of the run on, what the loss asks for the least is shut, more and more; at
# half of it what is shut is removed, and the rest of the run trains the smaller network. The dense
# model is its teacher. What became of each layer is printed.

# %%
student = SequenceClassificationModule(str(folder / "dense"), learning_rate=5e-4)
module = DistillationModule(
    student,
    teacher=str(folder / "dense"),
    losses=[LogitLoss(weight=0.5, temperature=2.0), HiddenLoss()],
    hard_weight=0.5,
)
pruning = StructuredPruningCallback(ffn=0.5, heads=0.5, interval=1)
lmkit.Trainer(max_steps=2 * STEPS, callbacks=[pruning], **QUIET).fit(module, new_data())
lmkit.export(module, folder / "narrow")
module.network.bert.encoder.layer[0].attention.self.query

# %% [markdown]
# The surgery is in the module's ledger, as plain data. So a checkpoint loads alone, and the export,
# which no config can express, says in its `structure.json` how it is built.

# %%
[spec["class_path"] for spec in module.ledger]

# %% [markdown]
# ## The tokens that the texts need
#
# Texts whose tokens are all kept are read exactly as before; others fall into smaller pieces.

# %%
small = lmkit.load(folder / "narrow")
trimming = lmkit.trim_vocabulary(small, [sentence for sentence, _ in rows[:kept]])
lmkit.export(small, folder / "trimmed")
print(f"{trimming.before} -> {trimming.after} tokens")

# %% [markdown]
# ## Eight bits
#
# ONNX Runtime has weights of 8 bits, a step for each output, and rounds what layers read as it
# comes. What was written is compared with the network before it is handed over.

# %%
lmkit.export(small, folder / "int8", format="onnx", quantize="int8")
lmkit.load(folder / "int8")("the value of the attribute, or None if there is none.")["label"]

# %% [markdown]
# ## What came of it
#
# Latencies are taken by turns, so that a slow spell of the machine falls on all. The smaller a
# model, the more of its time goes into what is not arithmetic: this one is tiny, and a real encoder
# gains more (`docs/compression.md`).

# %%
models = {name: str(folder / name) for name in ("dense", "narrow", "trimmed", "int8")}
shapes = ((1, 32), (8, 64))
report = efficiency(models, new_data(), dense="dense", shapes=shapes, rounds=10, memory=False)
Console(width=110).print(report.table())

# %% [markdown]
# ## What next
#
# - Fewer layers first: `student_layers` of `DistillationModule`.
# - A speed as the target: `StructuredPruningCallback(speedup=2.0)`.
# - Training that knows of the 8 bits: `QuantizationCallback`.
# - All of it by one command: `lmkit fit -c compression`.
