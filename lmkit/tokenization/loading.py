"""Tokenizers: loaded by name, kept as plain text, told apart by a hash."""

from __future__ import annotations

import difflib
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

__all__ = [
    "load_tokenizer",
    "tokenizer_digest",
    "tokenizer_from_files",
    "tokenizer_to_files",
    "vocabulary_digest",
]

# Roles of the special tokens that a bare `tokenizer.json` names but gives no role.
_USUAL_ROLES = {
    "[PAD]": ("pad_token",),
    "[UNK]": ("unk_token",),
    "[CLS]": ("cls_token",),
    "[SEP]": ("sep_token",),
    "[MASK]": ("mask_token",),
    "<pad>": ("pad_token",),
    "<unk>": ("unk_token",),
    "<s>": ("bos_token", "cls_token"),
    "</s>": ("eos_token", "sep_token"),
    "<mask>": ("mask_token",),
    "<|endoftext|>": ("bos_token", "eos_token", "unk_token"),
}


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the Hugging Face hub.

    Args:
        name_or_path: a folder with `tokenizer.json` (alone or with its configuration) or another
            layout that `transformers` reads, or a hub name such as `bert-base-uncased`.

    Raises:
        ValueError: there is no such folder or hub entry, or it holds no tokenizer.
    """
    folder = Path(name_or_path).expanduser()
    looks_local = name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1
    if folder.is_file():
        raise ValueError(
            f"tokenizer must be a folder or a hub name, got the file {folder}; "
            f"pass its folder {folder.parent}"
        )
    if not folder.is_dir() and looks_local:
        raise ValueError(f"tokenizer folder {folder} does not exist{_nearest(folder)}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else name_or_path)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError...
        raise ValueError(f"{_no_tokenizer(name_or_path, folder)} [{_first_line(error)}]") from error
    # Of a model's config alone transformers makes a tokenizer that knows special tokens only (T5's
    # the blank too), and takes each word for unknown.
    is_empty = len(tokenizer) - len(tokenizer.all_special_ids) < 2
    if is_empty and not (folder / "tokenizer.json").is_file():
        raise ValueError(_no_tokenizer(name_or_path, folder))
    _give_usual_roles(tokenizer)
    return cast(PreTrainedTokenizerBase, tokenizer)


def tokenizer_to_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return a tokenizer as `{file name: text}`, fit for a checkpoint that holds plain data only.

    Raises:
        ValueError: the tokenizer needs a binary file (old SentencePiece formats).
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        paths = sorted(path for path in Path(folder).iterdir() if path.is_file())
        files = {}
        for path in paths:
            try:
                files[path.name] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                if (Path(folder) / "tokenizer.json").exists():
                    continue
                raise ValueError(
                    f"{type(tokenizer).__name__} is kept in the binary file {path.name}; convert "
                    "it to tokenizer.json (transformers' fast tokenizers) first"
                ) from None
        return files


def tokenizer_from_files(files: dict[str, str]) -> PreTrainedTokenizerBase:
    """Return the tokenizer that `tokenizer_to_files` wrote.

    Raises:
        ValueError: the files hold no tokenizer, or a name that is not a plain file name.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            if Path(name).name != name:
                raise ValueError(f"tokenizer file names must be plain names, got {name!r}")
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return load_tokenizer(folder)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of what the tokenizer does: 64 hex digits, the same in every process.

    Truncation and padding are left out: each call of a tokenizer leaves its own there.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        state: Any = json.loads(backend.to_str())
        state["truncation"] = state["padding"] = None
    else:
        state = [type(tokenizer).__qualname__, sorted(tokenizer.get_vocab().items())]
    roles = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([state, roles], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of which id means which token: 64 hex digits.

    Two tokenizers may share it and cut texts differently, but each reads the other's ids.
    """
    text = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _give_usual_roles(tokenizer: Any) -> None:
    if tokenizer.special_tokens_map:
        return
    vocabulary = tokenizer.get_vocab()
    for token, roles in _USUAL_ROLES.items():
        for role in roles:
            if token in vocabulary and getattr(tokenizer, role, None) is None:
                setattr(tokenizer, role, token)


def _no_tokenizer(name: str, folder: Path) -> str:
    if folder.is_dir():
        files = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        return (
            f"the folder {folder} holds no tokenizer that transformers can read ({files}); "
            "expected tokenizer.json, vocab.txt, or vocab.json with merges.txt: save it there, or "
            "pass another one as tokenizer"
        )
    return (
        f"no tokenizer {name!r} on the Hugging Face hub or in its local cache; check the name and "
        "the network, pass a folder, or leave tokenizer out to train one on the training text"
    )


def _nearest(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    match = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / match[0]}?" if match else ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
