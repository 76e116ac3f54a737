"""Attacks: how many texts a second the network is asked about, against loops that ask in turn.

The MiniLM encoder with a fresh head is attacked on sentences of SUBJ, each labelled as the network
has it, so that all are attacked. The search (deletion, then synonyms of WordNet) is the same three
times, and so are its queries:

- `lmkit`: candidates of all active texts together, sorted by length;
- `each word`: candidates of one word of one text in a batch, padded, as most tools have it;
- `each text`: one text after the other, as most scripts have it.

A query is a distinct text that is asked about for one example. No head has to be trained for that.

    python benchmarks/attacks.py --texts 200 --json attacks.json
    python benchmarks/attacks.py --texts 20 --ways lmkit "each word"
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from measure import arguments, encoder_folder, write_json
from sequence_classification import rows_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lmkit import load
from lmkit.attacks import WordAttack
from lmkit.transforms import split_words
from lmkit.transforms.words import join_words

#: Which words may change, and into which: the same for all ways.
RULES = WordAttack()

WAYS = ("lmkit", "each word", "each text")

Ask = Callable[[Sequence[str]], np.ndarray]


def main() -> None:
    """Measure, and show what came out."""
    parser = arguments(__doc__)
    parser.add_argument("--texts", type=int, default=200, help="that are attacked")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batch_size", type=int, default=16, help="of texts, at most")
    parser.add_argument("--rounds", type=int, default=3, help="of each way, in turn")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        fresh_head(folder)
        texts = [text for text, _ in rows_of("subj")[1]]
        texts = random.Random(0).sample(texts, options.texts)
        labels = predicted(folder, texts)
        rates: dict[str, list[float]] = {way: [] for way in options.ways}
        found: dict[str, list[str]] = {}
        ready = {way: attacker(way, folder, options.batch_size) for way in options.ways}
        for _ in range(options.rounds):
            for way, attack in ready.items():
                begin = time.process_time()
                queries, made = attack(texts, labels)
                rates[way].append(queries / (time.process_time() - begin))
                found[way] = made
                print(f"{way}: {queries} queries, {rates[way][-1]:.1f} a CPU second", flush=True)
    medians = {way: statistics.median(rates[way]) for way in options.ways}
    base = medians[options.ways[-1]]
    for way, rate in medians.items():
        alike = np.mean([a == b for a, b in zip(found[way], found[options.ways[0]], strict=True)])
        print(f"{way:<10} {rate:8.1f} queries/s  {rate / base:5.2f}x  {alike:.1%} texts alike")
    write_json(options.json, "attacks", options, {"rates": rates, "medians": medians})


def fresh_head(folder: str) -> None:
    """Save MiniLM with a head of two classes, drawn by a fixed seed."""
    torch.manual_seed(0)
    encoder = encoder_folder()
    network = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)


def predicted(folder: str, texts: list[str]) -> list[int]:
    """Return what the network takes texts for."""
    ask = asker(folder, batch_size=32)
    return [int(row.argmax()) for row in ask(texts)]


def attacker(
    way: str, folder: str, batch_size: int
) -> Callable[[list[str], list[int]], tuple[int, list[str]]]:
    """Return what attacks texts, and says how many it asked about, and what it found."""
    if way == "lmkit":
        module = load(folder)

        def together(texts: list[str], labels: list[int]) -> tuple[int, list[str]]:
            report = WordAttack(batch_size=batch_size).run(module, texts, labels)
            queries = sum(result.queries for result in report.results)
            return queries, [result.adversarial for result in report.results]

        return together
    ask = asker(folder, batch_size if way == "each word" else 1)

    def in_turn(texts: list[str], labels: list[int]) -> tuple[int, list[str]]:
        loops = [PlainLoop(ask, text, label) for text, label in zip(texts, labels, strict=True)]
        found = [loop.run() for loop in loops]
        return sum(len(loop.seen) for loop in loops), found

    return in_turn


def asker(folder: str, batch_size: int) -> Ask:
    """Return what asks the network, in batches padded to their longest text."""
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def ask(texts: Sequence[str]) -> np.ndarray:
        rows = []
        for first in range(0, len(texts), batch_size):
            batch = list(texts[first : first + batch_size])
            encoded = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
            rows.append(network(**encoded).logits.double().softmax(-1).numpy())
        return np.concatenate(rows)

    return ask


class PlainLoop:
    """One text after the other, and one word after the other."""

    def __init__(self, ask: Ask, text: str, label: int) -> None:
        self.ask_network, self.text, self.label = ask, text, label
        self.words, self.gaps = split_words(text)
        self.seen: dict[str, np.ndarray] = {}

    def ask(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return what the network says of texts, of a known one what it said before."""
        new = [text for text in dict.fromkeys(texts) if text not in self.seen]
        if new:
            self.seen.update(zip(new, self.ask_network(new), strict=True))
        return [self.seen[text] for text in texts]

    def run(self) -> str:
        """Return the text that was found."""
        fixed = RULES.protect(self.words)
        choices = {
            n: RULES.candidates_of(self.words, n, 0) for n, stays in enumerate(fixed) if not stays
        }
        places = [n for n, found in choices.items() if found]
        most = int(0.4 * sum(any(map(str.isalnum, word)) for word in self.words) + 1e-9)
        (before,) = self.ask([self.text])
        if not places or not most:
            return self.text
        rows = self.ask([self.without(n) for n in places])
        score = {n: self.lost(before, row) for n, row in zip(places, rows, strict=True)}
        current, sure, changed = list(self.words), before[self.label], 0
        for n in sorted(places, key=lambda n: -score[n]):
            if changed == most:
                break
            tried = [[*current[:n], word, *current[n + 1 :]] for word in choices[n]]
            rows = self.ask([join_words(row, self.gaps) for row in tried])
            best = int(np.argmin([row[self.label] for row in rows]))
            if rows[best][self.label] >= sure:
                continue
            current, sure = tried[best], rows[best][self.label]
            changed += 1
            if rows[best].argmax() != self.label:
                break
        return join_words(current, self.gaps)

    def without(self, n: int) -> str:
        """Return the text without a word and the space before it."""
        gaps = [*self.gaps[:n], *self.gaps[n + 1 :]] if n else ["", *self.gaps[2:]]
        return join_words([*self.words[:n], *self.words[n + 1 :]], gaps)

    def lost(self, before: np.ndarray, row: np.ndarray) -> float:
        """Return how important the word is that a text is without."""
        other = int(row.argmax())
        gained = row[other] - before[other] if other != self.label else 0.0
        return float(before[self.label] - row[self.label] + gained)


if __name__ == "__main__":
    main()
