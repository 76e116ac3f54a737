# %% [markdown]
# # Several tasks, one encoder
#
# A classification, a tagging and a regression share an encoder, and each has a head of its own. How
# often does each task come? Do their gradients pull in one direction? What changes when they are
# put together in another way than by a sum? And how does one task leave with the encoder?
#
# The sentences are made up on the spot, so all numbers are those of a toy.

# %%
import csv
import logging
import os
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import CSVLogger

import lmkit
from lmkit.callbacks import GradientConflictCallback
from lmkit.datamodules import MultiTaskDataModule
from lmkit.functional.task_sampling import task_probabilities
from lmkit.modules import MultiTaskModule
from lmkit.tokenization import train_tokenizer

# The tests run this notebook with fewer steps.
STEPS = int(os.environ.get("LMKIT_STEPS", "250"))

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*many workers.*|.*is not empty.*")
warnings.filterwarnings("ignore", message=".*SpearmanCorrcoef.*")
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
seed_everything(42, verbose=False)

# %% [markdown]
# ## Three tasks
#
# Sentences of one kind, in which each task looks for something else:
#
# - `topic`: what is it about? A class.
# - `names`: which words are people and places? A tag for each word.
# - `grade`: how good was it? A number.
#
# They have sentences of their own, the first many and the last few.

# %%
THINGS = {
    "weather": ["rain", "storm", "sunshine", "frost", "snow", "fog"],
    "food": ["soup", "bread", "cheese", "pasta", "honey", "salad"],
    "travel": ["train", "airport", "harbour", "hotel", "ferry", "bridge"],
}
GRADES = {"terrible": -2.0, "poor": -1.0, "usual": 0.0, "fine": 1.0, "wonderful": 2.0}
PEOPLE = ["anna", "boris", "clara", "david", "elena", "felix", "greta", "henry"]
PLACES = ["oslo", "rome", "new york", "lima", "san marino", "cairo", "hong kong", "quito"]
SIZES = {"topic": 400, "names": 150, "grade": 60}
draw = random.Random(7)


def sentence() -> tuple[list[str], list[str], str, float]:
    """Make up words, with their tags, their topic and their grade."""
    topic, person = draw.choice(list(THINGS)), draw.choice(PEOPLE)
    place, grade = draw.choice(PLACES).split(), draw.choice(list(GRADES))
    one, two = draw.sample(THINGS[topic], 2)
    words = [person, "from", *place, "told", "us", "about", "a", grade, one, "and", two]
    tags = ["B-PER", "O", "B-LOC", *["I-LOC"] * (len(place) - 1), *["O"] * 8]
    return words, tags, topic, GRADES[grade]


