# SPDX-License-Identifier: Apache-2.0
"""Lightning module: training and validation of a SqueezeSegV3, with self-describing checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from sqsegv3_ros.data.label_set import LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.evaluation.metrics import ConfusionMatrix
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.model_file import find_model
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.training.checkpoint import KEY, load_weights
from sqsegv3_ros.training.crop import set_azimuth_padding
from sqsegv3_ros.training.data import Batch, ScanData, ValidationScan, load_label_set
from sqsegv3_ros.training.loss import LossConfig, MultiLayerLoss, class_weights, cross_entropy_sums
from sqsegv3_ros.training.schedule import OptimizerConfig, build_optimizer, build_schedule

BEST_METRIC = "val/miou"
"""Metric that selects the best checkpoint: mean IoU over the evaluated classes present in the validation scans."""


class SegmentationModule(LightningModule):
    """A SqueezeSegV3 in training, with the settings that its model file will carry.

    Args:
        name: Name of the model.
        network: Shape of the network.
        labels: 'semantic-kitti', 'semantic-kitti-all' (moving classes kept apart) or a YAML file in SemanticKITTI's
            form.
        projection: Projection of points into the image.
        normalization: Normalisation of the image's channels.
        knn: Refinement of the labels restored to points, in the exported model.
        loss: Training loss.
        optimizer: Optimiser and learning-rate schedule.
        start_from: Initial weights: a checkpoint, a model file, the name of a model that ships, or a checkpoint folder
            of the official release; random if not given.
        channels_last: Use the channels-last memory format, which is faster on some machines.
        sensor_height_m: Height above the ground, in metres, of the sensor that the model expects; the node warns of
            other heights.
        recorded_height_m: Height of the sensor that recorded the scans, if that is another one: the network gets the
            coordinates that a sensor at the model's height would measure, as on a robot with `extrinsics.height_m`.
        seed: Taken from seed_everything.
    """

    def __init__(
        self,
        name: str = "sqsegv3",
        network: NetworkConfig = NetworkConfig(),  # noqa: B008 (frozen, as all settings below)
        labels: str = "semantic-kitti",
        projection: ProjectionConfig = ProjectionConfig(),  # noqa: B008
        normalization: Normalization = Normalization(),  # noqa: B008
        knn: KnnConfig = KnnConfig(),  # noqa: B008
        loss: LossConfig = LossConfig(),  # noqa: B008
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008
        start_from: str | None = None,
        channels_last: bool = False,
        sensor_height_m: float | None = None,
        recorded_height_m: float | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.model_name = name
        self.label_set = load_label_set(labels)
        self.network_config = dataclasses.replace(network, num_classes=len(self.label_set))
        self.projection = projection
        self.normalization = normalization
        self.knn = knn
        self.loss_config = loss
        self.optimizer_config = optimizer
        self.start_from = start_from
        self.channels_last = channels_last
        self.sensor_height_m = sensor_height_m
        self.recorded_height_m = recorded_height_m
        self.seed = seed
        self.network = SqueezeSegV3(self.network_config)
        if channels_last:
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        classes = self.label_set.classes
        weights = class_weights(loss.class_weights, [c.frequency or 0.0 for c in classes], [c.ignored for c in classes])
        self.criterion = MultiLayerLoss(loss, weights, self.label_set.evaluated)
        self.confusion = MulticlassConfusionMatrix(len(classes), validate_args=False)
        self.validation_loss = MeanMetric()
        self.scores: dict[str, float] = {}
        self._scored_step = -1
        if start_from is not None:
            source = Path(start_from).expanduser()
            source = source if source.is_dir() else find_model(source)
            rank_zero_info(load_weights(self.network, source))

    def setup(self, stage: str) -> None:
        """Take the sets of classes over from the training data, and class weights if the label set has no frequencies.

        Raises:
            UserError: No scan is in memory to count the classes in.
        """
        classes = self.label_set.classes
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ScanData):
            self.criterion.sets = data.sets
            if stage == "fit":
                rank_zero_info(f"batches of {_describe_batches(self._batches(), self.trainer.world_size)}")
        if stage == "fit" and isinstance(data, ScanData) and any(c.frequency is None for c in classes):
            if not any(data.frequencies):
                raise UserError(
                    f"label set '{self.label_set.name}' has no class frequencies, and no scan is in memory to count "
                    "them: add 'content' to its YAML file or raise data.cache_gb"
                )
            weights = class_weights(self.loss_config.class_weights, data.frequencies, [c.ignored for c in classes])
            self.criterion.weights.copy_(weights)

    def image(self, channels: Tensor, mask: Tensor) -> Tensor:
        """Compute the network's input from channels (N, 5, H, W) in metres and mask (N, H, W).

        As in the node, points are shifted to the model's height, and the remission is raised to its power before the
        channels are normalised.
        """
        exponent = self.normalization.remission_exponent
        if exponent != 1.0:
            channels = torch.cat([channels[:, :4], channels[:, 4:].clamp_min(0.0) ** exponent], 1)
        if self.sensor_height_m is not None and self.recorded_height_m not in (None, self.sensor_height_m):
            _, x, y, z, remission = channels.unbind(1)
            z = z + (self.recorded_height_m - self.sensor_height_m)
            channels = torch.stack([(x * x + y * y + z * z).sqrt(), x, y, z, remission], 1)
        means = channels.new_tensor(self.normalization.means).view(5, 1, 1)
        stds = channels.new_tensor(self.normalization.stds).view(5, 1, 1)
        return (channels - means) / stds * mask.unsqueeze(1)

    def forward(self, channels: Tensor, mask: Tensor) -> list[Tensor]:
        """Compute five maps of logits, full width first, from channels (N, 5, H, W) in metres and mask (N, H, W)."""
        image = self.image(channels, mask)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        logits: list[Tensor] = self.network(image)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of one batch."""
        # dropout depends on the step alone, so that a resumed run continues exactly as an uninterrupted one
        torch.manual_seed(hash((self.seed, self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank)))
        whole = batch.channels.shape[3] == self.projection.width
        set_azimuth_padding(self.network, self.network_config.circular and whole)
        loss: Tensor = self.criterion(self(batch.channels, batch.mask), batch.labels.long())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_validation_start(self) -> None:
        """Use the padding of whole turns."""
        set_azimuth_padding(self.network, self.network_config.circular)

    def validation_step(self, batch: ValidationScan, batch_idx: int) -> None:
        """Count every point of one scan; a point gets the label of its pixel."""
        logits = self(batch.channels, batch.mask)[0]
        labels = batch.labels.long()
        total, weight = cross_entropy_sums(logits, labels, self.criterion.weights)
        self.validation_loss.update(total / weight.clamp_min(1e-12), weight)  # as the release: full-width head only
        predicted = logits.argmax(1).flatten()[batch.pixel]
        self.confusion.update(predicted, batch.point_labels.long())

    def on_validation_epoch_end(self) -> None:
        """Compute and log the metrics of all processes, except in the sanity check before the first step."""
        counts = self.confusion.compute().T.cpu().numpy()  # torchmetrics has the truth as rows
        matrix = ConfusionMatrix(self.label_set, counts)
        scores, support = matrix.scores(strict=True), matrix.support
        metrics = {
            BEST_METRIC: scores.miou_present,
            "val/miou_all": matrix.scores().miou,
            "val/accuracy": scores.accuracy,
            "val/loss": float(self.validation_loss.compute()),
        }
        metrics |= {
            f"iou/{self.label_set.names[c]}": float(scores.iou[c]) for c in matrix.labels.evaluated if support[c]
        }
        self.confusion.reset()
        self.validation_loss.reset()
        if self.trainer.sanity_checking:
            return
        self.scores, self._scored_step = metrics, self.global_step
        self.log_dict({k: torch.tensor(v, dtype=torch.float32) for k, v in self.scores.items()}, sync_dist=False)

    def configure_optimizers(self) -> Any:
        """Make the optimiser and its schedule by step."""
        optimizer = build_optimizer(self.network, self.optimizer_config)
        schedule = build_schedule(optimizer, self.optimizer_config, *self._planned_steps())
        if schedule is None:
            return optimizer
        interval: Literal["step"] = "step"
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    def _planned_steps(self) -> tuple[int, float]:
        """Count the optimiser steps per epoch and of the whole run.

        The trainer's own estimate would create the loader before the trainer knows that it resumes.
        """
        trainer = self.trainer
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ScanData)
        batches, limit = data.batches_per_epoch(), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        per_epoch = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
        bounds = [per_epoch * epochs for epochs in [trainer.max_epochs] if epochs is not None and epochs >= 0]
        bounds += [trainer.max_steps] if trainer.max_steps >= 0 else []
        return per_epoch, min(bounds, default=math.inf)

    def _batches(self) -> dict[str, int]:
        """Size and number of batches, from which a resumed run finds its place in the data and in the schedule."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ScanData)
        return {
            "crops": data.batch_size * self.trainer.world_size,
            "per_epoch": data.batches_per_epoch(),
            "accumulated": self.trainer.accumulate_grad_batches,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description of the model to the checkpoint, in plain JSON types."""
        data = getattr(self.trainer, "datamodule", None)
        steps = self._planned_steps()[1]
        scores = self.scores if self._scored_step == self.global_step else {}  # never those of other weights
        description = {
            "name": self.model_name,
            "network": self.network_config.to_dict(),
            "labels": self.label_set.to_dict(),
            "projection": self.projection.to_dict(),
            "normalization": self.normalization.to_dict(),
            "knn": self.knn.to_dict(),
            "sensor_height_m": self.sensor_height_m,
            "training": {
                "data": data.provenance() if isinstance(data, ScanData) else None,
                "augmentation": dataclasses.asdict(data.augmentation) if isinstance(data, ScanData) else None,
                "loss": dataclasses.asdict(self.loss_config),
                "optimizer": dataclasses.asdict(self.optimizer_config),
                "start_from": None if self.start_from is None else self.start_from.rstrip("/").rsplit("/", 1)[-1],
                "batches": self._batches(),
                "steps": self.global_step,
                "planned_steps": steps if math.isfinite(steps) else None,
                "metrics": {name: round(value, 6) for name, value in scores.items()},
            },
        }
        checkpoint[KEY] = json.loads(json.dumps(description))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint to resume has the same network, projection, labels, batches and plan.

        Raises:
            UserError: Something differs; the message names it.
        """
        stored = checkpoint.get(KEY)
        if stored is None:
            raise UserError("the checkpoint to resume was not made by `sqsegv3 train`")
        # through the classes, so that a setting newer than the checkpoint gets its default
        kinds: tuple[tuple[str, Any, Any], ...] = (
            ("network", NetworkConfig, self.network_config),
            ("projection", ProjectionConfig, self.projection),
            ("labels", LabelSet, self.label_set),
        )
        for key, kind, expected in kinds:
            found, own = kind.from_dict(stored[key]).to_dict(), expected.to_dict()
            if found != own:
                different = sorted(k for k in own if found[k] != own[k])
                raise UserError(
                    f"the checkpoint to resume has another {key}: {', '.join(different)} differ; resume with the "
                    "configuration that it was trained with, or start a new run with model.start_from"
                )
        batches = self._batches()
        before = stored["training"].get("batches", batches)
        if before != batches:
            raise UserError(
                f"the run to resume had batches of {_describe_batches(before)}; now they would be of "
                f"{_describe_batches(batches, self.trainer.world_size)}. Resume with the same data, and choose "
                "data.batch_size so that the processes together have as many crops, or start a new run with "
                "model.start_from"
            )
        planned, now = stored["training"].get("planned_steps"), self._planned_steps()[1]
        if self.optimizer_config.schedule == "one-cycle" and planned not in (None, now):
            raise UserError(
                f"the run to resume was planned for {planned:g} steps, now there would be {now:g}, but one-cycle "
                "cannot be extended: resume with the same number of epochs, crops and batch size, or start a new "
                "run with model.start_from"
            )
        self.scores = dict(stored["training"]["metrics"])


def _describe_batches(batches: dict[str, int], processes: int | None = None) -> str:
    """Such as '16 crops on 4 processes, 1195 an epoch, 1 a step'."""
    on = "" if processes is None else " on 1 process" if processes == 1 else f" on {processes} processes"
    return f"{batches['crops']} crops{on}, {batches['per_epoch']} an epoch, {batches['accumulated']} a step"
