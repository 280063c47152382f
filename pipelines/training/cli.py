"""fit, validate, test and predict: LightningCLI over configs/base.yaml and an experiment file."""

from __future__ import annotations

import fcntl
import inspect
import os
import re
import shutil
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import Callback, LightningDataModule, Trainer
from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from datamodules.environments.environment import DeadEnvironmentError
from modules.errors import UserError, brief
from modules.learner import Learner
from pipelines.callbacks.housekeeping.guard import last_checkpoint
from pipelines.callbacks.housekeeping.save_config import SaveConfig
from pipelines.callbacks.learning.pretrained import Pretrained
from pipelines.callbacks.measuring.prediction_writer import PredictionWriter
from pipelines.callbacks.order import in_order
from pipelines.console import CONFIGS, NO_ROOM, RUN_FOLDER, check_folder, check_seed, expand_home, fail, run_name
from pipelines.runs import checkpoint_files, checkpoints
from pipelines.runs.checkpoint_files import LAST, PREVIOUS, SealedCheckpointIO
from pipelines.spelling import explain
from pipelines.training import changes
from pipelines.training.callbacks import Changes, apply
from pipelines.training.changes import Resumed
from pipelines.training.debug import shrink
from pipelines.training.plan import plan
from pipelines.training.refusals import check, check_nulls, refusing, without_switched_off
from pipelines.training.stopping import Stopping

RUNS = Path("runs")
KEYS = [
    *("config", "seed_everything", "ckpt_path", "init_from", "init_fresh", "model.class_path", "data.class_path"),
    *(f"trainer.{name}" for name in inspect.signature(Trainer).parameters),
]


