# %% [markdown]
# # Words that are changed
#
# A classifier is trained on clean sentences and reads sentences with typing errors. Here words are
# changed at random before they become tokens, in training for robustness, in a test to measure it,
# and in an attack to find what is left to break. Changed words are also the second view of a text
# that has no label, and a translation there and back is another.
#
# The sentences are made up on the spot, and so is the task: which desk of a newspaper do they
# belong to? All numbers are those of a toy.

# %%
import csv
import json
import logging
import os
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, seed_everything
from rich.console import Console

import lmkit
from lmkit.attacks import CharacterAttack
from lmkit.back_translation import back_translate
from lmkit.callbacks import FGMCallback, RDropCallback, UDACallback
from lmkit.datamodules import SequenceClassificationDataModule
from lmkit.modules import SequenceClassificationModule
from lmkit.transforms import (
    EDA,
    Chain,
    CharacterNoise,
    Protection,
    RandomDeletion,
    example_rng,
    transform_tagged,
    transform_text,
)

# The tests run this notebook with fewer steps.
STEPS = int(os.environ.get("LMKIT_STEPS", "200"))

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*many workers.*|.*is not empty.*")
torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())
seed_everything(42, verbose=False)

# %% [markdown]
# ## What an example becomes
#
# A text is split into words, some are changed, and it is put together again; what was not changed
# stays byte by byte. The same seed, epoch and number of the example give the same change, on
# whatever worker or rank.

# %%
TEXT = "The harbour of Oslo was not open before  8:30 (see https://example.org)."
noise = CharacterNoise(rate=0.5)
for epoch in range(3):
    print(transform_text(noise, TEXT, example_rng(seed=1, epoch=epoch, index=0)))

# %% [markdown]
# Negations, names, numbers, addresses and signs are protected, unless one says otherwise, and more
# words can be.

# %%
everything = CharacterNoise(rate=1.0)
rng = example_rng(seed=1, epoch=0, index=0)
print(transform_text(everything, TEXT, rng, Protection(words=["harbour"])))
rng = example_rng(seed=1, epoch=0, index=0)
print(transform_text(everything, TEXT, rng, None))

# %% [markdown]
# EDA swaps, deletes, inserts and replaces words. The last two need synonyms, which come from
# WordNet where it is installed; the first two do not. Transforms are chained, and each is plain
# data too, as a config file has it.

# %%
change = Chain([EDA(replacement=0, insertion=0, swap=0.2, deletion=0.2), CharacterNoise()])
for epoch in range(3):
    print(transform_text(change, TEXT, example_rng(seed=2, epoch=epoch, index=0)))
change.spec

# %% [markdown]
# Tags follow their words: where the first word of an entity goes, the next one begins it.

# %%
words = ["they", "met", "in", "the", "old", "town", "hall", "of", "new", "york", "city"]
tags = ["O", "O", "O", "O", "B-PLACE", "I-PLACE", "I-PLACE", "O", "B-PLACE", "I-PLACE", "I-PLACE"]
made = transform_tagged(RandomDeletion(0.4), words, tags, example_rng(seed=5, epoch=0, index=0))
list(zip(made.words, made.labels, strict=True))

# %% [markdown]
# ## The sentences
#
# Each has two words that tell its desk, and a frame that tells nothing.

# %%
TOPICS = {
    "weather": "rain storm cloud sunshine thunder frost breeze snow fog hail",
    "food": "soup bread cheese pepper dinner pasta garlic honey butter salad",
    "travel": "train airport ticket harbour luggage hotel border ferry passport station",
}
FRAMES = (
    "yesterday everyone talked about the {} and the {}",
    "a short note about the {} and a {} was on the front page",
    "my neighbour said that the {} was better than the {}",
    "we did not expect the {} or the {} to be so important",
    "there is nothing new to say about the {} after the {}",
    "they asked us whether the {} would follow the {} again",
)
draw = random.Random(7)


def sentences(number: int) -> list[tuple[str, str]]:
    """Make up texts with their labels."""
    rows = []
    for _ in range(number):
        label = draw.choice(list(TOPICS))
        told = draw.sample(TOPICS[label].split(), 2)
        rows.append((draw.choice(FRAMES).format(*told), label))
    return rows


def write(name: str, rows: list[tuple[str, str]]) -> str:
    """Write texts and labels, and return where."""
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(folder / name)


train_rows, test_rows = sentences(300), sentences(200)
train = write("train.csv", train_rows)
train_rows[:3]

# %% [markdown]
# ## With noise and without
#
# `transforms` of the data module changes the words of the training examples, anew in each epoch.
# Nothing else of a run differs: the same module, the same Trainer. The tokenizer is trained on the
# clean sentences of the first run, and used by all.

# %%
CONFIG = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "limit_val_batches": 0,
}


def learn(*callbacks: Callback, steps: int = STEPS, **options: Any) -> SequenceClassificationModule:
    """Train a classifier on what the options of the data module say."""
    seed_everything(1, verbose=False)
    options = {"train_file": train, "val_fraction": 0, "max_length": 48, "batch_size": 16} | options
    data = SequenceClassificationDataModule(seed=1, **options)
    module = SequenceClassificationModule(CONFIG, learning_rate=2e-3)
    lmkit.Trainer(max_steps=steps, callbacks=list(callbacks), **QUIET).fit(module, data)
    return module


