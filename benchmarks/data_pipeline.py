"""The way of the data: tokenizing, collating, filling rows, and the first step of a cold process.

Against Hugging Face's collator and `datasets`, the bare fast tokenizer, and the path of the example
script `run_mlm.py`, on WikiText-2 with MiniLM's tokenizer; CPU seconds of one thread, both sides in
turn, medians over rounds.

    python benchmarks/data_pipeline.py --rounds 5 --json data_pipeline.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LENGTH, ROWS = 128, 32

# Each is a process of its own: imports, tokenizing, model, one step of 16 rows.
FIRST_STEP = {
    "lmkit": """
from lmkit import tune_process
tune_process()
import torch
torch.set_num_threads(1)
from lightning.pytorch import seed_everything
from lmkit import Trainer
from lmkit.datamodules import MaskedLMDataModule
from lmkit.modules import MaskedLMModule
data = MaskedLMDataModule(train_file=TEXT, val_fraction=0, max_length=128, batch_size=16,
                          cache_dir=CACHE)
trainer = Trainer(accelerator="cpu", max_steps=1, gradient_clip_val=1.0, logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0)
trainer.fit(MaskedLMModule(MODEL), data)
""",
    "run_mlm": """
import torch
torch.set_num_threads(1)
from itertools import chain
import datasets
from transformers import (AutoConfig, AutoModelForMaskedLM, AutoTokenizer,
                          DataCollatorForLanguageModeling, Trainer, TrainingArguments)
raw = datasets.load_dataset("text", data_files={"train": TEXT}, cache_dir=CACHE)["train"]
tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForMaskedLM.from_pretrained(MODEL, config=AutoConfig.from_pretrained(MODEL))
tokens = raw.map(lambda rows: tokenizer(rows["text"], return_special_tokens_mask=True),
                 batched=True, remove_columns=["text"])
def group(rows):
    whole = {k: list(chain(*rows[k])) for k in rows}
    total = len(whole["input_ids"]) // 128 * 128
    return {k: [t[i:i + 128] for i in range(0, total, 128)] for k, t in whole.items()}
grouped = tokens.map(group, batched=True)
settings = TrainingArguments(output_dir=CACHE, max_steps=1, per_device_train_batch_size=16,
                             use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True)
Trainer(model, settings, DataCollatorForLanguageModeling(tokenizer), grouped).train()
""",
}


def cpu(work: Callable[[], Any]) -> float:
    """Return the CPU seconds that `work` takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def collating(options: argparse.Namespace, text: Path, model: str, cache: str) -> dict[str, Any]:
    """Compare batches of 32 x 128: ours packed and cut, and Hugging Face's cut."""
    from datasets import Dataset
    from measure import median
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    from lmkit.datamodules import MaskedLMDataModule

    loaders = {}
    for batching in ("pack", "chunk", "bucket"):
        data = MaskedLMDataModule(
            train_file=str(text),
            val_fraction=0,
            tokenizer=model,
            max_length=LENGTH,
            batch_size=ROWS,
            batching=batching,  # type: ignore[arg-type]
            cache_dir=cache,
        )
        data.setup()
        loaders[batching] = data.train_dataloader()
    tokenizer = AutoTokenizer.from_pretrained(model)
    chunks = [b["input_ids"].tolist() for b in loaders["chunk"]]
    rows = [row for batch in chunks for row in batch]
    special = set(tokenizer.all_special_ids)
    columns = {
        "input_ids": rows,
        "attention_mask": [[1] * LENGTH] * len(rows),
        "token_type_ids": [[0] * LENGTH] * len(rows),
        "special_tokens_mask": [[int(t in special) for t in row] for row in rows],
    }
    theirs, collate = Dataset.from_dict(columns), DataCollatorForLanguageModeling(tokenizer)
    count = len(rows) // ROWS

    def ours(loader: Any) -> float:
        return cpu(
            lambda: [loader.collate(0, loader.plan.batch(0, i)) for i in range(len(loader.plan))]
        ) / len(loader.plan)

    def peers() -> float:
        places = [list(range(i * ROWS, (i + 1) * ROWS)) for i in range(count)]
        return cpu(lambda: [collate(theirs.__getitems__(place)) for place in places]) / count

    seconds: dict[str, list[float]] = {}
    for _ in range(options.rounds + 1):
        for name, loader in loaders.items():
            seconds.setdefault(name, []).append(ours(loader))
        seconds.setdefault("transformers", []).append(peers())
    # The first round warms up.
    times = {name: median(values[1:]) for name, values in seconds.items()}
    fill = {}
    for name, loader in loaders.items():
        batches = list(loader)
        real = [b["attention_mask"][b["index"] >= 0] for b in batches]
        tokens = sum(int(mask.sum()) for mask in real)
        slots = sum(mask.numel() for mask in real)
        fill[name] = round(tokens / slots, 4)
    return {
        "ms_per_batch": {name: round(1e3 * value, 3) for name, value in times.items()},
        "times_faster": {n: round(times["transformers"] / times[n], 1) for n in loaders},
        "filled_share_of_rows": fill,
    }


