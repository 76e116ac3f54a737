"""Tags that stay right when words change: one for each word, and valid BIO where they are BIO."""

from __future__ import annotations

from collections.abc import Sequence

from .changes import Change

__all__ = ["are_bio", "entity_ids", "tags_after"]


def are_bio(labels: Sequence[str]) -> bool:
    """Return whether tags are BIO, and no plain ones such as parts of speech.

    Raises:
        ValueError: they are of another scheme of entities, such as IOBES.

    Example:
        >>> are_bio(["B-PER", "I-PER", "O"]), are_bio(["NOUN", "VERB"])
        (True, False)
    """
    kinds = set(labels)
    heads = {tag[0] if tag[1:2] in ("-", "") else "" for tag in kinds if tag}
    if "" in kinds or not heads <= set("BIOESLU"):
        return False
    if any(tag[0] == "O" and tag != "O" for tag in kinds):
        return False
    if not heads <= set("BIO"):
        strange = sorted(tag for tag in kinds if tag[0] in "ESLU")[0]
        if not any(tag[1:2] == "-" for tag in kinds):
            return False
        raise ValueError(
            f"labels must be BIO or plain tags, got {strange!r}: turn them into BIO first, with "
            "lmkit.functional.tagging.to_bio"
        )
    return True


def entity_ids(labels: Sequence[str]) -> list[int]:
    """Return the number of the entity that each word is in, -1 for none, counted from 0.

    An I that nothing of its type comes before begins an entity.

    Example:
        >>> entity_ids(["B-PER", "I-PER", "B-PER", "O", "B-LOC"])
        [0, 0, 1, -1, 2]
    """
    made: list[int] = []
    count, before = -1, "O"
    for tag in labels:
        if tag == "O":
            made.append(-1)
        else:
            count += tag[0] == "B" or before == "O" or before[1:] != tag[1:]
            made.append(count)
        before = tag
    return made


def tags_after(labels: Sequence[str], changes: Sequence[Change], bio: bool) -> list[str]:
    """Return the tags of the changed row.

    A word that takes the place of another one takes its tag. With BIO an inserted word belongs to
    an entity if both its neighbours belong to that one, else it is `O`, and the first word that is
    left of an entity has its B. Plain tags go with the words that are swapped, and an inserted word
    has the tag of the word that it was made from.

    Args:
        labels: one for each word.
        changes: in the order of the words.
        bio: what the labels are, see `are_bio`.
    """
    if not bio:
        return _plain(labels, changes)
    ids = entity_ids(labels)
    kinds = {i: tag[1:] for i, tag in zip(ids, labels, strict=True)}
    made: list[int] = []
    position = 0
    for _, start, stop, new, _ in changes:
        made += ids[position:start]
        kept = min(len(new), stop - start)
        made += ids[start : start + kept]
        inside = 0 < stop < len(ids) and ids[stop - 1] == ids[stop]
        made += [ids[stop - 1] if inside else -1] * (len(new) - kept)
        position = stop
    made += ids[position:]
    befores = [-1, *made[:-1]]
    return [
        "O" if i < 0 else ("I" if i == before else "B") + kinds[i]
        for i, before in zip(made, befores, strict=True)
    ]


def _plain(labels: Sequence[str], changes: Sequence[Change]) -> list[str]:
    made: list[str] = []
    position = 0
    for operation, start, stop, new, origins in changes:
        made += labels[position:start]
        for place in range(len(new)):
            if operation != "swap" and start + place < stop:
                source = start + place
            else:
                source = origins[place] if origins else stop - 1
            made.append(labels[source])
        position = stop
    made += labels[position:]
    return made
