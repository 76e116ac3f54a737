# %% [markdown]
# # What a network can learn from plain text
#
# Four objectives on the same text: hidden words, hidden words as whole words, gaps to be written
# (T5), and replaced words to be found (ELECTRA). And where the speed comes from: rows without
# padding, in which each document sees itself alone.

# %%
import logging
import os
import warnings

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import seed_everything

from lmkit import Trainer
from lmkit.datamodules import (
    DenoisingDataModule,
    LMDataModule,
    MaskedLMDataModule,
    ReplacedTokenDataModule,
)
from lmkit.modules import ReplacedTokenModule

# The tests run this notebook with fewer steps.
STEPS = int(os.environ.get("LMKIT_STEPS", "200"))

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*many workers.*|.*is not empty.*")
torch.set_num_threads(1)
seed_everything(42, verbose=False)

# %% [markdown]
# ## Rows without padding
#
# The documents of a text are of all lengths. Padded to 64 tokens, much of a batch is nothing.
# Packed, a row holds as many documents as fit, `segment_ids` says which token is of which, and
# attention is block-diagonal. What the network makes of a document is the same as if it stood
# alone.

# %%
SETTINGS = {"max_length": 64, "batch_size": 8, "vocab_size": 2048}
data = MaskedLMDataModule(**SETTINGS)
data.prepare_data()
data.setup("fit")
batch = next(iter(data.train_dataloader()))
segments = batch["segment_ids"]

_, (left, right) = plt.subplots(1, 2, figsize=(10, 3), width_ratios=(2, 1))
left.imshow(segments, aspect="auto", cmap="tab20", interpolation="nearest")
left.set(title="a batch: documents by colour", xlabel="token", ylabel="row")
right.imshow(segments[0].unsqueeze(0) == segments[0].unsqueeze(1), cmap="gray_r")
right.set(title="who sees whom in row 0", xlabel="token")
plt.show()

# %%
real = float((segments > 0).float().mean())
print(f"{real:.1%} of the packed batch is text")

# %% [markdown]
# ## Hidden words
#
# `masking` says what is hidden together: single tokens, whole words, spans of words, n-grams.


# %%
def show(data: LMDataModule) -> None:
    """Print the first training row with what is hidden, and what was there."""
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    print("input: ", data.tokenizer.decode(ids[batch["attention_mask"][0].bool()]))
    print("target:", data.tokenizer.decode(labels[labels >= 0]))


show(MaskedLMDataModule(**SETTINGS))

# %%
show(MaskedLMDataModule(**SETTINGS, masking="whole_word"))

# %% [markdown]
# ## Gaps
#
# Span corruption takes spans out of a stretch of text and puts a sentinel for each. The decoder
# writes the spans. Inputs and targets have the same length in every batch.

# %%
show(DenoisingDataModule(**SETTINGS))

# %% [markdown]
# ## Replaced words
#
# A small generator fills the hidden places, and the network tells for every token whether it is the
# original. `val/f1` is of the replaced tokens: it starts at 0 and takes a longer run than this one.

# %%
module = ReplacedTokenModule(
    model={
        "model_type": "electra",
        "embedding_size": 64,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    },
    learning_rate=2e-3,
)
trainer = Trainer(
    accelerator="cpu",
    max_steps=STEPS,
    limit_val_batches=20,
    val_check_interval=max(2, STEPS // 2),
    check_val_every_n_epoch=None,
    gradient_clip_val=1.0,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, ReplacedTokenDataModule(**SETTINGS))
{name: round(float(value), 3) for name, value in trainer.callback_metrics.items()}
