"""Whole numbers of 8 bits: how fast, how small, how near, and what is left of an accuracy.

`--what speed`: the MiniLM encoder, with a head that passes its hidden states on, as ONNX in float32
and in int8, beside PyTorch in float32 and bfloat16 and beside ONNX Runtime's own quantizer with its
best options, on 1 x 32 and 32 x 128 tokens: one thread each, the least CPU time of interleaved
rounds. `plain order` is the same file in a session that leaves sum and normalization apart
(`disabled_optimizers=["SkipLayerNormFusion"]`), as `lmkit.load` runs it.

`--what agreement`: the cosine of mean-pooled embeddings of TREC questions to those of float32, for
every way to round, in PyTorch; ranges and factors come from other questions.

`--what accuracy`: TREC-6 (5,452 / 500), fine-tuned in float32 once for each seed, then quantized
after the training in every way, and trained on for a short while with rounding and, to compare,
without; int8 ONNX is tested in ONNX Runtime.

    python benchmarks/quantization.py --what speed --json quantization_speed.json
    python benchmarks/quantization.py --what agreement
    python benchmarks/quantization.py --what accuracy --seeds 0 1 2 --json quantization.json
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from measure import WARMUP, arguments, encoder_folder, quiet_trainer, write_json
from sequence_classification import initial, rows_of, write_rows
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, AutoTokenizer

SHAPES = ((1, 32), (32, 128))

#: Ways to round after the training, and arguments of the callback.
AFTER: dict[str, dict[str, Any]] = {
    "weight_only": {"method": "weight_only"},
    "weight_only 4 bits": {"method": "weight_only", "bits": 4},
    "dynamic per_token": {"method": "dynamic"},
    "dynamic per_token smooth 0.5": {"method": "dynamic", "smooth": 0.5},
    "dynamic per_tensor": {"method": "dynamic", "activations": "per_tensor"},
    "dynamic per_tensor smooth 0.5": {
        "method": "dynamic",
        "activations": "per_tensor",
        "smooth": 0.5,
    },
    "dynamic per_tensor smooth 0.7": {
        "method": "dynamic",
        "activations": "per_tensor",
        "smooth": 0.7,
    },
    "static": {"method": "static"},
    "static smooth 0.7": {"method": "static", "smooth": 0.7},
    "static smooth 0.7 without 4": {"method": "static", "smooth": 0.7, "sensitivity": 4},
}
#: Ways to train with rounding.
LEARNED: dict[str, dict[str, Any]] = {
    "qat per_token": {},
    "qat per_tensor": {"activations": "per_tensor"},
    "qat 4 bits": {"bits": 4},
}


def hidden_states() -> Any:
    """Make a module whose logits are the encoder's last hidden states."""
    from lmkit.modules import TokenClassificationModule

    folder = Path(tempfile.mkdtemp())
    network = AutoModelForTokenClassification.from_pretrained(
        encoder_folder(), dtype=torch.float32, num_labels=384
    )
    with torch.no_grad():
        network.classifier.weight.copy_(torch.eye(384))
        network.classifier.bias.zero_()
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(folder)
    module = TokenClassificationModule(str(folder))
    module.tokenizer = AutoTokenizer.from_pretrained(folder)
    module.configure_model()
    module.network.eval()
    return module


def read(module: Any, texts: list[str]) -> list[dict[str, Tensor]]:
    """Return texts as batches of 16."""
    parts = [texts[first : first + 16] for first in range(0, len(texts), 16)]
    how: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
    return [dict(module.tokenizer(part, **how)) for part in parts]


