"""Other views of a batch: what they change, what they leave, what they depend on."""

import pytest
import torch

from lmkit.callbacks.consistency import ConsistencyCallback
from lmkit.callbacks.views import BatchView, CutoffView, TokenDropoutView, View, has_view
from tests.callbacks.fitted import fit_task

TASK = "sequence_classification"


class Owner(ConsistencyCallback):
    """Shows each batch through a view, and keeps what the network reads."""

    changes_embeddings = True

    def __init__(self, view):
        super().__init__()
        self.view, self.read = view, []

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.view.check(self)
        table = pl_module.network.get_input_embeddings()
        # Behind the hook of the callback.
        self.handle = table.register_forward_hook(
            lambda m, a, out: self.read.append((a[0].clone(), out.detach().clone()))
        )

    def compare(self, objective, batch, seen):
        self.words = self.module.network.get_input_embeddings().weight.detach().clone()
        self.read.clear()
        other = self.view(self, objective, batch, seen)
        self.batch, self.other = batch, other
        return seen.output


def show(view, folder, **how):
    owner = Owner(view)
    module = fit_task(TASK, folder, owner, max_steps=1, **how)[0]
    owner.handle.remove()
    return module, owner


def test_a_view_of_the_batch_is_what_the_data_module_has_put_into_it():
    class Runs:
        def run(self, objective, batch):
            return objective(batch)

    batch = {"input_ids": 1, "view_input_ids": 2, "labels": 3, "view_more": 4}
    assert has_view(batch) and not has_view({"input_ids": 1})
    assert BatchView()(Runs(), lambda b: b, batch, None) == {"input_ids": 2, "labels": 3, "more": 4}


def test_the_plain_view_is_the_batch_with_other_dropout(tmp_path):
    _, owner = show(View(), tmp_path)
    (ids, _), *_ = owner.read
    assert torch.equal(ids, owner.batch["input_ids"])


def test_token_dropout_replaces_tokens_that_are_not_special(tmp_path):
    module, owner = show(TokenDropoutView(0.5), tmp_path)
    ids, other = owner.batch["input_ids"], owner.read[0][0]
    changed = other != ids
    special = torch.isin(ids, torch.tensor(module.tokenizer.all_special_ids))
    assert bool((other[changed] == module.tokenizer.mask_token_id).all())
    assert not changed[special].any()
    share = changed.sum(1) / (~special).sum(1)
    assert abs(float(share.mean()) - 0.5) < 0.1


@pytest.mark.parametrize("kind", ["token", "span", "feature"])
def test_cutoff_sets_embeddings_to_zero_and_leaves_ids(kind, tmp_path):
    _, owner = show(CutoffView(kind, 0.5), tmp_path)
    ids, read = owner.read[0]
    words = owner.words[ids]
    assert torch.equal(ids, owner.batch["input_ids"])
    assert bool(((read == words) | (read == 0)).all()) and bool((read != words).any())


def test_what_goes_is_a_function_of_epoch_and_text_and_not_of_the_batch(tmp_path):
    class Keep(Owner):
        def compare(self, objective, batch, seen):
            result = super().compare(objective, batch, seen)
            _, read = self.read[0]
            for row, number in enumerate(batch["index"].tolist()):
                size = int(batch["attention_mask"][row].sum())
                gone[number] = ~read[row, :size].any(-1)
            return result

    kept = []
    for size in (4, 8):
        gone: dict[int, torch.Tensor] = {}
        fit_task(
            TASK,
            tmp_path,
            Keep(CutoffView("token", 0.4)),
            max_steps=-1,
            max_epochs=1,
            data={"batch_size": size},
        )
        kept.append({n: g for n, g in gone.items() if n >= 0})
    assert set(kept[0]) == set(kept[1]) == set(range(60))
    assert all(torch.equal(kept[0][n], kept[1][n]) for n in range(60))


def test_what_lies_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="cutoff must be one of token, span, feature"):
        CutoffView("word", 0.1)
    with pytest.raises(ValueError, match="ratio must lie in"):
        TokenDropoutView(-0.1)
