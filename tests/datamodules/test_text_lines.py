import gzip

import pytest

from lmkit.datamodules.text_files import read_texts


def texts(path, **options):
    return [text.text for text in read_texts(path, **options)]


def save(tmp_path, name, content):
    path = tmp_path / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def test_other_encodings_are_read_when_named(tmp_path):
    path = save(tmp_path, "a.txt", "café\nnaïve".encode("latin-1"))
    assert texts(path, encoding="latin-1") == ["café", "naïve"]
    path = save(tmp_path, "b.txt", "café\nnaïve".encode("utf-16"))
    assert texts(path, encoding="utf-16") == ["café", "naïve"]


def test_a_truncated_gzip_file_names_the_line_it_came_to(tmp_path):
    whole = gzip.compress("".join(f"line {n}\n" for n in range(50_000)).encode())
    path = tmp_path / "a.txt.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"after line \d{4,}: the gzip file is cut short"):
        texts(path)


def test_an_unknown_encoding_is_named(tmp_path):
    with pytest.raises(ValueError, match="encoding='utf8000' is unknown"):
        texts(save(tmp_path, "a.txt", "x"), encoding="utf8000")
