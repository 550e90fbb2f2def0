"""The two systems of DCAL: fine-grained classes, and re-identification."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from domains.common.classification import ClassificationScores
from domains.common.errors import ConfigError
from domains.common.intervals import Estimate
from domains.common.loader import Batch
from domains.finegrained.dcal import class_probabilities, embedding
from domains.finegrained.evaluation import evaluate_classes, evaluate_retrieval
from domains.finegrained.reid_metrics import AveragePrecision, Identified, score_features
from domains.finegrained.reranking import Reranking
from domains.finegrained.retrieval import (
    GALLERY,
    QUERY,
    Sides,
    add_neighbours,
    list_neighbours,
    mean_margin,
    score_queries,
)
from domains.finegrained.search import Search
from domains.finegrained.training import DCALModule

FEW = 10  # queries or identities of a validation, of which fewer say little


class ClassModule(DCALModule):
    """DCAL for fine-grained classes (H. Zhu et al., CVPR 2022, arXiv 2205.02151, section 4.2).

    Args:
        classes: taken from the data.
        image_size: taken from the data.
        lr: learning rate, for a batch of `lr_batch` pictures.
        embeddings: write the features of pictures with predictions, too.
        seed: of distractors and stochastic depth.
        **options: further options of `DCALModule`.
    """

    validation_metrics = ("val/accuracy", "val/balanced_accuracy", "val/log_loss")

    def __init__(
        self,
        classes: list[str],
        image_size: list[int],
        lr: float = 5e-4,
        embeddings: bool = False,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if len(classes) < 2:
            raise ConfigError(f"the data have {len(classes)} class(es): {', '.join(classes)}; two are needed")
        super().__init__(len(classes), "fgvc", image_size, lr=lr, seed=seed, **options)
        self.classes, self.embeddings = list(classes), embeddings

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect labels and probabilities."""
        probabilities = self._probabilities(self(batch)).double()
        self._validated.append((batch["label"], probabilities))

    def on_validation_epoch_end(self) -> None:
        """Log metrics over all of the split."""
        labels, probabilities = self.gathered(self._validated)
        self._validated = []
        right = probabilities.argmax(1)
        scores = ClassificationScores(labels, probabilities, right, self.classes, per_class=False)
        found = scores(np.ones(len(labels)))
        # every process has the same numbers
        self.log_dict({name: found[name.removeprefix("val/")] for name in self.validation_metrics}, sync_dist=True)

    def _probabilities(self, output: Any) -> torch.Tensor:
        """By the paper's rule, the sum of both branches, divided so that a row adds up to 1."""
        together = class_probabilities(output, self.inference)
        return together / together.sum(-1, keepdim=True)

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """Probabilities and decision for each picture."""
        output = self(batch)
        probabilities = self._probabilities(output).float()
        known: dict[str, Any] = {name: batch[name] for name in ("row", "label", "name") if name in batch}
        each = {f"probability_{k}": probabilities[:, k] for k in range(len(self.classes))}
        found = {**known, **each, "predicted": probabilities.argmax(-1)}
        if self.inference == "both" and output.global_local is not None:
            found["predicted_sa"] = output.self_attention.logits.argmax(-1)
            found["predicted_glca"] = output.global_local.logits.argmax(-1)
        if self.embeddings:
            found["embedding"] = embedding(output, self.inference).float()
        return found

    def complete(self, predictions: pl.DataFrame) -> pl.DataFrame:
        """Add names of classes, and where pictures lie."""
        names = pl.Series(self.classes)
        found = self.located(predictions).with_columns(predicted_class=names[predictions["predicted"].to_numpy()])
        if "label" not in predictions.columns:
            return found
        return found.with_columns(**{"class": names[predictions["label"].to_numpy()]})

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """See `evaluate_classes`."""
        return evaluate_classes(predictions, self.classes, replicates=replicates, seed=seed)

    def protocol(self, data: Any) -> str:
        """Say how the metrics are measured."""
        size = " x ".join(map(str, data.image_size))
        rule = {
            "both": "the sum of the probabilities of self-attention and global-local cross-attention",
            "sa": "the probabilities of self-attention alone",
            "glca": "the probabilities of global-local cross-attention alone",
        }[self.inference]
        return (
            f"accuracy is top-1, decided by {rule}; one middle cut of {size} pixels of each picture, no flips."
            f" Precision {self.trainer.precision}. Intervals are resampled over pictures."
        )


