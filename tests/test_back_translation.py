"""Back-translation writes rows with other words, drops what is no use, and survives a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.text import chrf_score
from torchmetrics.text import CHRFScore
from transformers import AutoModel, BertConfig, BertModel

import lmkit
from lmkit import modules
from lmkit.back_translation import back_translate
from lmkit.back_translation_filter import Made, filter_translations
from lmkit.cache import BusyError
from lmkit.cli import main
from lmkit.journal import Journal
from lmkit.modules.sentence_vectors import SentenceVectors
from lmkit.translators import ModelTranslator
from tests import tiny
from tests.test_cli import MEASURE
from tests.tiny_run import ROOT
from tests.tiny_run import lmkit as shell
from tests.translating import MODELS, read_rows, save_translator, write_rows

#: Nothing is dropped for being unlike.
OPEN: dict[str, Any] = {"min_similarity": -1.0, "length_ratio": (0.0, 1e9)}


def same(texts: list[str]) -> list[str]:
    return texts


def more(texts: list[str]) -> list[str]:
    return [text + " indeed" for text in texts]


def encoder_folder(folder: Path) -> str:
    torch.manual_seed(0)
    sizes = {k: v for k, v in tiny.MASKED["bert"].items() if k != "model_type"}
    network = BertModel(BertConfig(vocab_size=len(tiny.tokenizer()), **sizes))
    network.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def test_columns_are_kept_and_the_text_is_another(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl")
    made = back_translate(tmp_path / "a.jsonl", tmp_path / "b.jsonl", same, more)
    read = read_rows(made.path)
    assert (made.rows, made.translations, made.written, made.dropped) == (9, 9, 9, {})
    assert [row["source_index"] for row in read] == list(range(9))
    for row, before in zip(read, rows, strict=True):
        assert row["sentence"] == before["sentence"] + " indeed"
        assert (row["label"], row["number"]) == (before["label"], before["number"])
        assert 0.5 < row["similarity"] < 1.0
    assert not (tmp_path / "b.jsonl.partial").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\n"one, two",x\nthree four,y\n'),
        ("a.tsv", "text\tlabel\none, two\tx\nthree four\ty\n"),
        ("a.txt", "one, two\nthree four\n"),
    ],
)
def test_tables_and_plain_lines_are_read(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    read = read_rows(back_translate(tmp_path / name, "b.jsonl", same, more).path)
    assert [row["text"] for row in read] == ["one, two indeed", "three four indeed"]
    assert [row.get("label") for row in read] == ([None, None] if "txt" in name else ["x", "y"])


@pytest.mark.parametrize("kind", MODELS)
def test_models_translate_both_ways(kind: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl")
    model = save_translator(tmp_path / kind, kind)
    ways = {"there": model, "back": model, "max_new_tokens": 12, "device": "cpu", **OPEN}
    state = torch.get_rng_state()
    first = back_translate("a.jsonl", "one.jsonl", **ways, copies=2, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    back_translate("a.jsonl", "two.jsonl", **ways, copies=2, batch_size=4)
    back_translate("a.jsonl", "other.jsonl", **ways, copies=2, batch_size=4, seed=1)
    one, two, other = (Path(f"{n}.jsonl").read_text() for n in ("one", "two", "other"))
    assert one == two and one != other
    texts = [row["sentence"] for row in read_rows(Path("one.jsonl"))]
    assert first.written >= 12 and len(set(texts)) == first.written  # copies differ


def test_beams_are_the_search_of_transformers(tmp_path: Path) -> None:
    translator = ModelTranslator(save_translator(tmp_path / "m", "marian"), beams=3, device="cpu")
    texts = tiny.sentences(3)
    # A random network is as good as undecided, up to the rounding of a batch.
    network, tokenizer = translator.network.double(), translator.tokenizer
    for text, written in zip(texts, translator(texts), strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        most = min(2 * max(len(tokenizer(t)["input_ids"]) for t in texts) + 16, 63)
        rows = network.generate(input_ids=ids, num_beams=3, do_sample=False, max_new_tokens=most)
        assert written == tokenizer.decode(rows[0], skip_special_tokens=True).strip()
    assert translator(texts) == translator(texts)


def test_a_prefix_stands_before_each_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\nthree\n")
    seen: list[str] = []

    def there(texts: list[str]) -> list[str]:
        seen.extend(texts)
        return [text.removeprefix("to fr: ") for text in texts]

    back_translate("a.txt", "b.jsonl", there, more, there_prefix="to fr: ", **OPEN)
    assert seen == ["to fr: one two", "to fr: three"]


def test_commands_read_and_write_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a small\n\ncat  sat"}) + "\n")
    made = back_translate("a.jsonl", "b.jsonl", ["cat"], ["sed", "s/sat/lay/"])
    assert read_rows(made.path)[0]["text"] == "a small cat lay"
    made = back_translate("a.jsonl", "c.jsonl", ["tr", "a-z", "A-Z"], ["sed", "s/$/ ./"], **OPEN)
    assert read_rows(made.path)[0]["text"] == "A SMALL CAT SAT ."


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["head", "-n1"], "the command head -n1 was given 3 lines and wrote 1"),
        (["true"], "the command true was given 3 lines and wrote 0"),
        (["sh", "-c", "echo no such mode >&2; exit 3"], "failed with code 3; it says: no such"),
        (["no-such-program"], "cannot run the command no-such-program: No such file"),
        (["printf", r"\377\n\n\n"], "writes no UTF-8"),
        ([], "a command is a list of words"),
    ],
)
def test_a_bad_command_is_named_and_quoted(
    command: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(ValueError, match="(?s)" + message.replace("(", r"\(")):
        back_translate("a.txt", "b.jsonl", command, more)
    assert not Path("b.jsonl").exists() and not Path("b.jsonl.partial").exists()


def test_what_is_no_use_is_dropped_and_counted(tmp_path: Path) -> None:
    texts = ["a small cat sat", "old trees grow", "rivers run", "books", "stars shine", " ", "moon"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    said = {
        "a small cat sat": "A  small CAT sat",
        "old trees grow": "   ",
        "rivers run": "rivers run and run and run and run",
        "books": "xqzvw",
        "stars shine": "the stars shine",
        "moon": "mo",
    }
    made = back_translate("a.jsonl", "b.jsonl", same, lambda t: [said[x] for x in t], copies=2)
    assert made.dropped == {"equal": 2, "blank": 2, "length": 1, "similarity": 2, "repeated": 4}
    assert [row["text"] for row in read_rows(made.path)] == ["the stars shine"]
    assert (made.rows, made.translations, made.written) == (7, 12, 1)
    assert made.reasons.startswith("2 equal, ") and made.written + sum(made.dropped.values()) == 12


def test_length_and_similarity_keep_what_is_just_on_the_bound() -> None:
    made = [Made(0, n, text) for n, text in enumerate(["abcde fghij klmno xy", "abcde"])]
    kept, dropped = filter_translations(["abcde fghi"], made, None, 0.0, (0.5, 2.0))
    assert len(kept) == 2 and not dropped
    bound = kept[0].similarity
    for least, count in ((bound, 1), (np.nextafter(bound, 2), 0)):
        stays, _ = filter_translations(["abcde fghi"], made[:1], None, least, (0.5, 2.0))
        assert len(stays) == count


def test_similarity_is_chrf_without_an_encoder() -> None:
    pairs = [("the small cat sat", "the old cat sat"), ("stars shine", "the moon shines")]
    made = [Made(n, 0, after) for n, (_, after) in enumerate(pairs)]
    kept, _ = filter_translations([a for a, _ in pairs], made, None, 0.0, (0.0, 9.0))
    for (before, after), each in zip(pairs, kept, strict=True):
        metric = CHRFScore()
        metric.update([after], [[before]])
        assert each.similarity == pytest.approx(float(metric.compute()), abs=1e-6)


def test_similarity_is_the_cosine_of_mean_pooled_states(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "encoder")
    write_rows(tmp_path / "a.jsonl", 5)
    made = back_translate(
        "a.jsonl", "b.jsonl", same, more, similarity_model=folder, device="cpu", **OPEN
    )
    network, tokenizer = AutoModel.from_pretrained(folder).double().eval(), tiny.tokenizer()

    def vector(text: str) -> Any:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        mean = network(input_ids=ids)[0][0].mean(0).detach().numpy()
        return mean / np.linalg.norm(mean)

    originals = read_rows(Path("a.jsonl"))
    for row in read_rows(made.path):
        before = originals[row["source_index"]]["sentence"]
        expected = vector(before) @ vector(row["sentence"])
        assert row["similarity"] == pytest.approx(expected, abs=1e-4)


def test_vectors_do_not_depend_on_the_batch_and_keep_the_mode(tmp_path: Path) -> None:
    vectors = SentenceVectors.load(encoder_folder(tmp_path / "e"), device="cpu")
    texts = tiny.sentences(7)
    vectors.network.train()
    together = vectors(texts)
    alone = torch.cat([vectors([text]) for text in texts])
    assert vectors.network.training and torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together.norm(dim=1), torch.ones(7)) and len(vectors([])) == 0


@pytest.mark.parametrize("cut", ["whole", "torn"])
def test_a_cut_pass_goes_on_to_the_same_end(cut: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 10)
    model = save_translator(tmp_path / "t5", "t5")
    calls: list[int] = []

    def back(texts: list[str]) -> list[str]:
        calls.append(len(texts))
        # Drawn, so that a pass that goes on must draw what the first one would have.
        return [f"{text} {torch.rand(1).item():.6f}" for text in texts]

    ways = {"there": model, "back": back, "max_new_tokens": 8, "batch_size": 3, "copies": 2, **OPEN}
    back_translate("a.jsonl", "whole.jsonl", **ways)
    assert calls == [3, 3, 3, 1] * 2
    stop = iter(range(5))

    def breaking(texts: list[str]) -> list[str]:
        if next(stop) == 3:
            raise KeyboardInterrupt
        return back(texts)

    breaking.__qualname__, breaking.__module__ = back.__qualname__, back.__module__
    with pytest.raises(KeyboardInterrupt):
        back_translate("a.jsonl", "cut.jsonl", **{**ways, "back": breaking})
    journal = Path("cut.jsonl.partial/journal.jsonl")
    assert len(journal.read_bytes().splitlines()) == 4 and not Path("cut.jsonl").exists()
    if cut == "torn":
        journal.write_bytes(journal.read_bytes()[:-5])
    calls.clear()
    back_translate("a.jsonl", "cut.jsonl", **ways)
    assert Path("cut.jsonl").read_text() == Path("whole.jsonl").read_text()
    assert len(calls) == (6 if cut == "torn" else 5)


def test_other_options_are_refused_and_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 4)
    none_left = {"min_similarity": 1.0}
    with pytest.raises(ValueError, match=r"of 4 translations none is left .*4 similarity"):
        back_translate("a.jsonl", "b.jsonl", same, more, **none_left)
    with pytest.raises(ValueError, match=r"was begun otherwise \(copies=1, now 2; seed=0, now 7\)"):
        back_translate("a.jsonl", "b.jsonl", same, more, copies=2, seed=7)
    with pytest.raises(ValueError, match=r"back='tests.*more', now '.*same'"):
        back_translate("a.jsonl", "b.jsonl", same, same)
    # Thresholds may be others: what was translated is not translated again.
    made = back_translate("a.jsonl", "b.jsonl", same, more, min_similarity=0.2)
    assert made.written == 4
    write_rows(tmp_path / "c.jsonl", 4)
    with pytest.raises(ValueError, match="none is left"):
        back_translate("c.jsonl", "d.jsonl", same, more, **none_left)
    write_rows(tmp_path / "c.jsonl", 5)
    with pytest.raises(ValueError, match=r"otherwise \(texts="):
        back_translate("c.jsonl", "d.jsonl", same, more)


def test_two_passes_do_not_write_the_same_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "p", {"a": 1}) as journal:
        journal.add({"row": 1})
        with pytest.raises(BusyError, match="is writing to"):
            Journal(tmp_path / "p", {"a": 1})
    with Journal(tmp_path / "p", {"a": 1}) as journal:
        assert journal.entries == [{"row": 1}]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "a.csv is empty"),
        ("text,label\n", {}, "there are no rows in"),
        ("words,label\none,x\n", {}, "which column is the text.* 'words', 'label'"),
        (
            "text,label\none,x\n",
            {"text_column": "test"},
            "no text column 'test'.*did you mean 'text'",
        ),
        ("text,similarity\none,x\n", {}, "there is a column 'similarity' already"),
        ("text\none\n", {"copies": 0}, "copies must be at least 1"),
        ("text\none\n", {"batch_size": 0}, "batch_size must be at least 1"),
        ("text\none\n", {"temperature": 0.0}, "temperature must be above 0"),
        ("text\none\n", {"beams": 2, "copies": 2}, "beams=2 finds the same text"),
        ("text\none\n", {"length_ratio": (2.0, 1.0)}, "length_ratio must be two numbers"),
        ("text\none\n", {"min_similarity": 2.0}, "min_similarity must lie in"),
        ("text\none\n", {"there": "./nowhere"}, "nowhere"),
        ("text\none\n", {"device": "tpuu"}, "device must be one that is here, such as cpu"),
        ("text\none\n", {"output": "a.csv"}, "is one of the files"),
        ("text\none\n", {"output": "b.csv"}, "b.csv must end in .jsonl"),
        ("text\none\n", {"output": "b.jsonl.gz"}, "must end in .jsonl"),
        ("text\none\n", {"there": ["true"]}, "command true was given 1 lines and wrote 0"),
    ],
)
def test_bad_input_is_answered_in_plain_words(
    content: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match="(?s)" + message):
        back_translate("a.csv", **{"output": "b.jsonl", "there": same, "back": more} | options)
    assert not Path("b.jsonl").exists() and not Path("b.jsonl.partial").exists()


def test_half_of_a_character_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two", "note": "\\ud83d"}\n')
    with pytest.raises(ValueError, match=r"line 2: the value of 'note' has half of a character"):
        back_translate("a.jsonl", "b.jsonl", same, more)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"b.jsonl is a folder"):
        back_translate("a.txt", "b.jsonl", same, more, overwrite=True)


def test_many_pairs_are_compared_as_one_by_one() -> None:
    texts = [f"the cat {number} sat on the mat" for number in range(150)]
    made = [Made(row, 0, text.replace("sat", "lay")) for row, text in enumerate(texts)]
    kept, _ = filter_translations(texts, made, None, 0.0, (0.5, 2.0))
    assert len(kept) == 150
    for each in kept[::40]:
        alone = chrf_score([each.text], [[texts[each.row]]])
        assert each.similarity == pytest.approx(float(alone), abs=1e-6)


def test_what_cannot_translate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": 2}\n')
    with pytest.raises(ValueError, match="line 2: the value of 'text' is int, not a string"):
        back_translate("a.jsonl", "b.jsonl", same, more)
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(TypeError, match=r"there must be a model's folder .* got int"):
        back_translate("a.txt", "b.jsonl", 3, more)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="back was given 2 texts and returned 1"):
        back_translate("a.txt", "b.jsonl", same, lambda texts: texts[:1])
    with pytest.raises(TypeError, match="back has to return a list of texts"):
        back_translate("a.txt", "b.jsonl", same, lambda texts: [1 for _ in texts])
    module = modules.SequenceClassificationModule(
        {**tiny.MASKED["bert"], "id2label": {0: "a", 1: "b"}}
    )
    module.tokenizer = tiny.tokenizer()
    module.configure_model()
    lmkit.export(module, "classifier")
    with pytest.raises(ValueError, match=r"written by an encoder-decoder .* is for a Sequence"):
        back_translate("a.txt", "b.jsonl", "classifier", more)
    with pytest.raises(ValueError, match="vectors of texts are of an encoder"):
        SentenceVectors.load(save_translator(tmp_path / "bart", "bart"))


def test_the_command_line_does_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(tmp_path / "a.jsonl")
    line = ["back-translate", "a.jsonl", "b.jsonl", "--there_command", "cat"]
    assert main([*line, "--back_command", "sed s/s/z/4", "--length_ratio", "0.9", "2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    made = back_translate("a.jsonl", "c.jsonl", ["cat"], ["sed", "s/s/z/4"])
    assert Path("b.jsonl").read_text() == Path("c.jsonl").read_text()
    assert 0 < made.written < 9 and shown == [
        f"{made.written} of 9 translations of 9 rows (dropped: {9 - made.written} equal)",
        "b.jsonl",
    ]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("--help", 0, ""),
        ("a.jsonl b.jsonl", 2, "one of the arguments --there --there_command is required"),
        ("a.jsonl a.jsonl --there x --back y", 2, "a.jsonl is there already; --overwrite"),
        ("a.jsonl b.jsonl --there x --back_command y", 1, "x"),
        ("a.jsonl b.jsonl --there_command false --back_command cat", 1, "false failed with code 1"),
    ],
)
def test_a_wrong_command_line_says_why(
    line: str, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "a.jsonl")
    assert shell(f"back-translate {line}") == code
    assert message in capsys.readouterr().err


def test_help_comes_before_torch() -> None:
    command = [sys.executable, "-c", MEASURE, "back-translate", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    returned, _, slow = json.loads(done.stderr.splitlines()[-1])
    assert (returned, slow) == (0, [])


def test_a_process_that_is_killed_goes_on(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 6)
    line = ["-m", "lmkit", "back-translate", "a.jsonl", "b.jsonl", "--there_command", "cat"]
    line += ["--back_command", "sh -c 'sleep 0.5; sed s/$/./'", "--batch_size", "1"]
    command = [sys.executable, *line]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    journal = Path("b.jsonl.partial/journal.jsonl")
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_bytes().count(b"\n") - 1
    assert 2 <= done < 6 and not Path("b.jsonl").exists()
    assert main(line[2:]) == 0
    assert len(read_rows(Path("b.jsonl"))) == 6 and not journal.exists()
