# %% [markdown]
# # Half the layers
#
# A classifier of four layers is trained, and becomes a teacher. Two students begin as two of its
# layers: one learns from the labels alone, the other from what its teacher says too. Then the
# teacher's words are written down once, so that it need not be there while a student trains.
#
# The task: which word does a paragraph of Python's documentation begin with, when that word is
# taken away?

# %%
import csv
import logging
import os
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

import lmkit
from lmkit.datamodules import MaskedLMDataModule, SequenceClassificationDataModule
from lmkit.datamodules.embedded import embedded_paragraphs
from lmkit.modules import (
    DistillationModule,
    HiddenLoss,
    LogitLoss,
    MaskedLMModule,
    RelationLoss,
    SequenceClassificationModule,
)

# The tests run this notebook with fewer steps.
STEPS = int(os.environ.get("LMKIT_STEPS", "300"))

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*many workers.*|.*is not empty.*")
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
seed_everything(42, verbose=False)

# %% [markdown]
# ## A teacher
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


teacher = SequenceClassificationModule(str(folder / "base"), learning_rate=5e-4)
trainer = lmkit.Trainer(max_steps=2 * STEPS, **QUIET)
trainer.fit(teacher, new_data())
(reached,) = trainer.test(teacher, new_data(), verbose=False)
lmkit.export(teacher, folder / "teacher")
print(words, len(rows), f"accuracy {reached['test/accuracy']:.3f}")

# %% [markdown]
# ## Two students
#
# `student_layers` says which layers of its model a student keeps, here the first and the last: it
# begins as its teacher with two layers less, embeddings and head included. `hard_weight` is the
# weight of the labels, and each loss against the teacher has a weight of its own:
#
# - `LogitLoss`: the probabilities of the classes, softened by a temperature,
# - `HiddenLoss`: the hidden states, layer by layer; which with which is the map `uniform`,
# - `RelationLoss`: how the tokens' queries, keys and values relate in the last layer.


# %%
class Record(Callback):
    """Keeps the losses of each step."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Take what was logged."""
        logged = trainer.callback_metrics.items()
        self.losses.append({k.split("_")[-1]: float(v) for k, v in logged if "/loss_" in k})


def learn(**options: Any) -> tuple[DistillationModule, Record, dict[str, float]]:
    """Train a student, and return it with its losses and what it reached."""
    seed_everything(1, verbose=False)
    student = SequenceClassificationModule(str(folder / "teacher"), learning_rate=5e-4)
    module = DistillationModule(
        student, teacher=str(folder / "teacher"), student_layers=[0, 3], **options
    )
    record, data = Record(), new_data()
    trainer = lmkit.Trainer(max_steps=STEPS, log_every_n_steps=1, callbacks=[record], **QUIET)
    began = time.process_time()
    trainer.fit(module, data)
    took = time.process_time() - began
    (result,) = trainer.test(module, data, verbose=False)
    return module, record, {**result, "seconds": took}


LOSSES = [LogitLoss(weight=0.5, temperature=2.0), HiddenLoss(), RelationLoss()]
alone, _, by_labels = learn(losses=[], hard_weight=1.0)
taught, record, by_teacher = learn(losses=LOSSES, hard_weight=0.5)
for name, result in {"labels": by_labels, "teacher too": by_teacher}.items():
    figures = {key: result[f"test/{key}"] for key in ("accuracy", "agreement", "retention")}
    print(f"{name:12}", ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))

# %% [markdown]
# `agreement` is the share of the texts on which student and teacher decide alike, and `retention`
# the accuracy of the student as a share of the teacher's. Both are logged in each validation.

# %%
for name in ("hard", "logits", "hidden", "relations"):
    plt.plot([losses[name] for losses in record.losses], label=name, linewidth=0.8)
plt.legend()
plt.xlabel("step")
plt.ylabel("loss")
plt.yscale("log")
plt.show()

# %% [markdown]
# Where they differ, the largest divergence first:

# %%
for row in taught.tables()["differences"][:5]:
    print(f"{row['label']:10} {row['student']:10} {row['teacher']:10} {row['text'][:60]!r}")

# %% [markdown]
# ## Without the teacher
#
# With `cache=True` the teacher reads all rows once, before the training, and what it says of each
# is kept on disk. It leaves the memory then. The next run finds what is there: to try other weights
# costs no pass of the teacher.

# %%
_, stored, first_run = learn(losses=LOSSES, cache=True, cache_folder=str(folder / "cache"))
_, _, second_run = learn(losses=LOSSES, cache=True, cache_folder=str(folder / "cache"))
size = sum(path.stat().st_size for path in (folder / "cache").rglob("*.bin"))
apart = abs(stored.losses[0]["logits"] - record.losses[0]["logits"])
print(f"{size / 1e6:.1f} MB; loss of logits, first step: {apart:.1e} from that of the live teacher")
print(
    f"CPU seconds: live {by_teacher['seconds']:.1f}, cached {first_run['seconds']:.1f}, "
    f"again {second_run['seconds']:.1f}"
)

# %% [markdown]
# ## A plain model
#
# The export is the student alone: a folder of two layers for plain `transformers`.

# %%
lmkit.export(taught, folder / "student")
sizes = {
    name: (folder / name / "model.safetensors").stat().st_size / 1e6
    for name in ("teacher", "student")
}
print(", ".join(f"{name} {size:.1f} MB" for name, size in sizes.items()))
lmkit.load(folder / "student")("the value of the attribute, or None if there is none.")["label"]

# %% [markdown]
# ## What next
#
# - Texts without a label: `unlabelled_file` of the data, and `hard_weight=0.0` for the teacher
#   alone.
# - Several teachers: a list of folders; `teacher_weights` says how much each counts.
# - A smaller encoder for all tasks: `MaskedLMModule` as the student.
# - From the command line: `lmkit fit -c distillation`; all of it in `docs/distillation.md`.