class ReIDModule(DCALModule):
    """DCAL for re-identification (H. Zhu et al., CVPR 2022, arXiv 2205.02151, section 4.3), by TransReID's recipe.

    Args:
        identities: taken from the data.
        image_size: taken from the data.
        ignore_camera: taken from the data: pictures by the query's own camera are matches, too.
        triplet: weight of the batch-hard triplet loss.
        optimizer: `sgd` with momentum 0.9, `adamw` or `adam`.
        lr: learning rate.
        lr_batch: pictures of a batch that lr is stated for; others scale it. None: lr is taken as it is.
        min_lr: at the end of the cosine, as a share of lr.
        warmup: epochs in which the learning rate rises.
        weight_decay: of matrices.
        bias_lr: factor on the learning rate of biases.
        reranking: in tests also measure after k-reciprocal re-ranking.
        k1: of re-ranking, see `Reranking`.
        k2: likewise.
        rerank_weight: likewise, of the original distance.
        ap: rule of `mAP`: the mean of precisions, or `trapezoid` as the tool of Market-1501.
        search: of nearest pictures: `faiss` where it is installed (`auto`), or `exact` in blocks.
        seed: of distractors and stochastic depth.
        **options: further options of `DCALModule`.
    """

    # the first one chooses the epoch: it is the only one that does not end at 1 for good where few are to be told apart
    validation_metrics = ("val/margin", "val/mAP", "val/rank1", "val/mINP")

    def __init__(
        self,
        identities: list[str],
        image_size: list[int],
        ignore_camera: bool = False,
        triplet: float = 1.0,
        optimizer: Literal["adamw", "adam", "sgd"] = "sgd",
        lr: float = 0.008,
        lr_batch: int | None = None,
        min_lr: float = 0.002,
        warmup: float = 5.0,
        weight_decay: float = 1e-4,
        bias_lr: float = 2.0,
        reranking: bool = False,
        k1: int = 20,
        k2: int = 6,
        rerank_weight: float = 0.3,
        ap: AveragePrecision = "mean",
        search: Search = "auto",
        seed: int = 0,
        **options: Any,
    ) -> None:
        if len(identities) < 2:
            raise ConfigError(f"the data have {len(identities)} training identities; two are needed to train")
        super().__init__(
            len(identities), "reid", image_size, triplet=triplet, optimizer=optimizer, lr=lr, lr_batch=lr_batch,
            min_lr=min_lr, warmup=warmup, weight_decay=weight_decay, bias_lr=bias_lr, seed=seed, **options,
        )  # fmt: skip
        self.ignore_camera, self.ap, self.search = ignore_camera, ap, search
        self.reranking = Reranking(k1, k2, rerank_weight) if reranking else None
        self._neighbours: pl.DataFrame | None = None
        self._told = False

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collect features, and who is shown."""
        features = embedding(self(batch), self.inference).float()
        self._validated.append((features, batch["label"], batch["camera"], batch["role"]))

    def on_validation_epoch_end(self) -> None:
        """Log scores over all of the split."""
        found = [torch.from_numpy(values) for values in self.gathered(self._validated)]
        self._validated = []
        if self.trainer.sanity_checking:  # of a few batches, that may have no gallery
            return
        features, labels, cameras, roles = found
        if self._left_out("valid", len(features)):
            return
        rows = tuple((roles == role).nonzero().squeeze(1) for role in (QUERY, GALLERY))
        who = tuple(Identified(labels[some], cameras[some]) for some in rows)
        sides = Sides(rows, tuple(features[some] for some in rows), who)  # type: ignore[arg-type]
        scores = score_features(*sides.features, *sides.who, ap=self.ap, ignore_camera=self.ignore_camera)
        measured = {
            "val/margin": mean_margin(sides, ignore_camera=self.ignore_camera),
            "val/mAP": scores.mean_ap,
            "val/rank1": float(scores.cmc[0]),
            "val/mINP": scores.mean_inp,
        }
        # every process has the same numbers
        self.log_dict(measured, sync_dist=True)
        self._tell_few(scores.valid, sides.who[0])

    def _left_out(self, split: str, seen: int) -> bool:
        """Whether a trial run (`fast_dev_run`) saw a part of the validation, which then is not measured.

        Raises:
            ConfigError: another run saw a part of it.
        """
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        total = len(data.store(split).frame)
        if seen >= total:
            return False
        if split == "valid" and self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return True
        name = {"valid": "val", "test": "test"}[split]
        advice = "; 0 with --select last trains without validation" if split == "valid" else ""
        raise ConfigError(
            f"trainer.limit_{name}_batches leaves {total - seen:,} of {total:,} pictures out, and queries come before"
            f" the gallery that they are searched in; leave the option out{advice}"
        )

    def _tell_few(self, valid: torch.Tensor, query: Identified) -> None:
        """Warn once in a training whose epoch is chosen by hardly anything."""
        chooses = any(getattr(one, "monitor", None) for one in self.trainer.checkpoint_callbacks)
        if self._told or not chooses:
            return
        self._told = True
        queries, identities = int(valid.sum()), len(set(query.identities[valid].tolist()))
        if min(queries, identities) < FEW and self.trainer.is_global_zero:
            print(
                f"warning: {queries:,} queries of {identities:,} identities choose the epoch, by which hardly anything"
                " can be told; prepare the data with more --valid_identities, or keep the last epoch (--select last)"
            )

    def predict_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """Features of each picture, of length 1."""
        known: dict[str, Any] = {
            name: batch[name] for name in ("row", "label", "name", "role", "camera") if name in batch
        }
        return {**known, "embedding": embedding(self(batch), self.inference).float()}

    def complete(self, predictions: pl.DataFrame) -> pl.DataFrame:
        """Add where pictures lie, the nearest pictures of queries and, in a test, their scores."""
        found = self.located(predictions)
        if self.trainer.testing:
            self._left_out("test", len(found))
            found, said = score_queries(found, ignore_camera=self.ignore_camera, reranking=self.reranking)
            if said:
                print(said)
        labelled = "label" in found.columns
        found = add_neighbours(found, ignore_camera=self.ignore_camera, labelled=labelled, search=self.search)
        self._neighbours = list_neighbours(found)
        return found

    def side_tables(self) -> dict[str, pl.DataFrame]:
        """Nearest pictures of each query, by name."""
        return {} if self._neighbours is None else {"neighbours": self._neighbours}

    def evaluate(self, predictions: pl.DataFrame, *, replicates: int, seed: int) -> dict[str, Estimate]:
        """See `evaluate_retrieval`."""
        return evaluate_retrieval(predictions, trapezoid=self.ap == "trapezoid", replicates=replicates, seed=seed)

    def protocol(self, data: Any) -> str:
        """Say how the metrics are measured."""
        size = " x ".join(map(str, data.image_size))
        cameras = (
            "Cameras are ignored, which is easier than the usual rule: pictures by the query's own camera count, too."
            if self.ignore_camera
            else "Of each query gallery pictures of its identity by its own camera are left out."
        )
        again = "" if self.reranking is None else f" reranked_: after k-reciprocal re-ranking ({self.reranking})."
        return (
            f"Single query, Euclidean distances of features of length 1, pictures of {size} pixels, no flips; junk is"
            f" left out, distractors stay. {cameras} mAP by the {self.ap} rule.{again} Precision"
            f" {self.trainer.precision}. Intervals are resampled over the identities of queries."
        )
