"""Small data modules, set up, and what is in their batches."""

import pytest

from lmkit.datamodules import CausalLMDataModule, MaskedLMDataModule

both_objectives = pytest.mark.parametrize("make", [MaskedLMDataModule, CausalLMDataModule])


def ready(make, **options):
    data = make(**{"vocab_size": 300, "max_length": 16, "batch_size": 4, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def targets(loader):
    """How many positions are to be predicted."""
    total = 0
    for batch in loader:
        total += int((batch["labels"] >= 0).sum())
    return total
