import pickle

import numpy as np
import pytest

from .small_store import SEPARATOR, documents, write


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_an_id_takes_two_bytes_where_it_fits(tmp_path, size, dtype):
    big = size - 1
    store = write(documents("x"), tmp_path, encode=lambda texts: [[big]], vocab_size=size)
    assert store.ids.dtype == dtype and store.ids.tolist() == [big, SEPARATOR]


def test_a_store_travels_as_its_path(tmp_path):
    store = write(documents("x" * 10_000), tmp_path)
    store.ids.sum()
    again = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 1000
    assert again.ids.tolist() == store.ids.tolist()
    with pytest.raises(ValueError, match="read-only"):
        again.ids[0] = 1
