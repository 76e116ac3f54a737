# %% [markdown]
# # A few per cent of the weights
#
# A small encoder is pre-trained on plain text. Then it learns a task in several ways: all of its
# weights, low-rank matrices beside them (LoRA), bottleneck adapters, or the biases alone. What
# differs between the runs is one callback. At the end two adapters stand on one base, are switched,
# and one is merged into a plain model.
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

import matplotlib.pyplot as plt
from lightning.pytorch import seed_everything

import lmkit
from lmkit.adapters import add_adapter, list_adapters, use_adapters
from lmkit.callbacks import (
    AdapterCallback,
    BitFitCallback,
    LoRACallback,
    TrainableOnlyCheckpoint,
)
from lmkit.datamodules import MaskedLMDataModule, SequenceClassificationDataModule
from lmkit.datamodules.embedded import embedded_paragraphs
from lmkit.modules import MaskedLMModule, SequenceClassificationModule

# The tests run this notebook with fewer steps.
STEPS = int(os.environ.get("LMKIT_STEPS", "300"))

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*many workers.*|.*is not empty.*")
folder = Path(tempfile.mkdtemp())
seed_everything(42, verbose=False)

# %% [markdown]
# ## A base
#
# Masked language modelling on the documentation, as in the first notebook, and an export: a folder
# that any of the runs below can start from.

# %%
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}
CONFIG = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
text = MaskedLMDataModule(max_length=64, batch_size=16, vocab_size=2048)
base = MaskedLMModule(CONFIG, learning_rate=2e-3)
lmkit.Trainer(max_steps=3 * STEPS, limit_val_batches=0, **QUIET).fit(base, text)
lmkit.export(base, folder / "base")

# %% [markdown]
# ## A task
#
# Paragraphs that begin with one of six frequent words; a fifth of them is kept for the test.

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
print(words, len(rows))

# %% [markdown]
# ## Four ways to learn it
#
# `TrainableOnlyCheckpoint` leaves the frozen weights out of the checkpoint: what is written is what
# was trained, its optimizer, and the name and hash of the base.

# %%
WAYS = {
    "all weights": ([], 5e-4),
    "LoRA": ([LoRACallback(targets=["all"])], 4e-3),
    "adapters": ([AdapterCallback(size=32)], 4e-3),
    "biases": ([BitFitCallback()], 8e-3),
}


def tune(name: str) -> dict[str, float]:
    """Train one way, and return what it reached and what it cost."""
    callbacks, rate = WAYS[name]
    seed_everything(1, verbose=False)
    data = SequenceClassificationDataModule(
        train_file=train, test_file=test, val_fraction=0, max_length=64, batch_size=16
    )
    module = SequenceClassificationModule(str(folder / "base"), learning_rate=rate)
    trainer = lmkit.Trainer(
        max_steps=STEPS, callbacks=[*callbacks, TrainableOnlyCheckpoint()], **QUIET
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return {
        "accuracy": trainer.test(module, data, verbose=False)[0]["test/accuracy"],
        "share": trained / sum(p.numel() for p in module.parameters()),
        "megabytes": (folder / f"{name}.ckpt").stat().st_size / 1e6,
    }


results = {name: tune(name) for name in WAYS}
for name, result in results.items():
    print(
        f"{name:12} accuracy {result['accuracy']:.3f}, trained {result['share']:.1%}, "
        f"checkpoint {result['megabytes']:.2f} MB"
    )

# %%
_, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
left.bar(list(results), [result["accuracy"] for result in results.values()])
left.set(title="accuracy", ylim=(0, 1))
right.bar(list(results), [result["megabytes"] for result in results.values()])
right.set(title="checkpoint, MB", yscale="log")
plt.show()

# %% [markdown]
# ## Two adapters on one base
#
# Each checkpoint brings its adapter; the base is in memory once. Its head was drawn at random for
# two classes, and gives way to the one of six that was trained with the first adapter.

# %%
module = SequenceClassificationModule(str(folder / "base"))
module.tokenizer = base.tokenizer
add_adapter(module, folder / "LoRA.ckpt", "low_rank", head=True)
add_adapter(module, folder / "adapters.ckpt", "bottleneck")
question = "the value of the attribute, or None if there is none."
for weights in ({"low_rank": 1.0}, {"bottleneck": 1.0}, {}):
    use_adapters(module, weights)
    print(list_adapters(module), module(question)["label"])

# %% [markdown]
# ## A plain model
#
# LoRA can be computed into the base. What is exported is a folder for plain `transformers`.

# %%
use_adapters(module, {"low_rank": 1.0})
lmkit.export(module, folder / "merged", merge=True)
print(lmkit.load(folder / "merged")(question)["label"])