class Parser(LightningArgumentParser):
    """Reports a mistake in one line with the nearest correct spelling."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"exit_on_error": True, **kwargs})

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """Parse words. Replace None by null, because jsonargparse passes the null of a value object's field as None."""
        if args is not None:
            args = [re.sub(r"^(--[\w.]+=)None$", r"\1null", str(word)) for word in args]
        return super().parse_args(args, *more, **options)

    def _parse_common(self, cfg: Namespace, *more: Any, **options: Any) -> Namespace:
        # Once all files and words of a command are read: what is printed and checked is what will run.
        if options.get("defaults") and "trainer" in cfg:
            cfg.trainer.callbacks = apply(cfg.callbacks, cfg.trainer.callbacks or [])
            cfg.callbacks = []
            if cfg.debug:
                shrink(cfg)
        return super()._parse_common(cfg, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print one line and exit with code 2."""
        fail(explain(message, KEYS))


class TrainerCLI(LightningCLI):
    """Builds trainer, model and data from YAML files, and gives every run its own folder."""

    def __init__(self) -> None:
        base = {"default_config_files": [str(CONFIGS / "base.yaml")]}
        self.locked = False
        with ExitStack() as self.held:
            super().__init__(
                model_class=Learner,
                datamodule_class=LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=SaveConfig,
                save_config_kwargs={"save_to_log_dir": False},
                parser_class=Parser,
                parser_kwargs={name: dict(base) for name in self.subcommands()},
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                seed_everything_default=0,
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line, and expand ~ to the home folder in every path."""
        super().parse_arguments(parser, args)
        self.config = expand_home(self.config)

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool):  # true draws a seed, false sets none
            check_seed("seed_everything", seed)
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        # Lightning would override the command line by hyperparameters of the checkpoint. Our checkpoints store none.
        pass

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add --init_from, --init_fresh and --print_plan."""
        parser.add_argument(
            "--init_from", type=Path | None, default=None, help="checkpoint whose weights a new run of fit starts from"
        )
        parser.add_argument(
            "--init_fresh",
            type=bool,
            default=False,
            help="with --init_from, keep the initial values of weights that the checkpoint lacks or has in another "
            "shape, and list them; false refuses such a checkpoint",
        )
        parser.add_argument(
            "--debug",
            type=bool,
            default=False,
            help="replace sizes and numbers of networks, rounds, searches and evaluations by small ones; "
            "configs/debug.yaml sets this and ends the run after a few updates",
        )
        parser.add_argument(
            "--callbacks",
            type=list[Changes],
            default=[],
            help="change arguments of a callback by the name of its class, as in --callbacks.Collect.prefill 100, or "
            "leave it out, as in --callbacks.DreamVideo null",
        )
        parser.add_argument(
            "--print_plan",
            action="store_true",
            help="print what the run would do before, in and after an update, in order, and train nothing",
        )

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder, and check checkpoint and device, before slow steps start."""
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        check_nulls(config)
        _check_accelerator(config.trainer.accelerator)
        if config.print_plan:
            config.trainer.logger = False  # writes nothing, not even a folder
            return
        # The config.yaml of a run contains its init_from, so only the command line tells what the user asks for.
        if any(re.match(r"--init_from(=|$)", word) for word in sys.argv):
            if self.subcommand != "fit":
                raise UserError("--init_from is for fit: every other command takes --ckpt_path")
            if config.ckpt_path is not None:
                raise UserError("--init_from begins a new run and --ckpt_path resumes one: give only one of them")
        if config.init_from is not None and config.ckpt_path is None:
            checkpoint_files.read(Path(config.init_from))
        folder = self.run_folder(config)
        check_folder("trainer.default_root_dir", folder)
        checkpoints.check_links(folder)
        if folder.exists():  # a new folder is made only after all checks
            self._lock(folder)
        if config.ckpt_path == "last":
            if any((folder / "checkpoints" / name).exists() for name in (LAST, PREVIOUS)):
                config.ckpt_path = str(checkpoint_files.newest(folder / "checkpoints", keep=self.subcommand == "fit"))
            elif self.subcommand == "fit" and ((folder / "replay").exists() or not _is_first() or _cluster()):
                config.ckpt_path = None
                _start_anew(folder)  # the first process may have done it before another process looks
            else:
                raise UserError(f"there is no run to resume: {folder / 'checkpoints' / LAST} does not exist")
        elif config.ckpt_path is not None:
            checkpoint_files.read(Path(config.ckpt_path))
        if self.subcommand != "fit":
            if config.ckpt_path is None:
                raise UserError(f"dreamcade {self.subcommand} needs --ckpt_path FILE, or --ckpt_path last")
            folder = checkpoints.folder(config.ckpt_path)
            if config.data.init_args.get("path", "") is None and (folder / "replay" / "rank0").exists():
                config.data.init_args.path = folder / "replay" / "rank0"
            folder = folder / self.subcommand
        config.weights_only = True
        config.trainer.default_root_dir = str(folder)
        if isinstance(config.trainer.logger, Namespace):
            config.trainer.logger = [config.trainer.logger]
        for logger in config.trainer.logger if isinstance(config.trainer.logger, list) else []:
            if logger.init_args.get("save_dir", "") is None:
                logger.init_args.save_dir = folder

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        return super()._instantiate_trainer(without_switched_off(config), callbacks)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer with sealed checkpoints, the callback of --init_from, and the writer of `predict`."""
        config = self._get(self.config, "trainer")
        with refusing(config):
            trainer = super().instantiate_trainer(**kwargs)
        check(trainer)
        trainer.strategy.checkpoint_io = SealedCheckpointIO()
        if (path := self._get(self.config, "init_from")) is not None:
            trainer.callbacks.append(Pretrained(path, "all", self._get(self.config, "init_fresh")))  # type: ignore[attr-defined]
        self.progress, self.resumed = _Began(), Resumed()
        self.stopping = Stopping(trainer)
        trainer.callbacks += [self.resumed, self.progress, self.stopping]  # type: ignore[attr-defined]
        if self.subcommand == "predict":
            trainer.callbacks.append(PredictionWriter())  # type: ignore[attr-defined]
        trainer.callbacks = in_order(trainer.callbacks)  # type: ignore[attr-defined]
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        if self._get(self.config, "print_plan"):
            print(plan(self.trainer.callbacks, self.model))  # type: ignore[attr-defined]
            return
        path = self._get(self.config, "ckpt_path")
        self._lock(Path(self.trainer.default_root_dir))
        changed = [] if path is None or subcommand != "fit" else self._changes(path)
        try:
            with self.stopping if subcommand == "fit" else nullcontext(), refusing():
                super()._run_subcommand(subcommand)
        except DeadEnvironmentError as error:
            raise UserError(f"{error}; {_advice(self.trainer)}") from error
        except (UserError, MisconfigurationException):
            raise
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in NO_ROOM
            if path is None or self.progress.began or full:
                raise
            model = changes.said([change for change in changed if change[0].startswith("model.")])
            why = f" with {model}" if model else ""
            raise UserError(f"{path} cannot be resumed{why}: {brief(error)}") from error

    def _changes(self, path: str) -> list[changes.Change]:
        """Return the changed settings of a resumed run, which `Resumed` prints when training starts.

        Raises:
            UserError: a setting changed that may not change.
        """
        (saved,) = (each for each in self.trainer.callbacks if isinstance(each, SaveConfig))  # type: ignore[attr-defined]
        found = changes.changes(checkpoint_files.read(Path(path)).get("config") or {}, saved.plain())
        changes.check(found, path)
        self.resumed.said = changes.said(found)
        return found

    def _lock(self, folder: Path) -> None:
        """Lock the folder against other runs until this run ends."""
        if self.subcommand == "fit" and not self.locked:
            _lock(folder, self.held)
            self.locked = True

    def run_folder(self, config: Namespace) -> Path:
        """Return --trainer.default_root_dir, or runs/<config>/<n>: the newest n to resume a run, else a new n."""
        if config.trainer.default_root_dir is not None:
            folder = Path(config.trainer.default_root_dir)
            begun = any((folder / name).exists() for name in ("checkpoints", "replay"))
            if self.subcommand == "fit" and config.ckpt_path is None and begun:
                raise UserError(f"{folder} has a run already: resume it by --ckpt_path last, or choose another folder")
            return folder
        if RUN_FOLDER in os.environ:
            return Path(os.environ[RUN_FOLDER])
        root = RUNS / (run_name(config.get("config") or []) or "run")
        numbers = sorted(int(path.name) for path in root.glob("*") if path.name.isdigit())
        if config.ckpt_path == "last":
            if not numbers:
                raise UserError(f"there is no run to resume in {root}")
            folder = root / str(numbers[-1])
        elif self.subcommand == "fit" and config.ckpt_path is not None:
            folder = Path(config.ckpt_path).resolve().parent.parent
        elif self.subcommand == "fit" and (cluster := _cluster()) is not None and cluster.world_size() > 1:
            # Every process would count by itself, and the first makes its folder before the others look.
            raise UserError("processes of SLURM and torchrun must share one folder: give --trainer.default_root_dir")
        else:
            folder = root / str(numbers[-1] + 1 if numbers else 0)
            if "WANDB_SWEEP_ID" in os.environ:
                folder = _claim(folder)
        os.environ[RUN_FOLDER] = str(folder)
        return folder


@rank_zero_only
def _lock(folder: Path, held: ExitStack) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = held.enter_context((folder / "run.lock").open("a"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another run is using {folder}: wait until it ends, or choose another folder with "
            "--trainer.default_root_dir"
        ) from None


@rank_zero_only
def _start_anew(folder: Path) -> None:
    if not (folder / "replay").exists():
        print(f"dreamcade: there is no run in {folder} yet: a new run begins", file=sys.stderr)
        return
    # The new start plays the same steps again, to the bit.
    print(f"dreamcade: {folder} was stopped before its first checkpoint: the run starts again", file=sys.stderr)
    shutil.rmtree(folder / "replay")
    (folder / "metrics.csv").unlink(missing_ok=True)


def _is_first() -> bool:
    return rank_zero_only(lambda: True)() is not None


def _cluster() -> ClusterEnvironment | None:
    # SLURM and torchrun start all processes, and restart an interrupted job by its first command.
    kinds: list[type[ClusterEnvironment]] = [SLURMEnvironment, TorchElasticEnvironment]
    return next((kind() for kind in kinds if kind.detect()), None)


def _claim(folder: Path) -> Path:
    # Agents of a sweep start runs at the same time: making a folder claims its number.
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            folder = folder.with_name(str(int(folder.name) + 1))
        else:
            return folder


def _advice(trainer: Trainer) -> str:
    if not last_checkpoint(trainer).exists():
        return "no checkpoint was written yet: --ckpt_path last starts the run again"
    return f"--ckpt_path last resumes from {last_checkpoint(trainer)}"


class _Began(Callback):
    """Records whether a batch has finished; earlier errors come from the states that a checkpoint restored."""

    began = False

    def on_train_batch_end(self, *args: Any) -> None:
        """Record that the run trains, so that later errors are not blamed on the checkpoint."""
        self.began = True

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = on_train_batch_end  # type: ignore[assignment]


def _check_accelerator(accelerator: str) -> None:
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"trainer.accelerator is {accelerator}, but no GPU is available: use --trainer.accelerator cpu")