def write(split: str, sizes: dict[str, int]) -> None:
    """Write the files of the three tasks."""
    for name, column in (("topic", 2), ("grade", 3)):
        made = [sentence() for _ in range(sizes[name])]
        rows: Iterable[tuple[Any, Any]] = ((" ".join(row[0]), row[column]) for row in made)
        with (folder / f"{name}-{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    with (folder / f"names-{split}.conll").open("w") as file:
        for words, tags, _, _ in (sentence() for _ in range(sizes["names"])):
            file.writelines(f"{word} {tag}\n" for word, tag in zip(words, tags, strict=True))
            file.write("\n")


write("train", SIZES)
write("val", dict.fromkeys(SIZES, 60))
tokenizer = train_tokenizer((" ".join(sentence()[0]) for _ in range(500)), vocab_size=256)
tokenizer.save_pretrained(folder / "tokenizer")
print(*(folder / "topic-train.csv").read_text().splitlines()[:4], sep="\n")

# %% [markdown]
# ## How often each task comes
#
# Which task a step is of is drawn: in proportion to the tasks' sizes at a temperature of 1, and
# more evenly the higher it is.

# %%
TEMPERATURES = (1.0, 2.0, 5.0, float("inf"))
for number, temperature in enumerate(TEMPERATURES):
    shares = task_probabilities(list(SIZES.values()), temperature).tolist()
    places = [place + (number - 1.5) * 0.2 for place in range(len(SIZES))]
    plt.bar(places, shares, width=0.18, label=f"temperature {temperature:g}")
plt.xticks(range(len(SIZES)), [f"{name} ({size})" for name, size in SIZES.items()])
plt.ylabel("probability")
plt.legend()
plt.show()

# %% [markdown]
# A task in the data is a data module, as plain data; tokenizer, lengths and batches are of all.

# %%
CLASSES = {
    "topic": "SequenceClassification",
    "names": "TokenClassification",
    "grade": "SequenceClassification",
}


def new_data(**options: Any) -> MultiTaskDataModule:
    """The data of all tasks; an epoch is the whole run."""
    tasks = {}
    for name, word in CLASSES.items():
        kind = "conll" if name == "names" else "csv"
        files = {
            f"{split}_file": str(folder / f"{name}-{split}.{kind}") for split in ("train", "val")
        }
        more = {"task": "regression"} if name == "grade" else {}
        tasks[name] = {"class_path": f"{word}DataModule", "init_args": {**files, **more}}
    shared = {"tokenizer": str(folder / "tokenizer"), "max_length": 32, "batch_size": 16, "seed": 1}
    return MultiTaskDataModule(tasks, epoch_batches=STEPS, **shared, **options)


data = new_data(temperature=2.0)
data.prepare_data()
data.setup("fit")
turns = Counter(data.names[int(batch["task"][0])] for batch in data.train_dataloader())
print({name: f"{turns[name] / STEPS:.2f}" for name in data.names})

# %% [markdown]
# ## A task in each step
#
# The module has the same names. What a validation logs has the name of the task, and `val/mean` is
# the mean of the tasks' main metrics.

# %%
CONFIG = {
    "model_type": "bert",
    "vocab_size": len(tokenizer),
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "initializer_range": 0.1,
}
TASKS = {name: {"class_path": f"{word}Module"} for name, word in CLASSES.items()}


def learn(
    name: str, data: MultiTaskDataModule, *callbacks: Any, **options: Any
) -> tuple[MultiTaskModule, dict[str, float]]:
    """Train on all tasks, and return the module with what the last validation said."""
    seed_everything(1, verbose=False)
    module = MultiTaskModule(CONFIG, TASKS, learning_rate=2e-3, **options)
    trainer = lmkit.Trainer(
        max_epochs=1,
        callbacks=list(callbacks),
        logger=CSVLogger(folder, name=name, version=""),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, data)
    logged = trainer.callback_metrics.items()
    return module, {key: float(value) for key, value in logged if key.startswith("val/")}


METRICS = ("val/topic/accuracy", "val/names/f1", "val/grade/spearman", "val/mean")
module, one = learn("one", new_data(temperature=2.0))
for key in METRICS:
    print(f"{key:20} {one[key]:.3f}")

# %% [markdown]
# ## Do the tasks agree?
#
# With `batches="all"` each step has a batch of every task, and so a gradient of each on the
# encoder. `GradientConflictCallback` logs the cosines between them. Below 0 two tasks are in
# conflict: a step for the one is a step against the other.
#
# `aggregation="pcgrad"` takes out of each gradient what works against another before they are
# added. The heads keep the gradient of their own loss. Independent studies found that a sum with
# tuned weights does as well, so the sum stands beside it.

# %%
_, summed = learn("sum", new_data(batches="all"), GradientConflictCallback(every_n_steps=3))
joined, projected = learn(
    "pcgrad",
    new_data(batches="all"),
    GradientConflictCallback(every_n_steps=3),
    aggregation="pcgrad",
)


# %%
def logged(name: str, figure: str) -> tuple[list[int], list[float]]:
    """Return the steps of a run at which something was logged, and what."""
    with (folder / name / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(figure)]
    return [int(row["step"]) for row in rows], [float(row[figure]) for row in rows]


pairs = (("topic", "names"), ("topic", "grade"), ("names", "grade"))
_, axes = plt.subplots(1, 2, figsize=(10, 3), sharey=True)
for axis, name in zip(axes, ("sum", "pcgrad"), strict=True):
    for first, second in pairs:
        label = f"{first}, {second}"
        axis.plot(*logged(name, f"gradients/cosine/{first}/{second}"), label=label, linewidth=0.8)
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.set(title=name, xlabel="step")
axes[0].set_ylabel("cosine of gradients")
axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Gradients of batches this small are noisy, so a cosine of one step says little. Over the run:

# %%
for name in ("sum", "pcgrad"):
    _, shares = logged(name, "gradients/conflicts")
    print(f"{name:7} {sum(shares) / len(shares):.0%} of the pairs in conflict")

# %% [markdown]
# What the validation says of both. A step has three batches here and one above, so that only these
# two compare; and one seed of a toy is no reason to prefer either.

# %%
print(f"{'':20} {'sum':>7} {'pcgrad':>7}")
for key in METRICS:
    print(f"{key:20} {summed[key]:7.3f} {projected[key]:7.3f}")

# %% [markdown]
# ## One task leaves
#
# An export is a folder for each task, or of the one that is asked for, which plain `transformers`
# loads too. Loaded, it is the module of that task alone.

# %%
lmkit.export(joined, folder / "names", task="names")
names = lmkit.load(folder / "names")
print(type(names).__name__)
names("clara from san marino told us about a fine soup and honey")

# %% [markdown]
# ## What next
#
# - Losses that are weighed by themselves: `weighting="uncertainty"`, `"dwa"`, `"gradnorm"` and
#   others, `docs/loss_weighting.md`.
# - Other ways to join gradients: `docs/gradient_aggregation.md`.
# - A task trained alone, to compare: `SequenceClassificationModule` with the task's data module.
# - From the command line: `lmkit fit -c multi_task`; all of it in `docs/multi_task.md`.