clean = learn()
tokenizer = str(folder / "tokenizer")
clean.tokenizer.save_pretrained(tokenizer)
NOISE = {"transforms": {"class_path": "CharacterNoise", "init_args": {"rate": 0.5}}}
noisy = learn(tokenizer=tokenizer, **NOISE)

# %% [markdown]
# Two more see the same noise, and each runs a batch twice:
#
# - `FGMCallback`: the second time with embeddings moved to where the loss rises most,
# - `RDropCallback`: the second time with other dropout, and both predictions have to agree.

# %%
models = {
    "clean": clean,
    "noise": noisy,
    "noise + FGM": learn(FGMCallback(), tokenizer=tokenizer, **NOISE),
    "noise + R-Drop": learn(RDropCallback(), tokenizer=tokenizer, **NOISE),
}

# %% [markdown]
# The test sentences with more and more words mistyped, the same mistakes for all models. One seed
# of a toy says nothing about the order of those trained with noise.

# %%
RATES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def accuracy(model: SequenceClassificationModule, rate: float) -> float:
    """Return the share of mistyped test sentences that are classified rightly."""
    mistype = CharacterNoise(rate=rate)
    texts = [
        transform_text(mistype, text, example_rng(seed=3, epoch=0, index=number))
        for number, (text, _) in enumerate(test_rows)
    ]
    right = zip(model(texts), test_rows, strict=True)
    return sum(said["label"] == label for said, (_, label) in right) / len(test_rows)


for name, model in models.items():
    plt.plot(RATES, [accuracy(model, rate) for rate in RATES], marker=".", label=name)
plt.xlabel("share of mistyped words")
plt.ylabel("accuracy")
plt.legend()
plt.show()

# %% [markdown]
# ## An attack
#
# Most random mistakes are in words that do not matter. An attack looks for those that do: words are
# ranked by what they add to the probability of the right class, and misspelt one after the other
# until another class wins. A text that is wrong from the start is not attacked.

# %%
texts, labels = (list(column) for column in zip(*test_rows[:40], strict=True))
attack = CharacterAttack(max_changed=0.3, query_budget=60)
reports = {name: attack.run(models[name], texts, labels) for name in ("clean", "noise")}
for name, report in reports.items():
    print(name)
    Console(width=100).print(report.table())

# %% [markdown]
# What it found for the first model, if anything; `report.write()` writes such texts for training.

# %%
for row in reports["clean"].rows(["succeeded"])[:3]:
    print(f"{row['label']} -> {row['prediction']}: {row['text']}")

# %% [markdown]
# ## Texts without a label
#
# Of each class four sentences have a label, written twenty times so that most batches hold some;
# 200 others have none. UDA asks that a sentence be understood as it is when its words are changed:
# with the option `view` the data module leaves the examples as they are, and puts what was changed
# beside them. The model beside it has the noise, and not the texts.

# %%
few = [row for label in TOPICS for row in [r for r in train_rows if r[1] == label][:4]]
labelled = write("few.csv", few * 20)
unlabelled = folder / "unlabelled.txt"
unlabelled.write_text("\n".join(text for text, _ in sentences(200)))
alone = learn(train_file=labelled, tokenizer=tokenizer, **NOISE)
uda = learn(
    UDACallback(),
    train_file=labelled,
    unlabelled_file=str(unlabelled),
    tokenizer=tokenizer,
    transform_options={"view": True},
    **NOISE,
)
for name, model in {"twelve labels": alone, "with UDA": uda}.items():
    print(f"{name:14} clean {accuracy(model, 0.0):.3f}, mistyped {accuracy(model, 0.6):.3f}")

# %% [markdown]
# ## There and back
#
# `back_translate` takes models, commands or functions. Two functions stand in for translators here:
# one language knows fewer words than the other, so that some come back as a synonym. What comes
# back as it went is dropped, and counted.

# %%
ABROAD = {"everyone": "w1", "all": "w1", "better": "w2", "nicer": "w2", "important": "w3"}
HOME = {"w1": "all", "w2": "nicer", "w3": "relevant"}


def there(texts: list[str]) -> list[str]:
    """Translate into a language of few words."""
    return [" ".join(ABROAD.get(word, word) for word in text.split()) for text in texts]


def back(texts: list[str]) -> list[str]:
    """Translate from it."""
    return [" ".join(HOME.get(word, word) for word in text.split()) for text in texts]


made = back_translate(train, folder / "again.jsonl", there=there, back=back)
print(f"{made.written} of {made.translations} kept, dropped: {made.reasons}")
for line in made.path.read_text().splitlines()[:3]:
    row = json.loads(line)
    print(f"{row['label']:8} {row['similarity']:.2f} {row['text']}")

# %% [markdown]
# The rows have the labels of their sources, and are read beside them.

# %%
both = SequenceClassificationDataModule(
    train_file=[train, str(made.path)], val_fraction=0, tokenizer=tokenizer
)
both.prepare_data()
both.setup("fit")
both.statistics

# %% [markdown]
# ## What next
#
# - Copies that are made once: `augmentations_per_example`; noise that grows in the course of a run:
#   `transform_options={"strength": {"start": 0.0, "stop": 1.0}}`.
# - Words that mean the same: `WordAttack`, `SynonymReplacement`, `ContextualReplacement`.
# - From the command line: `lmkit fit -c fgm`, `-c r_drop`, `-c uda`, and `lmkit back-translate`.
# - All of it in `docs/text_augmentation.md`, `docs/attacks.md`, `docs/consistency.md`,
#   `docs/adversarial_training.md` and `docs/back_translation.md`.