@torch.no_grad()
def pooled(says: Callable[..., Any], batches: list[dict[str, Tensor]]) -> Tensor:
    """Return the mean of the real tokens' hidden states, `[N, 384]`."""
    found = []
    for batch in batches:
        states, mask = says(**batch), batch["attention_mask"].unsqueeze(-1)
        found.append((states.float() * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


def nearness(first: Tensor, second: Tensor) -> float:
    """Return the mean cosine of embeddings."""
    return float(nn.functional.cosine_similarity(first.double(), second.double()).mean())


def of_session(session: Any) -> Callable[..., Tensor]:
    """Return a function that runs a session on tensors."""
    takes = {given.name for given in session.get_inputs()}

    def run(**batch: Tensor) -> Tensor:
        feed = {name: ids.numpy() for name, ids in batch.items() if name in takes}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def sessions(options: argparse.Namespace, module: Any, folder: Path) -> dict[str, Any]:
    """Export in every way; returns functions by name, and the bytes of the files."""
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    import lmkit
    from lmkit.onnx_int8 import layers_of

    how: dict[str, Any] = {"format": "onnx", "overwrite": True}
    lmkit.export(module, folder / "float32", **how)
    # The head is none, and has to stay so.
    lmkit.export(module, folder / "int8", quantize="int8", exclude=["classifier"], **how)
    (folder / "peer").mkdir()
    plain = folder / "float32" / "model.onnx"
    head = [node.name for node in layers_of(onnx.load(plain))["classifier"]]
    peer = folder / "peer" / "model.onnx"
    quantize_dynamic(plain, peer, per_channel=True, nodes_to_exclude=head)
    made: dict[str, Any] = {}
    for name in ("float32", "int8", "peer"):
        path = folder / name / "model.onnx"
        for order, off in (("", None), (" plain order", ["SkipLayerNormFusion"])):
            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = settings.inter_op_num_threads = options.threads
            session = onnxruntime.InferenceSession(
                str(path), settings, providers=["CPUExecutionProvider"], disabled_optimizers=off
            )
            made[f"onnx {name}{order}"] = (of_session(session), path.stat().st_size)
    return made


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Measure times, bytes and nearness of every file."""
    module = hidden_states()
    texts = [text for text, _ in rows_of("trec")[1]][: options.texts or 64]
    with tempfile.TemporaryDirectory() as scratch:
        ways = sessions(options, module, Path(scratch))
        size = sum(4 * p.numel() for p in module.network.parameters())
        half = copy.deepcopy(module.network).bfloat16()
        ways = {
            "torch float32": (lambda **b: module.network(**b).logits, size),
            "torch bfloat16": (lambda **b: half(**b).logits, size // 2),
            **ways,
        }
        batches = read(module, texts)
        expected = pooled(ways["torch float32"][0], batches)
        figures: dict[str, Any] = {
            name: {
                "megabytes": bytes_ / 1e6,
                "size": bytes_ / ways["onnx float32"][1],
                "cosine": nearness(expected, pooled(says, batches)),
            }
            for name, (says, bytes_) in ways.items()
        }
        for rows, length in SHAPES:
            ids = torch.randint(1000, 30000, (rows, length))
            batch = {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "token_type_ids": torch.zeros_like(ids),
            }
            least = dict.fromkeys(ways, float("inf"))
            with torch.inference_mode():
                for _ in range(options.rounds if rows == 1 else max(3, options.rounds // 10)):
                    for name, (says, _) in ways.items():
                        began = time.process_time()
                        says(**batch)
                        least[name] = min(least[name], time.process_time() - began)
            shape = f"{rows} x {length}"
            for name, seconds in least.items():
                figures[name][f"{shape} ms"] = seconds * 1e3
                figures[name][f"{shape} times"] = least["torch float32"] / seconds
        for name, row in figures.items():
            print(name, {key: round(value, 4) for key, value in row.items()}, flush=True)
    return figures


def agreement(options: argparse.Namespace) -> dict[str, Any]:
    """Measure how near every way to round stays, without any training."""
    from lmkit.surgery.quantization import Quantize
    from lmkit.surgery.quantization_ranges import (
        InputRanges,
        input_scales,
        put_calibration,
        scale_weights,
        smoothing_of,
    )

    module = hidden_states()
    known = [text for text, _ in rows_of("trec")[0]][: options.texts or 256]
    batches = read(module, [text for text, _ in rows_of("trec")[1]][: options.texts or 128])
    expected = pooled(lambda **b: module.network(**b).logits, batches)
    layers = Quantize(embeddings=False).layers(module.network)
    ranges = InputRanges(module.network, list(layers))
    with ranges, torch.no_grad():
        for batch in read(module, known):
            with ranges.watching(batch):
                module.network(**batch)
    totals = {name: ranges.total(name) for name in layers}
    figures: dict[str, Any] = {}
    for name, arguments_ in AFTER.items():
        if arguments_.get("sensitivity"):
            continue
        rounded = copy.deepcopy(module.network)
        alpha, method = arguments_.get("smooth"), arguments_["method"]
        factors = {} if alpha is None else smoothing_of(rounded, totals, ranges.readers, alpha)
        scale_weights(rounded, factors)
        inputs = {"weight_only": None, "static": "static"}
        bits = arguments_.get("bits", 8)
        Quantize(
            bits=bits,
            group_size=0 if bits == 8 else 32,
            activations=inputs.get(method, arguments_.get("activations", "per_token")),
            smooth=alpha is not None,
        )(rounded)
        scales = input_scales(totals, factors) if method == "static" else None
        put_calibration(rounded, factors, scales)
        states = pooled(lambda net=rounded, **b: net(**b).logits, batches)
        figures[name] = nearness(expected, states)
        print(name, round(figures[name], 4), flush=True)
    return figures


def tested(module: Any, data: Any, *callbacks: Any, **length: Any) -> float:
    """Fit a module, and return its accuracy in the test."""
    trainer = quiet_trainer(*callbacks, **length)
    trainer.fit(module, data)
    return float(trainer.test(module, data, verbose=False)[0]["test/accuracy"])


def accuracy(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Tune in float32, and quantize that network in every way."""
    import lmkit
    from lmkit.callbacks.quantization import QuantizationCallback
    from lmkit.datamodules import SequenceClassificationDataModule
    from lmkit.modules import SequenceClassificationModule

    seed_everything(seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train, test = (rows[: options.texts] for rows in rows_of("trec"))
        data = SequenceClassificationDataModule(
            train_file=write_rows(folder / "train.csv", train),
            test_file=write_rows(folder / "test.csv", test),
            val_fraction=0,
            max_length=128,
            batch_size=16,
            eval_batch_size=64,
            seed=seed,
            cache_dir=str(folder),
        )

        def make(model: Path, rate: float) -> Any:
            return SequenceClassificationModule(str(model), learning_rate=rate, warmup=WARMUP)

        start = initial(sorted({label for _, label in rows_of("trec")[0]}), seed)
        dense = make(start, 1e-4)
        found = {"float32": tested(dense, data, max_epochs=options.tuning_epochs)}
        print(seed, found, flush=True)
        tuned = lmkit.export(dense, folder / "tuned")

        def note(name: str, value: float) -> None:
            found[name] = value
            print(seed, name, value, flush=True)

        def in_onnx(name: str, module: Any) -> None:
            path = folder / name.replace(" ", "_")
            lmkit.export(module, path, format="onnx", quantize=None if "qat" in name else "int8")
            tester = quiet_trainer()
            figures = tester.test(lmkit.load(path), data, verbose=False)[0]
            note(f"onnx int8 {name}", float(figures["test/accuracy"]))

        in_onnx("float32", dense)
        for name, how in AFTER.items():
            callback = QuantizationCallback(calibration_batches=options.batches, **how)
            note(name, tested(make(tuned, 1e-4), data, callback, max_steps=0))
        if options.epochs:
            length = {"max_epochs": options.epochs}
            note("float32 trained on", tested(make(tuned, options.rate), data, **length))
            for name, how in LEARNED.items():
                module = make(tuned, options.rate)
                note(name, tested(module, data, QuantizationCallback(**how), **length))
                if name == "qat per_tensor":
                    in_onnx(name, module)
    return found


def main() -> None:
    """Measure what is asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--what", choices=("speed", "agreement", "accuracy"), default="speed")
    parser.add_argument("--rounds", type=int, default=60, help="of the short inputs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tuning-epochs", type=int, default=4, help="in float32")
    parser.add_argument("--epochs", type=int, default=1, help="with rounding")
    parser.add_argument("--rate", type=float, default=2e-5, help="with rounding")
    parser.add_argument("--batches", type=int, default=32, help="to calibrate on")
    parser.add_argument("--texts", type=int, help="of each split at most, for a try")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "accuracy":
        runs = [accuracy(options, seed) for seed in options.seeds]
        figures: dict[str, Any] = {"runs": runs}
        for name in runs[0]:
            figures[name] = statistics.mean(run[name] for run in runs)
    else:
        figures = {"speed": speed, "agreement": agreement}[options.what](options)
    write_json(options.json, f"quantization {options.what}", options, figures)


if __name__ == "__main__":
    main()
