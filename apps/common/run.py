"""The trainer's verbs: fit, validate, test, predict; the only LightningCLI subclass of the project."""

from __future__ import annotations

import inspect
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from apps.common.domain import Domain, load
from apps.common.function import parse
from apps.common.options import BEST, from_run, option, resolve_configs, system_of
from apps.common.report import write_test_report
from apps.common.run_folder import CHECKPOINTS, LAST, SaveRunConfig
from data_prep.common.telling import tell_left_out
from domains.common.callbacks import BestCheckpoint, DefinedMonitor, LastCheckpoint, PredictionTable
from domains.common.errors import ConfigError
from domains.common.files import fill, local_path
from domains.common.hub import network_arguments, network_tensors, plain, publish, published_classes
from domains.common.module import HeptadModule

# arguments that every function behind `predict --raw` may have; those that only a domain's has are options, too
APPLIED = ("preparation", "raw", "out", "workers", "executor", "max_rejects", "progress", "anonymise")


def main(domain: Domain, command: str, options: Sequence[str]) -> None:
    """Run one verb of the trainer."""
    asks_help = "--help" in options or "-h" in options
    words = resolve_configs(domain, options) if command == "fit" or asks_help else from_run(domain, options)
    build(domain, command, words)


def build(domain: Domain, verb: str, options: Sequence[str], *, run: bool = True, title: str = "") -> HeptadCLI:
    """Make the command line of one verb (called `title` in its help) and, unless `run` is False, run it."""
    _quiet()
    system = domain.systems[system_of(domain, options)]
    stored = stored_arguments(options)

    class VerbCLI(HeptadCLI):
        """The command line with this verb's parser alone."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            """One verb."""
            return {verb: LightningCLI.subcommands()[verb]}

    VerbCLI.domain, VerbCLI.verb, VerbCLI.stored, VerbCLI.runs = domain, verb, stored, run
    VerbCLI.continued = option(options, "ckpt_path") is not None
    VerbCLI.prog = f"heptad {domain.name} {title or verb}"
    VerbCLI.links = (*domain.links, *system.links)
    VerbCLI.mode = system.mode or domain.mode
    VerbCLI.model_type = load(system.module)
    return VerbCLI(
        load(system.module),
        load(system.data),
        args=[verb, *options],
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # it stores class objects; hyper-parameters stay plain
        save_config_callback=SaveRunConfig,
        parser_kwargs={
            "prog": f"heptad {domain.name}",
            "exit_on_error": False,
            verb: {"prog": VerbCLI.prog, "exit_on_error": False},
        },
    )


def _quiet() -> None:
    """Leave out what the user can neither mend nor use; every other warning stays."""
    # Lightning advertises other products at this level
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "Be aware that when using `ckpt_path`, callbacks",  # a test needs no checkpoint writers
        ".*is deprecated, use `isinstance",  # Lightning's use of torch's tree utilities
        "Checkpoint directory .* exists and is not empty",  # an earlier training is set aside
        "The number of training batches .* is smaller than the logging interval",
        "The '.*_dataloader' does not have many workers",  # ours slices whole columns, workers would slow it down
    ):
        warnings.filterwarnings("ignore", message)


def stored_arguments(options: Sequence[str]) -> dict[str, Any]:
    """Model options that the checkpoint of `--ckpt_path` was trained with, or that built the model of `--init_from`."""
    path, start = option(options, "ckpt_path"), option(options, "init_from")
    if path is not None:
        return network_arguments(path)
    # a training checkpoint also holds how it was trained, which is no matter of a start
    return network_arguments(start) if start is not None and Path(start).is_dir() else {}


class HeptadCLI(LightningCLI):
    """LightningCLI with the rules of the house.

    - What a checkpoint stores of the model are *defaults*: configuration files and the command line win. (LightningCLI
      lets a checkpoint silently replace what was typed.)
    - Everything a run writes lies in `--run`; a second verb in the same folder saves its own `<verb>.yaml`.
    - Checkpoints are read with `weights_only=True`, and local.
    """

    domain: Domain
    verb: str
    stored: dict[str, Any]
    prog: str
    runs: bool
    continued: bool
    links: tuple[tuple[str, str], ...]
    mode: str
    model_type: type[HeptadModule]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that every domain has."""
        domain, known = self.domain, self.model_type.validation_metrics
        monitor = domain.monitor if domain.monitor in known else known[0]
        parser.add_argument("--system", type=str, default=domain.default_system, help="which model of the domain")
        parser.add_argument("--run", type=str, default=f"runs/{domain.name}", help="folder of everything written")
        parser.add_argument("--init_from", type=str | None, default=None, help="start from these weights alone")
        parser.add_argument("--monitor", type=str, default=monitor, help="metric that chooses best.ckpt")
        parser.add_argument("--mode", type=Literal["min", "max"], default=self.mode, help="best is lowest or highest")
        chooses = "epoch that is kept: the best by --monitor, or the last, where no data are left to choose by"
        parser.add_argument("--select", type=Literal["best", "last"], default="best", help=chooses)
        parser.add_argument("--patience", type=int | None, default=None, help="stop after so many worse validations")
        parser.add_argument("--save_every", type=int, default=1000, help="steps between writings of last.ckpt")
        parser.add_argument("--ema", type=float | None, default=None, help="decay of averaged weights, e.g. 0.999")
        parser.add_argument("--replicates", type=int, default=1000, help="bootstrap resamples of test metrics")
        if self.verb == "predict" and domain.apply:
            parser.add_argument("--raw", type=str, nargs="+", action="extend", help="raw data to encode and predict")
            parser.add_argument("--out", type=str | None, default=None, help="folder to write (RUN/predict)")
            parser.add_argument("--max_rejects", type=float, default=0.01, help="tolerated share of unusable records")
            parser.add_argument("--workers", type=int | None, default=None, help="processes that encode")
            if "anonymise" in inspect.signature(load(domain.apply)).parameters:
                secret = "file with the secret of a preparation with pseudonyms"
                parser.add_argument("--anonymise", type=str | None, default=None, help=secret)
            parser.add_function_arguments(load(domain.apply), as_group=False, skip=set(APPLIED))
        # our loaders slice by process themselves; the summary's only news is said by before_fit
        parser.set_defaults({"trainer.use_distributed_sampler": False, "trainer.enable_model_summary": False})
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        for source, target in self.links:
            parser.link_arguments(source, target, apply_on="instantiate")
        linked = {"model.seed", *(target for _, target in self.links)}
        defaults = {f"model.{name}": value for name, value in self.stored.items()}
        unknown = []
        for name, value in defaults.items():
            if name not in linked:
                try:
                    parser.set_defaults({name: value})
                except KeyError:  # of another version, or another system
                    unknown.append(name)
        if unknown and self.continued:
            print(f"the checkpoint has options that are passed over: {', '.join(unknown)}", file=sys.stderr)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse what the router passes; `sys.argv` stays as it is, for processes that DDP launches with it."""
        inner = self._subcommand_parsers[self.verb]
        known = [word[2:] for action in inner._actions for word in action.option_strings]
        self.config = parse(parser, list(args or ()), self.prog, known)

    def _parse_ckpt_path(self) -> None:
        """Leave what was typed alone: stored options have already served as defaults."""

    def before_instantiate_classes(self) -> None:
        """Check paths, encode raw data, and collect the callbacks of the run."""
        config = self.config[self.verb]
        self.run_directory = Path(config.run)
        if self.verb == "predict":  # what is predicted must not take the place of what was tested
            self.run_directory = Path(config.out) if config.get("out") else self.run_directory / "predict"
        for path in (config.ckpt_path, config.init_from):
            if path is not None:
                local_path(path)
        if config.ckpt_path is not None and config.init_from is not None:
            raise ConfigError("--ckpt_path continues a run and --init_from starts one; give one of them")
        if config.replicates < 1 or config.save_every < 1:
            raise ConfigError("--replicates and --save_every count from 1")
        known = self.model_type.validation_metrics
        if config.monitor not in known:
            raise ConfigError(f"--monitor {config.monitor}: validation measures {', '.join(known)}; choose one of them")
        config["weights_only"] = True
        for name in ("root", "splits"):  # a run is used from other folders, too
            if config.data.get(name):
                config.data[name] = os.path.abspath(config.data[name])  # noqa: PTH100 (links stay as they are)
        if self.runs and config.get("raw"):
            config.data.predict_root = str(self.run_directory / "encoded")
            self._encode(config)
        self.table = PredictionTable(self.run_directory, replicates=config.replicates)
        self.trainer_defaults["callbacks"] = [self.table, *self._training_callbacks(config)]

    @rank_zero_only  # processes that DDP launches parse the same words; they find what the first one encoded
    def _encode(self, config: Any) -> None:
        encoded = self.run_directory / "encoded"
        # made anew each time: another log may have the same name, and its predictions must not be taken for this one's
        shutil.rmtree(encoded, ignore_errors=True)
        (self.run_directory / "predictions.parquet").unlink(missing_ok=True)
        raw = [Path(path) for path in config.raw]
        options = {"max_rejects": config.max_rejects, "workers": config.workers}
        if config.get("anonymise"):
            options["anonymise"] = Path(config.anonymise)
        own = [name for name in inspect.signature(load(self.domain.apply)).parameters if name not in APPLIED]
        options |= {name: config[name] for name in own}
        load(self.domain.apply)(Path(config.data.root), raw, encoded, **options)
        tell_left_out(encoded)

    def _training_callbacks(self, config: Any) -> list[Callback]:
        callbacks: list[Callback] = []
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        if self.verb != "fit" or config.trainer.enable_checkpointing is False:
            return callbacks
        folder = self.run_directory / CHECKPOINTS
        callbacks += [
            BestCheckpoint(
                dirpath=folder,
                filename="best",
                monitor=config.monitor if config.select == "best" else None,
                mode=config.mode,
                enable_version_counter=False,
                auto_insert_metric_name=False,
                save_on_train_epoch_end=True if config.select == "last" else None,
            ),
            LastCheckpoint(folder / LAST, config.save_every),
        ]
        if config.select == "best":
            callbacks.insert(0, DefinedMonitor(config.monitor))
        if config.patience is not None:
            callbacks.append(EarlyStopping(config.monitor, patience=config.patience, mode=config.mode))
        if config.ema is not None:
            callbacks.append(EMAWeightAveraging(decay=config.ema))
        return callbacks

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Send everything that is written to the run's folder."""
        given = self.config[self.verb].trainer
        # without a folder of its own Lightning would write beside the user's files, even with logger: false
        if given.default_root_dir is None:
            kwargs.setdefault("default_root_dir", self.run_directory)
        if given.logger is None or given.logger is True:
            kwargs.setdefault("logger", self._loggers() if self.verb == "fit" else False)
        return super().instantiate_trainer(**kwargs)

    def _loggers(self) -> list[Logger]:
        # a resumed run writes version_1 and so on; what the first one logged stays
        folder = self.run_directory
        csv = CSVLogger(folder, name="log", flush_logs_every_n_steps=50)
        return [csv, TensorBoardLogger(folder, name="tensorboard", version=csv.version)]

    def after_instantiate_classes(self) -> None:
        """Load `--init_from`; leave the run itself out where only the objects are wanted."""
        config = self.config[self.verb]
        self._check_classes(config)
        source = config.init_from
        if source is not None:
            fill(self.model.net, network_tensors(source), str(source))
            self.model.started_from = str(source)
        if self.verb == "fit" and config.select == "last" and self.datamodule.validation_is_empty():
            self.trainer.limit_val_batches = 0
        if not self.runs:
            self.subcommand = None

    def _check_classes(self, config: Any) -> None:
        """Refuse weights whose classes are not those of the data; a training may start from them, and is told."""
        source = config.ckpt_path or config.init_from
        trained, own = published_classes(source) if source else [], getattr(self.model, "classes", [])
        if not trained or trained == list(own):
            return
        said = f"{source}: its classes are {', '.join(trained)}, those of {self.datamodule.root} {', '.join(own)}"
        if config.ckpt_path is not None or self.verb != "fit":
            raise ConfigError(f"{said}; use data that were prepared with the same classes, in the same order")
        print(f"{said}; weights of the last layer are those of the former", file=sys.stderr)

    def before_fit(self) -> None:
        """Say what is trained on what."""
        if self.trainer.is_global_zero:
            count = sum(parameter.numel() for parameter in self.model.net.parameters())
            data = getattr(self.datamodule, "card", {}).get("name", "data")
            print(f"{type(self.model.net).__name__} of {count:,} parameters on {data}; see {self.run_directory}")

    def after_fit(self) -> None:
        """Publish the best weights in the hub layout."""
        best = self.run_directory / BEST
        if self.trainer.is_global_zero and best.is_file():
            # the network itself may hold a share of its tables only
            publish(self.run_directory / "model", self.model.net, self.card(), network_tensors(best), self.known())
            print(f"best weights: {best}, published to {self.run_directory / 'model'}")
        elif self.trainer.is_global_zero and best.with_name(LAST).is_file():
            print(f"nothing was validated, so that no epoch is the best: use --ckpt_path {best.with_name(LAST)}")

    def after_test(self) -> None:
        """Write the report."""
        if self.trainer.is_global_zero and self.table.frame is not None:
            protocol = self.model.protocol(self.datamodule)
            settings = self._settings()
            write_test_report(self.domain, self.run_directory, self.table, self.datamodule, settings, protocol)

    def after_predict(self) -> None:
        """Say where the predictions are."""
        if self.trainer.is_global_zero:
            print(f"predictions: {self.run_directory / 'predictions.parquet'}")

    def _settings(self) -> str:
        return str(self.parser.dump(self.config, skip_none=False)) if self.config else ""

    def known(self) -> dict[str, Any]:
        """What a user of the network must know besides what builds it: names of classes, how inputs are made."""
        rules = {**self.datamodule.input_rules(), **self.model.input_rules()}
        found = {"classes": list(getattr(self.model, "classes", [])), "input": rules}
        return {name: plain(value) for name, value in found.items() if value}

    def card(self) -> str:
        """Model card in Markdown: what it is, what it was trained on, under which licence the data are."""
        card = getattr(self.datamodule, "card", {})
        described = {"arguments": self.model.net.arguments, **self.known()}
        config = yaml.safe_dump(described, default_flow_style=None, sort_keys=False, allow_unicode=True)
        return (
            f"---\nlibrary_name: heptad\ntags: [{self.domain.name}]\n---\n\n# {type(self.model.net).__name__}\n\n"
            f"Trained by `heptad {self.domain.name} fit` on {card.get('name', 'unknown data')}.\n\n"
            f"Licence of the data: {card.get('licence', 'unknown')}\n\n```yaml\n{config}```\n"
        )
