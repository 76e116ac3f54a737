"""An exported ONNX model in the place of a network, to predict and to be tested."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ..onnx_session import open_session
from .base import LMModule
from .multiple_choice import MultipleChoiceModule
from .network import named_config, usable_positions
from .question_answering import QuestionAnsweringModule
from .sequence_classification import SequenceClassificationModule
from .token_classification import TokenClassificationModule

__all__ = ["OnnxNetwork", "holds_onnx", "run_onnx"]

#: The file of a model.
MODEL = "model.onnx"

# Language models look into their network.
_TASKS = (
    SequenceClassificationModule,
    TokenClassificationModule,
    QuestionAnsweringModule,
    MultipleChoiceModule,
)


class OnnxNetwork(nn.Module):
    """Runs an ONNX model on the CPU, and takes and gives what its network took and gave.

    Args:
        path: of the model.
        config: of the network that it was made of.
        network: of that structure, whose weights are not looked at.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """

    _supports_sdpa = False

    def __init__(self, path: Path, config: Any, network: PreTrainedModel) -> None:
        super().__init__()
        self.session = open_session(path, torch.get_num_threads())
        self._takes = {given.name for given in self.session.get_inputs()}
        self._gives = [given.name for given in self.session.get_outputs()]
        self.config = copy.deepcopy(config)
        if (longest := usable_positions(network)) is not None:
            self.config.max_position_embeddings = longest
        self._rows = cast(nn.Embedding, network.get_input_embeddings()).num_embeddings
        self.eval()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> ModelOutput:
        """Return the logits, or those of start and end, on the device of the ids.

        Raises:
            ValueError: several texts share a row.
        """
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"{MODEL} takes one text a row: pass batching='bucket' to the data module"
            )
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None or "token_type_ids" in self._takes:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            given["token_type_ids"] = types
        feed = {name: ids.cpu().numpy() for name, ids in given.items() if name in self._takes}
        found = self.session.run(self._gives, feed)
        tensors = [torch.from_numpy(each).to(input_ids.device) for each in found]
        return ModelOutput(zip(self._gives, tensors, strict=True))

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode.

        Raises:
            ValueError: it is to be trained.
        """
        if mode:
            raise ValueError(
                f"this is an ONNX model ({MODEL}), which predicts and cannot be trained: train the "
                "checkpoint or the folder that it was exported from"
            )
        return super().train(False)

    def get_input_embeddings(self) -> Any:
        """Say how many tokens there are, by a table without columns."""
        return SimpleNamespace(weight=torch.empty(self._rows, 0))

    def _can_set_attn_implementation(self) -> bool:
        return False


def holds_onnx(folder: Path) -> bool:
    """Whether a folder is an export to ONNX, which holds no weights beside the model.

    Example:
        >>> holds_onnx(Path("nowhere"))
        False
    """
    weights = (*folder.glob("*.safetensors"), *folder.glob("pytorch_model*"))
    return (folder / MODEL).is_file() and not weights


def run_onnx(module: LMModule, folder: Path) -> None:
    """Let a module run the ONNX model of a folder.

    Args:
        module: of the task, its network not yet built.
        folder: an export to ONNX.

    Raises:
        ValueError: the task looks into its network.
        ImportError: ONNX Runtime is not installed.
    """
    if not isinstance(module, _TASKS):
        tasks = ", ".join(task.__name__ for task in _TASKS)
        raise ValueError(
            f"{folder} holds an ONNX model of a {type(module).__name__}, which looks into its "
            f"network; ONNX is loaded for {tasks}. Run it in ONNX Runtime, or load the checkpoint"
        )
    module.build = partial(_build, folder)
    module.configure_model()


def _build(
    folder: Path, auto_class: Any, model: Any, pretrained: bool, tokenizer: Any, settings: Any
) -> tuple[Any, set[str]]:
    config = named_config(str(folder))
    with torch.device("meta"):
        plain = auto_class.from_config(config)
    return OnnxNetwork(folder / MODEL, config, plain), set()
