import logging

import pytest

from lmkit.import_noise import quieten_imports


def test_what_torchao_says_of_other_machines_is_left_out_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quieten_imports()
    quieten_imports()
    logger = logging.getLogger("torchao")
    assert len(logger.filters) == 1
    logger.warning("Failed to load /somewhere/_C.so: could not")
    logger.warning("a layer was not quantized")
    assert [record.getMessage() for record in caplog.records] == ["a layer was not quantized"]
