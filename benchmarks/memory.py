"""Peak memory of a fit on a text and on ten times that text, each in a process of its own.

python benchmarks/memory.py --json memory.json
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import arguments, write_json

_FIT = """
import json, resource, sys
import torch
from lightning.pytorch import Trainer
from lmkit.datamodules import MaskedLMDataModule
from lmkit.modules import MaskedLMModule

text, cache, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
data = MaskedLMDataModule(train_file=text, cache_dir=cache, batch_size=8, vocab_size=4096, seed=0)
module = MaskedLMModule({"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2,
                         "num_attention_heads": 2, "intermediate_size": 128})
trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False,
                  enable_checkpointing=False, limit_val_batches=10)
trainer.fit(module, data)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"peak_mib": peak, "tokens": data.statistics}))
"""


def write_text(path: Path, megabytes: float) -> None:
    """Write distinct lines of invented words, in the lengths and frequencies of English."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            file.write(" ".join(rng.choices(words, weights, k=rng.randint(5, 40))) + "\n")


def peak(megabytes: float, options: argparse.Namespace) -> dict[str, object]:
    """Fit on a text of this size with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        write_text(text, megabytes)
        command = [sys.executable, "-c", _FIT, str(text), f"{folder}/cache", str(options.steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measure both sizes."""
    parser = arguments(__doc__)
    parser.add_argument("--megabytes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    small, large = (peak(size, options) for size in (options.megabytes, 10 * options.megabytes))
    ratio = float(str(large["peak_mib"])) / float(str(small["peak_mib"]))
    write_json(options.json, "memory", options, {"text": small, "tenfold": large, "ratio": ratio})


if __name__ == "__main__":
    main()
