"""Every packaged recipe runs through the real command, made small."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import BertConfig, BertModel

from lmkit import cli
from tests.tiny import MASKED, tokenizer, write_text
from tests.tiny_run import lmkit

#: Less of everything, and a text of its own: the embedded corpus is read in its own tests.
FAST = (
    "--data.source=text.txt --data.vocab_size=300 --data.max_length=16 --data.batch_size=4 "
    "--data.val_fraction=0.2 --trainer.accelerator=cpu --trainer.max_steps=4 "
    "--trainer.max_epochs=-1 --trainer.val_check_interval=2 --trainer.log_every_n_steps=1 "
    "--trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
)
RECIPES = cli.recipes()
#: Recipes that begin with a model of the hub, in whose place a tiny one is put.
FROM_A_MODEL = ("masked_lm_head", "continued_pretraining")


def encoder(folder: Path) -> Path:
    """Save a tiny encoder without a language-model head, and its tokenizer."""
    config = BertConfig(**{k: v for k, v in MASKED["bert"].items() if k != "model_type"})
    config.vocab_size = len(tokenizer())
    BertModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_there_are_recipes():
    assert {"masked_lm", "causal_lm", "denoising", "replaced_token"} <= set(RECIPES)


@pytest.mark.parametrize("word", RECIPES)
def test_recipe_trains_resumes_and_predicts(word, tmp_path):
    write_text(tmp_path / "text.txt", 60)
    fills = ("masked_lm", "masked_lm_head", "continued_pretraining")
    asked = {"denoising": "the <extra_id_0> fox", **dict.fromkeys(fills, "the [MASK] fox")}
    (tmp_path / "ask.txt").write_text(asked.get(word, "the quick") + "\n")
    run = tmp_path / "runs" / word
    fast = FAST
    if word in FROM_A_MODEL:
        fast += f" --model.model={encoder(tmp_path / 'encoder')}"
    assert lmkit(f"fit -c {word} {fast}") == 0
    assert lmkit(f"fit -c {word} {fast} --trainer.max_steps=6 --ckpt_path last") == 0
    last = run / "checkpoints" / "last.ckpt"
    assert lmkit(f"predict --ckpt_path {last} --data.predict_file=ask.txt") == 0
    assert json.loads((run / "predictions.jsonl").read_text())
    steps = [json.loads(line)["step"] for line in (run / "tables" / "samples.jsonl").open()]
    assert sorted(set(steps)) == [0, 2, 4, 6]


@pytest.mark.parametrize(("word", "path"), RECIPES.items())
def test_recipe_says_what_why_and_how(word, path):
    what, empty, why, *_ = path.read_text().splitlines()
    assert what.startswith("# ") and what.endswith(".") and len(what) <= 100
    assert (empty, why[:7]) == ("#", "# Why: ")
    assert f"#   lmkit fit -c {word}\n" in path.read_text()


@pytest.mark.parametrize("word", RECIPES)
def test_recipe_is_resolved_without_a_change(word, capsys):
    """What the parser makes of a recipe holds every value that stands in it."""

    def contains(whole, part):
        if isinstance(part, dict):
            return all(contains(whole[key], part[key]) for key in part)
        if isinstance(part, list):
            return all(contains(w, p) for w, p in zip(whole, part, strict=True))
        # Short class names are resolved.
        return whole == part or str(whole).endswith(f".{part}")

    assert lmkit(f"fit -c {word} --print_config") == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert contains(resolved, yaml.safe_load(Path(RECIPES[word]).read_text()))