def tokenizing(options: argparse.Namespace, text: Path, model: str) -> dict[str, Any]:
    """Compare text to store on disk with the bare tokenizer, and with `datasets.map`."""
    from datasets import Dataset, disable_caching
    from measure import median
    from transformers import AutoTokenizer

    from lmkit.datamodules.text_rows import Text
    from lmkit.datamodules.token_writer import write_stores
    from lmkit.tokenization import text_encoder

    disable_caching()
    tokenizer = AutoTokenizer.from_pretrained(model)
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    encode = text_encoder(tokenizer)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    data = Dataset.from_dict({"text": lines})

    def bare() -> None:
        for low in range(0, len(lines), 1000):
            [
                row.ids
                for row in backend.encode_batch_fast(
                    lines[low : low + 1000], add_special_tokens=False
                )
            ]

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            texts = (Text(line, "text", number) for number, line in enumerate(lines))
            write_stores(
                texts,
                {"train": Path(folder) / "store"},
                encode=encode,
                separator=tokenizer.sep_token_id,
                vocab_size=len(tokenizer),
            )

    def mapped() -> None:
        data.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])

    ways = {"bare tokenizer": bare, "lmkit to disk": ours, "datasets.map": mapped}
    seconds: dict[str, list[float]] = {}
    for _ in range(options.rounds + 1):
        for name, work in ways.items():
            seconds.setdefault(name, []).append(cpu(work))
    times = {name: median(values[1:]) for name, values in seconds.items()}
    return {
        "cpu_seconds": {name: round(value, 3) for name, value in times.items()},
        "over_bare": {n: round(v / times["bare tokenizer"], 3) for n, v in times.items()},
    }


def first_step(options: argparse.Namespace, text: Path, model: str) -> dict[str, Any]:
    """Compare the CPU seconds of cold processes up to and with their first step."""
    from measure import median

    seconds: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, code in FIRST_STEP.items():
            with tempfile.TemporaryDirectory() as cache:
                names = {"TEXT": str(text), "MODEL": model, "CACHE": cache}
                head = "".join(f"{n} = {v!r}\n" for n, v in names.items())
                tail = "\nimport resource, json\nu = resource.getrusage(resource.RUSAGE_SELF)\n"
                tail += "print(json.dumps(u.ru_utime + u.ru_stime))\n"
                environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
                done = subprocess.run(
                    [sys.executable, "-c", head + code + tail],
                    capture_output=True,
                    text=True,
                    env=environment,
                )
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
            seconds.setdefault(name, []).append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(name, seconds[name][-1], flush=True)
    times = {name: median(values) for name, values in seconds.items()}
    return {"cpu_seconds": times, "ratio": round(times["lmkit"] / times["run_mlm"], 3)}


def main() -> None:
    """Measure all three."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    import datasets
    import torch
    from measure import arguments, data_folder, encoder_folder, write_json
    from transformers import AutoTokenizer

    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    datasets.disable_progress_bars()
    text = data_folder() / "wikitext-2" / "test.txt"
    with tempfile.TemporaryDirectory() as folder:
        # The folder of the encoder, without the bound on length that would truncate or warn.
        tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
        tokenizer.model_max_length = 10**9
        tokenizer.save_pretrained(folder)
        for path in Path(encoder_folder()).iterdir():
            if path.is_file() and not (Path(folder) / path.name).exists():
                (Path(folder) / path.name).symlink_to(path)
        figures = {
            "collating": collating(options, text, folder, f"{folder}/cache"),
            "tokenizing": tokenizing(options, text, folder),
            "first_step": first_step(options, text, folder),
        }
    write_json(options.json, "data_pipeline", options, figures)


if __name__ == "__main__":
    main()
