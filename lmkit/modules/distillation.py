"""Knowledge distillation: a task module that learns from a teacher too."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any, Literal, cast

from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torchmetrics import Metric

from ..types import Batch, StepOutput
from .base import LMModule
from .captures import freeze_unreached, show_maps
from .distillation_losses import DistillationLoss, LogitLoss, loss_from_spec, loss_to_spec
from .distillation_report import DistillationReport, continue_comparison, finish_comparison
from .distillation_terms import HardLoss, Terms, restore_projections
from .scores import Scores
from .step_log import make_metrics
from .student import build_student, student_from_spec, student_of_model, student_to_spec
from .teacher_options import TeacherOptions
from .teacher_view import attach
from .teachers import Teachers
from .written_targets import check_writes, takes_turn, with_own_words

__all__ = ["DistillationModule"]


class DistillationModule(LMModule):
    r"""Train a task module, the student, on what one or several teachers say (arXiv:1503.02531).

    $\mathcal{L} = \frac{1}{N} \sum_{i=1}^{N} \bigl[\lambda \ell_i + \sum_j w_j d_{ij}\bigr]$, where
    $\ell_i$ is the student's own loss of item $i$ (example, labelled piece or token), 0 of one that
    has no label, $\lambda$ the `hard_weight`, and $d_{ij}$ the losses against the teacher: of
    logits item by item, of what is inside the networks the mean over the tokens of the item's row.
    So the batches of a window and of all ranks add up exactly, but for rows that share texts anew.

    Everything else is the student's: data, metrics, predictions, export. `network` is its network;
    nothing of the teachers is in a checkpoint or an optimizer. Teachers are of the student's task,
    their classes are matched by name, and each batch asks them once.

    Logs what the student logs, and `distillation/loss_<word>` of each loss (`hard`, `logits`,
    `hidden`, `attention`, `relations`, `flow`); of an evaluation `val/agreement` (share of items
    decided alike), `val/teacher_divergence` (KL at temperature 1) and `val/retention`, the
    student's main metric as a share of the teacher's. A test has a table `differences` of examples.

    Args:
        student: a task module, just made; or its `class_path` and `init_args`.
        teacher: a checkpoint, the folder of a saved model, or a hub name; or a list of these.
        losses: against the teacher; by default `LogitLoss()`.
        hard_weight: $\lambda$, the weight of the student's own loss; at least 0.
        final_hard_weight: what it moves to, in a straight line over the run.
        hard_start: share of the run from which on the own loss counts, in `[0, 1)`.
        student_layers: which layers of the student's `model` to keep, from 0, or how many, spread
            over its depth: so a student begins as its teacher with fewer layers.
        teacher_weights: of several teachers, whose probabilities are averaged: one number each, or
            `"confidence"`, for each example by how right each teacher is (arXiv:2201.00007).
        wrong_weight: factor, in `[0, 1]`, of the logit losses of items on which the teacher is
            wrong.
        teacher_precision: of the teachers' weights.
        cache: whether one pass over the rows writes down what the teacher says, so that training
            does without it. For rows that are the same in each epoch.
        cache_precision: of what is written down.
        cache_top_k: how many logits to keep, beside the mass of the others; all by default.
        cache_folder: where to; by default the cache of the data module.
        sequence_level: whether the student learns targets that the teacher has written, once for
            each row, in place of the data's (arXiv:1606.07947).
        on_policy: share of the steps, in `[0, 1]`, in which the student draws targets itself and
            the teacher tells what it should have written (arXiv:2306.13649).
        prompt_share: of a causal model, how much of a row is the prompt of what is written.

    Raises:
        TypeError: an argument is not plain data, or no student.
        ValueError: a number lies outside its range; in `setup`, a teacher is missing, of another
            task, or has other classes or tokens.

    Example:
        >>> from lmkit.modules import SequenceClassificationModule
        >>> student = SequenceClassificationModule({"model_type": "bert", "vocab_size": 99,
        ...     "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2,
        ...     "intermediate_size": 8, "id2label": {0: "no", 1: "yes"}})
        >>> module = DistillationModule(student, "teacher/export", student_layers=[0, 3])
        >>> module.configure_model()
        >>> module.network.config.num_hidden_layers
        2
    """

    uses_unlabelled = True

    def __init__(
        self,
        student: LMModule,
        teacher: str | list[str],
        losses: list[DistillationLoss] | None = None,
        hard_weight: float = 0.5,
        final_hard_weight: float | None = None,
        hard_start: float = 0.0,
        student_layers: int | list[int] | dict[str, list[int]] | None = None,
        teacher_weights: list[float] | Literal["confidence"] | None = None,
        wrong_weight: float = 1.0,
        teacher_precision: Literal["fp32", "bf16"] = "fp32",
        cache: bool = False,
        cache_precision: Literal["fp16", "fp32"] = "fp16",
        cache_top_k: int | None = None,
        cache_folder: str | None = None,
        sequence_level: bool = False,
        on_policy: float = 0.0,
        prompt_share: float = 0.5,
    ) -> None:
        made = [loss_from_spec(loss) for loss in ([LogitLoss()] if losses is None else losses)]
        # Plain data alone may stand among the hyper-parameters; Lightning reads them here.
        student = cast(LMModule, student_to_spec(student))
        losses = cast("list[DistillationLoss]", [loss_to_spec(loss) for loss in made])
        task = student_from_spec(cast(Mapping[str, Any], student))
        # The student's optimizer is this module's.
        shared = [name for name in signature(LMModule).parameters if name in task.hparams]
        super().__init__(**{name: task.hparams[name] for name in shared})
        cached = cache, cache_precision, cache_top_k, cache_folder
        written = sequence_level, on_policy, prompt_share
        how = teacher_weights, wrong_weight, teacher_precision, *cached, *written
        names = [teacher] if isinstance(teacher, str) else list(teacher)
        self.teachers = Teachers(names, made, TeacherOptions(*how))
        own = HardLoss(weight=hard_weight, final_weight=final_hard_weight, start=hard_start)
        self._terms = Terms(made, own)
        # Not a part of this module: its network is, under the name that all modules have for it.
        self._held = (task,)
        self.auto_class, self.is_causal = task.auto_class, task.is_causal  # type: ignore[misc]
        self.projections = nn.ModuleDict()
        self.report: DistillationReport | None = None

    @property
    def task_module(self) -> LMModule:
        """The student, which is what is exported and used."""
        return self._held[0]

    @classmethod
    def arguments_for(
        cls, arguments: Mapping[str, Any], model: Any, pretrained: bool | None = None
    ) -> dict[str, Any]:
        """Return what of the arguments to change so that the student is of another model."""
        changed = student_of_model(arguments["student"], model, pretrained)
        # A network from a config is that of a checkpoint, and cut down already.
        return {"student": changed} | ({} if isinstance(model, str) else {"student_layers": None})

    def prepare_data(self) -> None:
        """Let the teachers write down what they say, where that is asked for; once per node."""
        written = self.hparams["cache"] or self.hparams["sequence_level"]
        if written and self.trainer.state.fn == TrainerFn.FITTING:
            self._meet("fit")
            self.teachers.prepare(self, self.trainer)

    def configure_model(self) -> None:
        """Build the student's network, and cut it down; when it is built, do nothing."""
        if hasattr(self, "network"):
            return
        task = self.task_module
        build_student(self, task, self.hparams["student_layers"])
        self.metrics = task.metrics = make_metrics(self)
        self._look(ask_hub=self._trainer is not None)

    def setup(self, stage: str) -> None:
        """Set up the student, find the teachers, and make the projections between their states."""
        self._meet(stage)
        self.task_module.setup(stage)
        super().setup(stage)
        self._terms.settle()
        show_maps(self.network, self._terms.places)
        self.teachers.attend(getattr(self.trainer, "datamodule", None))
        if stage == "fit":
            if not self._terms.uses_scores:
                freeze_unreached(self.network, self._terms.places)
            if self.hparams["on_policy"]:
                check_writes(self.task_module)
            self.teachers.open(self.task_module, getattr(self.trainer, "datamodule", None))

    def _meet(self, stage: str) -> None:
        self.configure_model()
        self.task_module._trainer = self._trainer
        if stage != "predict":
            self._look(ask_hub=True)
            self.teachers.find(self.task_module, required=stage == "fit")
            self.teachers.options = self.teachers.options._replace(autocast=self.trainer.precision)
        if self.teachers.there:
            self.report = DistillationReport(self.task_module)

    def _look(self, ask_hub: bool) -> None:
        if not self.teachers.shapes and self.teachers.look(self.task_module, ask_hub):
            self.projections = self._terms.lay_out(self.network, self.teachers, self.projections)

    def on_fit_start(self) -> None:
        """Learn how long the run is."""
        super().on_fit_start()
        self._terms.plan(self.trainer)

    def prepare(self, batch: Batch) -> Batch:
        """Add what the student needs, and what the teachers say of the batch."""
        task, share = self.task_module, self.hparams["on_policy"]
        batch = task.prepare(batch)
        if self.training and self.teachers.texts is not None:
            batch = self.teachers.texts.replace(batch)
        elif self.training and takes_turn(share, self.seed or 0, self.global_step):
            batch = with_own_words(task, batch, self.hparams["prompt_share"])
        return attach(batch, self.teachers.read(batch, self.training))

    def step(self, batch: Batch) -> StepOutput:
        """Compute the losses of a batch; in evaluation the student's own alone.

        Args:
            batch: what the student's step takes, with what `prepare` adds.

        Returns:
            Loss, number of items (examples, labelled pieces or tokens), and the student's logits.
        """
        task = self.task_module
        task.training = self.training
        if not self.training:
            return task.step(batch)
        with self._terms.taps(self.network).open() as inside:
            own = task.step(batch)
        return self._terms.join(own, task.scores(own, batch), inside, batch, self)

    def scores(self, output: StepOutput, batch: Batch) -> Scores:
        """Return the student's."""
        return self.task_module.scores(output, batch)

    def build_metrics(self) -> dict[str, Metric]:
        """Make the student's."""
        return self.task_module.build_metrics()

    def build_tables(self) -> dict[str, Metric]:
        """Make the student's."""
        return self.task_module.build_tables()

    def update_metrics(
        self, metrics: Mapping[str, Metric], output: StepOutput, batch: Batch
    ) -> None:
        """Give the metrics the result of one batch."""
        self.task_module.update_metrics(metrics, output, batch)

    def update_tables(self, tables: Mapping[str, Metric], output: StepOutput, batch: Batch) -> None:
        """Give the counts the result of one batch."""
        self.task_module.update_tables(tables, output, batch)

    def continue_evaluation(self, output: StepOutput, batch: Batch, stage: str) -> None:
        """Let the student do its part, and compare it with the teachers, where they are there."""
        continue_comparison(self, output, batch, stage)

    def finish_evaluation(self, stage: str) -> None:
        """Log what only all batches give, and how much of the teacher's quality is kept."""
        finish_comparison(self, stage)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return the student's, and the examples on which it differs from the teachers."""
        tables = self.task_module.tables()
        if self.report is not None:
            data = getattr(self.trainer, "datamodule", None)
            tables |= {"differences": self.report.rows(self.task_module, data)}
        return tables

    def figures(self) -> dict[str, Any]:
        """Return the student's."""
        return self.task_module.figures()

    def predict_step(self, batch: Batch, batch_idx: int) -> Any:
        """Predict as the student does."""
        return self.task_module.predict_step(batch, batch_idx)

    def forward(self, *texts: Any) -> Any:
        """Predict on raw text as the student does."""
        return self.task_module(*texts)

    @property
    def sample(self) -> Any:
        """How the student shows what it makes of a batch; `None` if it does not."""
        return getattr(self.task_module, "sample", None)

    def keeps_apart(self, longest: int) -> bool:
        """Whether student and teachers keep texts apart that share a row."""
        ask = getattr(self.task_module, "keeps_apart", None)
        return bool(ask and ask(longest)) and self.teachers.keep_apart(longest)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which teachers it was."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lmkit"]["teachers"] = self.teachers.fingerprints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse other teachers than those of a run that goes on."""
        super().on_load_checkpoint(checkpoint)
        self.task_module.tokenizer = self.tokenizer
        self.teachers.check_same(checkpoint["lmkit"].get("teachers", []))
        restore_projections(self.projections, checkpoint["state_dict"])

    def teardown(self, stage: str) -> None:
        """Leave the student as it was."""
        self.task_module.teardown(stage)
        super().teardown(stage)
