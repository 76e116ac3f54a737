from lmkit.datamodules.embedded import _prose, embedded_corpus


def test_the_corpus_is_prose_in_three_disjoint_splits(tmp_path):
    files = embedded_corpus(tmp_path)
    splits = {split: path.read_text().splitlines() for split, path in files.items()}
    words = {split: sum(map(len, map(str.split, lines))) for split, lines in splits.items()}
    assert words["train"] > 100_000 and words["val"] > 4_000 and words["test"] > 4_000
    everything = [line for lines in splits.values() for line in lines]
    assert len(everything) == len(set(everything))
    assert not any(line.startswith(">>>") or "``" in line for line in everything)
    assert embedded_corpus(tmp_path) == files


def test_code_tables_and_markup_are_left_out():
    text = """Return a ``value`` that is *not* changed by :func:`call`, as described in the text.

    For example, this sentence introduces a piece of code that follows it::

        def function(argument): return "Some code that is certainly not any prose at all."

    >>> This looks like a sentence of many words but is a doctest.

    ==========  =====================================================
    A column    This row of a table has many words in it, and a stop.

    - An item of a list is kept when it is a sentence by itself.
    """
    assert list(_prose(text)) == [
        "Return a value that is not changed by call, as described in the text.",
        "For example, this sentence introduces a piece of code that follows it:",
        "An item of a list is kept when it is a sentence by itself.",
    ]
