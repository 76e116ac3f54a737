"""The spans that T5 takes out of a text, and what is made of them."""

import itertools
import math
import random

import pytest
import torch

from lmkit.functional import corrupt_spans, raw_length, span_lengths

EOS, TEXT = 1, 1000
#: As in T5's vocabulary: the first sentinel has the highest id.
SENTINELS = torch.arange(999, 899, -1)


def corrupt(rows=50, n=141, seed=0, **options):
    tokens = TEXT + torch.randint(0, 10_000, (rows, n), generator=torch.Generator().manual_seed(1))
    options.setdefault("keys", torch.arange(rows) * 7919 + seed)
    keys = options.pop("keys")
    return tokens, *corrupt_spans(tokens, keys, sentinels=SENTINELS, eos_id=EOS, **options)


def pieces(ids):
    """Split ids at sentinels: what is before the first, then (sentinel, what is behind it)."""
    before, found = [], []
    for token in ids:
        if 900 <= token < 1000:
            found.append((token, []))
        elif found:
            found[-1][1].append(token)
        else:
            before.append(token)
    return before, found


def inverted(inputs, target):
    """Put the spans of a target back in their places, and check that nothing else is there."""
    inputs = [token for token in inputs.tolist() if token != -100]
    target = [token for token in target.tolist() if token != -100]
    assert inputs[-1] == target[-1] == EOS
    first, spans = pieces(target[:-1])
    assert not first and all(span for _, span in spans)
    text, kept = pieces(inputs[:-1])
    names = [name for name, _ in spans]
    assert names == SENTINELS[: len(spans)].tolist() == [name for name, _ in kept]
    for (_, span), (_, behind) in zip(spans, kept, strict=True):
        text += [*span, *behind]
    return text, [len(span) for _, span in spans]


def slow_counts(n, density, mean):
    """The counts as the paper's code has them: one number at a time."""
    noise = min(max(round(n * density), 1), n - 1)
    return noise, min(max(round(noise / mean), 1), n - noise)


def slow_spans(tokens, density, mean, rng):
    """One text with lists: cut both parts at random places, and lay them in turn."""
    noise, spans = slow_counts(len(tokens), density, mean)

    def parts(total):
        cuts = [0, *sorted(rng.sample(range(1, total), spans - 1)), total]
        return [b - a for a, b in itertools.pairwise(cuts)]

    inputs, target, at = [], [], 0
    for place, (keep, drop) in enumerate(
        zip(parts(len(tokens) - noise), parts(noise), strict=True)
    ):
        name = int(SENTINELS[place])
        inputs += [*tokens[at : at + keep], name]
        target += [name, *tokens[at + keep : at + keep + drop]]
        at += keep + drop
    return [*inputs, EOS], [*target, EOS]


def test_lengths_are_those_of_the_paper():
    assert raw_length(512) == (568, 114)
    assert raw_length(1024) == (1137, 229)
    assert raw_length(128) == (141, 29)
    assert span_lengths(568) == (85, 28)


@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.05, 1.0), (0.9, 2.5)])
def test_the_raw_length_is_the_largest_that_fits(density, mean):
    def sizes(n):
        noise, spans = slow_counts(n, density, mean)
        return n - noise + spans + 1, noise + spans + 1

    for n in range(2, 200):
        assert span_lengths(n, density, mean) == slow_counts(n, density, mean)
    for wanted in range(3, 150):
        n, target = raw_length(wanted, density, mean)
        assert sizes(n)[0] <= wanted < sizes(n + 1)[0] and target == sizes(n)[1]


@pytest.mark.parametrize("roll", [True, False])
@pytest.mark.parametrize(
    ("n", "density", "mean"),
    [
        (568, 0.15, 3.0),
        (141, 0.15, 3.0),
        (17, 0.15, 3.0),
        (2, 0.5, 1.0),
        (3, 0.9, 3.0),
        (40, 0.5, 3.0),
        (40, 0.9, 1.0),
        (41, 0.02, 1.0),
    ],
)
def test_lengths_are_exact_and_the_text_can_be_put_together_again(n, density, mean, roll):
    tokens, inputs, targets = corrupt(40, n, density=density, mean=mean, random_roll=roll)
    noise, spans = slow_counts(n, density, mean)
    assert inputs.shape == (40, n - noise + spans + 1) and targets.shape == (40, noise + spans + 1)
    assert (inputs != -100).all() and (targets != -100).all()
    for row in range(40):
        text, lengths = inverted(inputs[row], targets[row])
        assert text == tokens[row].tolist()
        assert (sum(lengths), len(lengths)) == (noise, spans)


