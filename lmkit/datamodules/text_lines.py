"""Lines of a text file, plain or gzip, in any encoding, with the number of each."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .text_rows import BadRows

__all__ = ["numbered_lines"]


def numbered_lines(path: Path, encoding: str, bad: BadRows) -> Iterator[tuple[int, str]]:
    """Yield (line number, line without its end); each line is decoded alone, to name a bad one."""
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    number = 0
    with _opened(path) as stream:
        try:
            if encoding.lower().startswith(("utf-16", "utf-32", "utf16", "utf32")):
                # Their line ends are no single byte: decode as a whole.
                for raw in stream.read().decode(encoding).splitlines():
                    number += 1
                    yield number, raw
                return
            for line in stream:
                number += 1
                try:
                    text = line.decode(encoding if number == 1 else encoding.removesuffix("-sig"))
                except UnicodeDecodeError as error:
                    bad(path, number, *_undecodable(error, encoding))
                    continue
                yield number, text.rstrip("\r\n")
        except UnicodeDecodeError as error:
            fault, remedy = _undecodable(error, encoding)
            raise ValueError(f"{path}: {fault}. {remedy}") from error
        except (EOFError, zlib.error) as error:
            raise ValueError(
                f"{path}, after line {number}: the gzip file is cut short or damaged ({error}); "
                "fetch it again"
            ) from error
        except gzip.BadGzipFile as error:
            raise ValueError(
                f"{path}, after line {number}: not a gzip file, or a damaged one ({error}); if it "
                "is plain text, take .gz off its name"
            ) from error
        except LookupError as error:
            raise ValueError(
                f"encoding={encoding!r} is unknown; use e.g. utf-8 or latin-1"
            ) from error


def _undecodable(error: UnicodeDecodeError, encoding: str) -> tuple[str, str]:
    name = encoding.removesuffix("-sig")
    fault = f"byte 0x{error.object[error.start]:02x} at position {error.start} is not {name}"
    other = "latin-1" if name == "utf-8" else "utf-8"
    if error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        other = "utf-16"
    return fault, f"Convert the file, pass its encoding (perhaps encoding={other!r})"


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")
