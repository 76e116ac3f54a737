"""The commands fit, validate, test and predict: LightningCLI with the defaults of a house."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Read by jsonargparse when it is imported: LightningCLI 2.6 calls what jsonargparse 5 will remove.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from . import callbacks, datamodules, modules
from .__about__ import __version__
from .cli_callbacks import place_callback_options
from .cli_checkpoint import (
    base_config,
    checkpoint_folders,
    find_checkpoint,
    flags_of,
    option_of,
    reconcile,
    say,
    stand_alone,
    take_up,
)
from .cli_config import SaveConfig
from .cli_noise import quieten
from .cli_parser import Parser, plain_error
from .cli_tasks import keep_adapter_size, place_task_options
from .launcher import available_cores
from .modules.checkpoint_io import read_checkpoint
from .modules.distillation_losses import DistillationLoss
from .modules.fresh_weights import checkpoint_follows
from .trainer import Trainer

__all__ = ["LMCLI", "build"]

#: Exit codes as a shell has them: 128 and the number of the signal.
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM

#: By being imported these are known to the parser by their short names.
PARTS = (callbacks, datamodules, modules, lightning_callbacks)

# Of a dataclass the parser takes that very class alone, unless it is told.
set_parsing_settings(subclasses_enabled=[DistillationLoss])


class LMCLI(LightningCLI):
    """LightningCLI for lmkit's parts and any other LightningModule.

    Beyond LightningCLI: a run has one folder, `trainer.default_root_dir`, with its checkpoints,
    config, tables and CSV figures; `last` and `best` are found in it by a new process; settings
    that a checkpoint overrides are named; nothing in a checkpoint is run.

    Args:
        args: the command and its options.
        root: the run's folder where the config names none.
        tuned: whether the process was set up for training on a CPU, and threads are to be too.
    """

    def __init__(self, args: list[str], root: str | None, tuned: bool = False) -> None:
        self._args = args
        self._tuned = tuned
        self._root = root
        self._checkpoint: str | None = None
        self._entry: dict[str, Any] = {}
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=Trainer,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            seed_everything_default=42,
            # Parameters would be taken before callbacks change the structure.
            auto_configure_optimizers=False,
            parser_class=Parser,
            parser_kwargs={"prog": "lmkit", "allow_abbrev": False},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands and what is no option: `weights_only` is always true here."""
        return {name: skip | {"weights_only"} for name, skip in LightningCLI.subcommands().items()}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser whose saved configs name the version."""
        return super().init_parser(dump_header=[f"lmkit {__version__}"], **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoints' options."""
        parser.add_lightning_class_args(callbacks.CheckpointCallback, "checkpoint")
        # Of all commands, which read the config that a fit has saved.
        end = "After a fit, test the best checkpoint (without validation: the last state)."
        parser.add_argument("--test_at_end", type=bool, default=False, help=end)

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser: LightningArgumentParser = super()._prepare_subcommand_parser(
            klass, subcommand, **kwargs
        )
        if subcommand == "predict":
            # They go to a file; to keep them too would fill the memory.
            parser.set_defaults({"return_predictions": False})
            parser.add_argument(
                "--output",
                type=str | None,
                default=None,
                help="File of the predictions, .jsonl or .csv; <run>/predictions.jsonl by default.",
            )
        return parser

    def _parse_ckpt_path(self) -> None:
        command = self.config.subcommand
        settings = self.config[command]
        if settings.trainer.default_root_dir is None:
            word = self._root or f"runs/{_word(settings.model.class_path)}"
            settings.trainer.default_root_dir = word
        if not settings.ckpt_path:
            return
        resume = command == "fit"
        found = find_checkpoint(str(settings.ckpt_path), checkpoint_folders(settings), resume)
        if found is None:
            return
        self._checkpoint = str(found)
        if found.is_file():  # a sharded one is a folder, and an address is Lightning's to read
            saved = read_checkpoint(found, mmap=True)
            reconcile(settings.model, saved, flags_of(self._args), found, resume)
            if not resume:
                self._entry = stand_alone(settings.model, saved)

    def instantiate_classes(self) -> None:
        """Build module, data and Trainer; what a constructor refuses is said plainly."""
        try:
            super().instantiate_classes()
            take_up(self.model, self._entry, str(self._checkpoint))
        except (ValueError, TypeError) as error:
            plain = plain_error(str(error))
            if plain == str(error):
                raise
            raise ValueError(plain) from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Any:
        # LightningCLI's own hook for what is known only now. A barebones Trainer refuses all this.
        if not config.get("barebones"):
            given = config.get("callbacks") or []
            given = given if isinstance(given, list) else [given]
            config["callbacks"] = [*given, *self._more_callbacks(config, given)]
            config["logger"] = self._loggers(config)
            if config["logger"] is False:  # nothing to write the rates to
                monitor = lightning_callbacks.LearningRateMonitor
                config["callbacks"] = [c for c in config["callbacks"] if type(c) is not monitor]
        if config.get("enable_checkpointing") is False or config.get("barebones"):
            callbacks = []
        return super()._instantiate_trainer(config, callbacks)

    def _more_callbacks(self, config: dict[str, Any], given: Sequence[Callback]) -> list[Callback]:
        more: list[Callback] = []
        if self.subcommand == "fit":
            more.append(callbacks.ProvenanceCallback())
        if self.subcommand == "predict":
            more.append(callbacks.PredictionsCallback(self._settings().output))
        has_bar = any(isinstance(callback, lightning_callbacks.ProgressBar) for callback in given)
        is_terminal = sys.stdout.isatty() and sys.stderr.isatty()
        if not (is_terminal or has_bar or config.get("enable_progress_bar") is False):
            # Rich, which Lightning prefers, prints nothing into a file until the end.
            more.append(lightning_callbacks.TQDMProgressBar(refresh_rate=20))
        return [new for new in more if not any(isinstance(old, type(new)) for old in given)]

    def _loggers(self, config: dict[str, Any]) -> Any:
        given = config.get("logger")
        if given is False:
            return False
        loggers = [] if given in (None, True) else given if isinstance(given, list) else [given]
        if not any(isinstance(logger, CSVLogger) for logger in loggers):
            # Without a version each start gets the next one: CSVLogger deletes the figures that
            # stand in its folder, and a resumed run must not lose those of its beginning.
            name = "csv" if self.subcommand == "fit" else f"csv_{self.subcommand}"
            root = config["default_root_dir"]
            loggers = [*loggers, CSVLogger(root, name=name, flush_logs_every_n_steps=1)]
        return loggers

    def _run_subcommand(self, subcommand: str) -> None:
        # Called at the end of `__init__`; `start` does it, so that a wrong config and a failed run
        # can be told apart.
        pass

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "ckpt_path": self._checkpoint, "weights_only": True}

    def start(self) -> int:
        """Run the command.

        Returns:
            The exit code: 0, 130 after Ctrl-C, or 143 after a termination by the system.
        """
        if self._tuned and self.trainer.num_devices == 1 and "OMP_NUM_THREADS" not in os.environ:
            workers = getattr(self.datamodule, "num_workers", 0)
            torch.set_num_threads(max(1, available_cores() - workers))
        try:
            with checkpoint_follows(self._checkpoint is not None):
                super()._run_subcommand(str(self.subcommand))
        except SIGTERMException:
            return TERMINATED
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            # Lightning leaves Ctrl-C switched off.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            begun = self.subcommand == "fit" and self.trainer.global_step > 0
            say("stopped; the same command with --ckpt_path last goes on" if begun else "stopped")
            return INTERRUPTED
        if self.subcommand == "fit":
            if self._settings().test_at_end:
                self._test()
            say(f"the run is in {self.trainer.default_root_dir}")
        if self.subcommand == "predict":
            default = f"{self.trainer.default_root_dir}/predictions.jsonl"
            say(f"the predictions are in {self._settings().output or default}")
        return 0

    def _settings(self) -> Any:
        return self.config[str(self.subcommand)]

    def _test(self) -> None:
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        self.trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=best or None, weights_only=True
        )