def test_spans_are_drawn_as_by_the_slow_reference():
    """Without the roll: the same law of the first span's length and of where the spans are."""
    rng, n, count = random.Random(0), 12, 6000
    options = {"density": 0.4, "mean": 2.0}
    tokens, inputs, targets = corrupt(count, n, random_roll=False, **options)
    ours, theirs = {}, {}
    for row in range(count):
        slow = slow_spans(tokens[row].tolist(), options["density"], options["mean"], rng)
        for found, pair in ((ours, (inputs[row].tolist(), targets[row].tolist())), (theirs, slow)):
            before, kept = pieces(pair[0][:-1])
            shape = (
                len(before),
                *(len(s) for _, s in kept),
                *(len(s) for _, s in pieces(pair[1])[1]),
            )
            found[shape] = found.get(shape, 0) + 1
    assert ours.keys() == theirs.keys() and len(ours) == 24
    chi2 = sum((ours[k] - theirs[k]) ** 2 / (ours[k] + theirs[k]) for k in ours)
    freedom = len(ours) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


def taken(n, rows, **options):
    """How often the token at each place goes."""
    tokens = (TEXT + torch.arange(n)).expand(rows, n)
    keys = torch.arange(rows) * 104_729
    _, targets = corrupt_spans(tokens, keys, sentinels=SENTINELS, eos_id=EOS, **options)
    return torch.bincount(targets[targets >= TEXT] - TEXT, minlength=n) / rows


@pytest.mark.parametrize(("n", "within"), [(141, 0.05), (568, 0.02)])
def test_with_the_roll_every_place_goes_about_as_often(n, within):
    rows = 10_000
    share = span_lengths(n)[0] / n
    sigma = math.sqrt((1 - share) / share / rows)
    frequency = taken(n, rows) / share
    assert float(frequency.mean()) == pytest.approx(1, abs=1e-6)
    assert float((frequency - 1).abs().max()) < within + 4 * sigma
    # At the ends, of which T5's own order always keeps the one and takes the other, exactly so.
    assert float((frequency[[0, -1]] - 1).abs().max()) < 4 * sigma


def test_without_the_roll_the_first_token_stays_and_the_last_goes():
    frequency = taken(141, 400, random_roll=False)
    assert frequency[0] == 0 and frequency[-1] == 1


def test_a_row_depends_on_its_key_and_length_alone():
    tokens, inputs, targets = corrupt(50, keys=torch.arange(50) * 31)
    some = torch.tensor([31, 4])
    options = {"sentinels": SENTINELS, "eos_id": EOS}
    part = corrupt_spans(tokens[some], some * 31, **options)
    assert torch.equal(part[0], inputs[some]) and torch.equal(part[1], targets[some])
    padded = torch.nn.functional.pad(tokens, (0, 30), value=7)
    wide = corrupt_spans(padded, torch.arange(50) * 31, lengths=torch.full((50,), 141), **options)
    for ours, theirs in zip((inputs, targets), wide, strict=True):
        width = ours.shape[1]
        assert torch.equal(theirs[:, :width], ours) and (theirs[:, width:] == -100).all()


def test_keys_draw_different_spans():
    tokens = torch.arange(TEXT, TEXT + 141).expand(200, 141)
    _, targets = corrupt_spans(tokens, torch.arange(200), sentinels=SENTINELS, eos_id=EOS)
    assert len({tuple(row) for row in targets.tolist()}) == 200


def test_shorter_rows_have_the_exact_lengths_of_their_own():
    n = 60
    lengths = torch.arange(n + 1)
    tokens, inputs, targets = corrupt(n + 1, n, lengths=lengths)
    for row in range(2, n + 1):
        noise, spans = slow_counts(row, 0.15, 3.0)
        assert int((inputs[row] != -100).sum()) == row - noise + spans + 1
        assert int((targets[row] != -100).sum()) == noise + spans + 1
        assert inverted(inputs[row], targets[row])[0] == tokens[row, :row].tolist()


def test_rows_of_no_token_or_one_have_no_target():
    tokens, inputs, targets = corrupt(2, 20, lengths=torch.tensor([0, 1]))
    assert (targets == -100).all()
    assert [row[row != -100].tolist() for row in inputs] == [[EOS], [int(tokens[1, 0]), EOS]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, r"density must lie in \(0, 1\), got 0.0"),
        ({"density": 1.0}, r"density must lie in \(0, 1\), got 1.0"),
        ({"mean": 0.5}, "mean must be at least 1, got 0.5"),
        ({"n": 1}, "at least 2 columns, got 1"),
        ({"n": 2010, "mean": 1.0}, "2010 tokens have 302 spans, and there are 100 sentinels"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        corrupt(2, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2,), "inputs_length must be at least 3, got 2"),
        ((64, 1.0), "density"),
        ((64, 0.5, 0), "mean"),
    ],
)
def test_lengths_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        raw_length(*arguments)
