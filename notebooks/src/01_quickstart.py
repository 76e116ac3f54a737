# %% [markdown]
# # Pre-train a small language model
#
# From text to a model that fills in missing words, on a CPU, in about two minutes. Along the way:
# what a data module does, what a batch looks like, how a run is interrupted and resumed without a
# trace, and how the model leaves lmkit.
#
# The text is the prose of Python's own documentation, which every machine has. It is a default to
# start on, not a benchmark.

# %%
import logging
import os
import warnings

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

import lmkit
from lmkit.callbacks import CheckpointCallback, LossPlotCallback
from lmkit.datamodules import MaskedLMDataModule
from lmkit.modules import MaskedLMModule

# The tests run this notebook with fewer steps.
STEPS = int(os.environ.get("LMKIT_STEPS", "500"))

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*LeafSpec.*|.*many workers.*|.*is not empty.*")
torch.set_num_threads(1)  # a network this narrow gains little from more
seed_everything(42, verbose=False)

# %% [markdown]
# ## The data
#
# With no `source`, the text is Python's documentation; with no `tokenizer`, a WordPiece vocabulary
# is trained on it. Your own text goes in as `source="folder/*.txt"`, or a list of files, or the
# name of a data set.

# %%
data = MaskedLMDataModule(max_length=64, batch_size=32, vocab_size=2048)
data.prepare_data()
data.setup("fit")
data.statistics

# %% [markdown]
# A batch is a dictionary of tensors. 15 % of the tokens are chosen; of these, 80 % are hidden, 10 %
# replaced and 10 % left alone. `labels` holds the original of the chosen ones and -100 elsewhere.

# %%
batch = next(iter(data.train_dataloader()))
print({name: tuple(tensor.shape) for name, tensor in batch.items()})
print(data.tokenizer.decode(batch["input_ids"][0]))
print("hidden:", data.tokenizer.decode(batch["labels"][0][batch["labels"][0] >= 0]))

# %% [markdown]
# ## The model
#
# `model` is a hub name, a folder, or, as here, a configuration to start from scratch. The
# vocabulary is taken from the tokenizer.

# %%
MODEL = {
    "model_type": "modernbert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
    "local_attention": 16,
    "global_attn_every_n_layers": 2,
    "initializer_range": 0.05,
    "initializer_cutoff_factor": 3.0,
}


def new_module() -> MaskedLMModule:
    """The module as it is before training."""
    return MaskedLMModule(model=MODEL, learning_rate=5e-3, warmup=0.1)


# %% [markdown]
# ## The run
#
# The `Trainer` is Lightning's own, and so are its options. To show that an interruption leaves no
# trace, the first run stops halfway.


# %%
class StopAt(Callback):
    """Ends the run after some steps, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Ask the trainer to stop."""
        trainer.should_stop = trainer.global_step >= self.step


def new_trainer(*callbacks: Callback) -> Trainer:
    """A trainer that plans for `STEPS` steps."""
    return Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        val_check_interval=max(1, STEPS // 5),
        check_val_every_n_epoch=None,
        gradient_clip_val=1.0,
        log_every_n_steps=max(1, STEPS // 50),
        num_sanity_val_steps=0,
        default_root_dir="runs/notebook",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CheckpointCallback(), LossPlotCallback(), *callbacks],
    )


new_trainer(StopAt(STEPS // 2)).fit(new_module(), datamodule=data)

# %% [markdown]
# A new module and a new trainer, as after a restart of the machine. `ckpt_path="last"` goes on
# where the other stopped: same order of the text, same masks, same dropout.

# %%
module, trainer = new_module(), new_trainer()
trainer.fit(module, datamodule=data, ckpt_path="last")
(result,) = trainer.validate(module, datamodule=data, verbose=False)
result

# %%
from IPython.display import Image

Image("runs/notebook/loss.png")

# %% [markdown]
# The loss is in nats per token: a model that knows nothing has $\ln 2048 \approx 7.6$, one that
# knows only how frequent each word is about 5.8. Below that, it has begun to read.
#
# ## Filling masks

# %%
sentences = [
    "Return a list of all the [MASK] in the file.",
    "If the value is not a string, an exception is [MASK].",
]
inputs = data.tokenizer(sentences, return_tensors="pt", padding=True)
with torch.no_grad():
    for row in module.predict_step(dict(inputs), 0):
        print(row["text"])
        for fill in row["fills"][0]:
            print(f"    {fill['probability']:5.1%}  {fill['token']}")

# %% [markdown]
# ## Leaving lmkit
#
# A checkpoint is for going on. For using the model there is the export: a folder that plain
# `transformers` loads.

# %%
folder = lmkit.export(module, "runs/notebook/export", overwrite=True)

from transformers import pipeline

fill_mask = pipeline("fill-mask", model=str(folder), device="cpu")
[answer["token_str"] for answer in fill_mask(sentences[0])]

# %% [markdown]
# And back again: `lmkit.load` takes an export, a checkpoint or a name on the hub.

# %%
again = lmkit.load("runs/notebook/checkpoints/last.ckpt")
type(again).__name__, f"{sum(p.numel() for p in again.parameters()):,} parameters"

# %% [markdown]
# ## What next
#
# - Your own text: `MaskedLMDataModule(source="folder/*.txt")`.
# - Text generation instead: `CausalLMModule` and `CausalLMDataModule`.
# - The same from the command line: `lmkit fit -c masked_lm`.