def build(args: Sequence[str], name: str | None = None, tuned: bool = False) -> LMCLI:
    """Parse a command line and build module, data and Trainer.

    Args:
        args: the command and its options, with `-c` naming files.
        name: the word of the recipe; its run goes to `runs/<name>`.
        tuned: whether `tune_process` was called.

    Returns:
        What `start` runs.

    Raises:
        SystemExit: the command line is wrong (code 2), or help was asked for (code 0).
        ValueError, FileNotFoundError: a setting or the checkpoint is wrong, or missing.
    """
    quieten()
    # A config may name classes of the folder that one works in, as in `python -m`.
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    words, named = list(args), option_of(args, "--ckpt_path") or ""
    has_config = {"-c", "--config"} & {word.split("=")[0] for word in words}
    if not has_config and named not in ("", "last", "best"):
        found = find_checkpoint(named, (), resume=False)
        if found and found.is_file() and (base := base_config(found)) is not None:
            words[1:1] = ["--config", base]
            folder = "--trainer.default_root_dir"
            if found.parent.name == "checkpoints" and option_of(words, folder) is None:
                # The run may have been moved, or the config may be relative to another folder.
                words.append(f"{folder}={found.parent.parent}")
    words = keep_adapter_size(place_task_options(place_callback_options(words)))
    return LMCLI(words, None if name is None else f"runs/{name}", tuned)


def _word(class_path: str) -> str:
    """`lmkit.modules.MaskedLMModule` -> `masked_lm`."""
    name = class_path.rsplit(".", 1)[-1].removesuffix("Module")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
