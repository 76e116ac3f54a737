import pytest

from tests.tiny import write_text


@pytest.fixture
def train(tmp_path):
    return write_text(tmp_path / "train.txt", 60)
