# SPDX-License-Identifier: Apache-2.0
"""Lightning data module: labelled scans as batches of augmented range images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, SEMANTIC_KITTI_MULTISCAN, LabelSet
from sqsegv3_ros.data.partial_labels import ClassSet
from sqsegv3_ros.errors import UserError, require
from sqsegv3_ros.inference.range_image import ProjectionConfig, fill_gaps, project
from sqsegv3_ros.training import augment
from sqsegv3_ros.training.augment import Augmentation, Labels, Points
from sqsegv3_ros.training.crop import check_crop, choose_window
from sqsegv3_ros.training.loader import EpochSampler, ResumableLoader, outlive_signals
from sqsegv3_ros.training.objects import ObjectBank
from sqsegv3_ros.training.scans import Root, Scan, ScanStore, describe

SEMANTIC_KITTI_TRAIN = ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10")
SEMANTIC_KITTI_VAL = ("08",)
RARE = ("bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist")
GROUND = ("road", "parking", "sidewalk", "other-ground", "terrain")


class Batch(NamedTuple):
    """Range images with labels.

    Attributes:
        channels: (N, 5, H, W) float32: range, x, y, z in metres, remission; -1 in empty pixels.
        mask: (N, H, W) bool, pixels that the network sees.
        labels: (N, H, W) uint8, 0 in empty pixels; classes, then sets of classes.
    """

    channels: Tensor
    mask: Tensor
    labels: Tensor


class ValidationScan(NamedTuple):
    """A batch of one whole scan, with the pixels and labels of its points.

    Attributes:
        channels: (1, 5, H, W), as in `Batch`.
        mask: (1, H, W), as in `Batch`.
        labels: (1, H, W), as in `Batch`.
        pixel: (P,) int64, row * W + column of each usable point.
        point_labels: (P,) uint8, true label of each usable point.
    """

    channels: Tensor
    mask: Tensor
    labels: Tensor
    pixel: Tensor
    point_labels: Tensor


def load_label_set(name: str) -> LabelSet:
    """Load a label set.

    Args:
        name: 'semantic-kitti', 'semantic-kitti-all' (moving classes kept apart) or a YAML file in SemanticKITTI's form.

    Returns:
        The label set.

    Raises:
        UserError: Neither such a name nor a file.
    """
    for known in (SEMANTIC_KITTI, SEMANTIC_KITTI_MULTISCAN):
        if name == known.name:
            return known
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"model.labels '{name}' is neither {SEMANTIC_KITTI.name} nor {SEMANTIC_KITTI_MULTISCAN.name} nor a file"
        )
    return LabelSet.from_yaml(path)


class TrainingSet(Dataset[Batch]):
    """Augmented crops.

    Item i depends on the seed and i alone, so that any number of worker processes and a resumed run give the same data.

    Args:
        store: Training scans.
        projection: Projection into the network's image.
        augmentation: Augmentation of the points.
        crop_width: Columns of a crop; None for whole images.
        bank: Objects to paste; None for none.
        seed: Seed of all random choices.
    """

    def __init__(
        self,
        store: ScanStore,
        projection: ProjectionConfig,
        augmentation: Augmentation,
        *,
        crop_width: int | None,
        bank: ObjectBank | None,
        seed: int,
    ):
        self.store = store
        self.projection = projection
        self.augmentation = augmentation
        self.crop_width = crop_width
        self.bank = bank
        self.seed = seed
        weights = np.array(store.weights)
        self._cumulative_share = np.cumsum(weights / weights.sum())

    def __getitem__(self, item: int) -> Batch:
        """Make one crop.

        Args:
            item: Number of the crop since the start of training.

        Returns:
            One image, without the batch dimension.
        """
        rng = np.random.default_rng((self.seed, item))
        config = self.augmentation
        window = choose_window(self.projection.width, self.crop_width, rng)
        points, labels = self._transformed(self._next_scan(item, rng), rng)
        points, labels = augment.mix_scans(
            points, labels, lambda: self._transformed(self._random_scan(rng), rng), config, self.projection, rng
        )
        count = config.paste_objects.draw(rng)
        if count is not None and self.bank is not None:
            points, labels = self.bank.paste(points, labels, round(count), rng, window.sector)
        points, labels = window.crop_points(points, labels)
        points, labels = augment.perturb_points(points, labels, config, self.projection, rng)
        image = project(torch.from_numpy(points), augment.perturb_field_of_view(self.projection, config, rng))
        channels, mask, index = window.crop_image(fill_gaps(image, self.projection.fill_rows))
        return Batch(channels, mask, _label_image(labels, index))

    def _transformed(self, scan: Scan, rng: np.random.Generator) -> tuple[Points, Labels]:
        return augment.transform_scene(scan.points, scan.labels, self.augmentation, rng)

    def _next_scan(self, item: int, rng: np.random.Generator) -> Scan:
        """Read a scan so that, with one root, every scan is used once before one is used twice."""
        root = self._random_root(rng)
        indices = self.store.indices_of_root[root]
        turn, position = divmod(item, len(indices))
        order = np.random.default_rng((self.seed, root, turn)).permutation(len(indices))
        return self.store.read_any(indices[order[position]], rng)

    def _random_scan(self, rng: np.random.Generator) -> Scan:
        indices = self.store.indices_of_root[self._random_root(rng)]
        return self.store.read_any(indices[rng.integers(len(indices))], rng)

    def _random_root(self, rng: np.random.Generator) -> int:
        root = int(np.searchsorted(self._cumulative_share, rng.random(), side="right"))
        return min(root, len(self.store.indices_of_root) - 1)


class ValidationSet(Dataset[ValidationScan]):
    """Whole scans without augmentation; one whose file went bad and may be skipped has no points."""

    def __init__(self, store: ScanStore, projection: ProjectionConfig):
        self.store = store
        self.projection = projection

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> ValidationScan:
        scan = self.store.read(index)
        points = scan.points if scan else np.zeros((0, 4), np.float32)
        labels = scan.labels if scan else np.zeros(0, np.uint8)
        image = fill_gaps(project(torch.from_numpy(points), self.projection), self.projection.fill_rows)
        label_image = _label_image(labels, image.index)
        truth = torch.from_numpy(labels)[image.usable]
        return ValidationScan(
            image.channels[None], image.mask[None], label_image[None], image.pixel[image.usable], truth
        )


@dataclass(eq=False)
class ScanData(LightningDataModule):
    """Training and validation scans.

    Args:
        root: SemanticKITTI data set (sequences/NN/{velodyne,labels}), or a bag of labelled clouds as sequence 00.
        train: Sequences of `root` to train on.
        val: Sequences to validate on, of `val_root`, or of `root` if that is not given.
        val_root: Root of the validation sequences.
        extra: Further roots to train on, each with its sequences and weight.
        root_weight: How often scans of `root` are drawn, relative to the extra roots; its number of scans if not given.
        invalid: 'raise' an error for a file that cannot be used, or 'skip' it.
        batch_size: Crops per step and process.
        samples_per_epoch: Crops per epoch, over all processes; the number of scans if not given.
        crop_width: Columns of a crop; whole images if not given.
        workers: Processes that prepare batches for each training process; 0 prepares them in the training process.
        cache_gb: Memory for scans in GiB, per training process, shared with its workers; scans that do not fit are read
            every time.
        paste_classes: Classes of which augmentation pastes objects; needs instance ids.
        augmentation: Augmentation of training scans.
        projection: Taken from the model's settings.
        labels: Taken from the model's settings.
        seed: Taken from seed_everything.
    """

    root: str | None = None
    train: Sequence[str] = SEMANTIC_KITTI_TRAIN
    val: Sequence[str] = SEMANTIC_KITTI_VAL
    val_root: str | None = None
    extra: Sequence[Root] = ()
    root_weight: float | None = None
    invalid: str = "raise"
    batch_size: int = 2
    samples_per_epoch: int | None = None
    crop_width: int | None = None
    workers: int = 0
    cache_gb: float = 4.0
    paste_classes: Sequence[str] = RARE
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 (frozen)
    projection: ProjectionConfig = ProjectionConfig()  # noqa: RUF009 (frozen)
    labels: str = "semantic-kitti"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__init__()
        check_crop(self.crop_width, self.projection.width)
        require(self.batch_size >= 1, "data: batch_size", "1 or more", self.batch_size)
        require(self.workers >= 0, "data: workers", "0 or more", self.workers)
        if self.root is None and not self.extra:
            raise UserError("data: no training data given; set --data.root to a folder with sequences/NN/velodyne")
        if self.val_root is None and self.root is None:
            raise UserError("data: no validation data given; set --data.val_root")
        self.label_set = load_label_set(self.labels)
        own = [] if self.root is None else [Root(self.root, list(self.train), self.root_weight)]
        self.train_roots = [*own, *self.extra]
        self.held_out = Root(self.val_root or self.root or "", list(self.val))
        self._check_split()
        self.train_store: ScanStore | None = None
        self.val_store: ScanStore | None = None

    def setup(self, stage: str = "fit") -> None:
        """Find and check all scans and print a summary.

        Raises:
            UserError: Data are missing or cannot be used.
        """
        if self.train_store is not None:
            return
        settings: dict[str, Any] = {"labels": self.label_set, "invalid": self.invalid}
        self.train_store = ScanStore(self.train_roots, **settings, cache_bytes=self.cache_gb * 2**30)
        remaining = self.cache_gb * 2**30 - sum(scan.nbytes for scan in self.train_store.cached())
        self.val_store = ScanStore([self.held_out], **settings, cache_bytes=remaining)
        rank_zero_info(describe(self.train_store, "training"))
        rank_zero_info(describe(self.val_store, "validation"))

    @property
    def frequencies(self) -> list[float]:
        """Share of each class in the training points, 0..1, counted in the scans in memory."""
        assert self.train_store is not None
        points = self.train_store.points[: len(self.label_set)]
        return [float(p) for p in points / max(int(points.sum()), 1)]

    @property
    def sets(self) -> tuple[ClassSet, ...]:
        """Sets of classes that partial labels name; the label of set i is the number of classes + i."""
        return () if self.train_store is None else self.train_store.sets

    def provenance(self) -> dict[str, Any]:
        """Describe the data in plain JSON types, with folder names instead of paths."""
        training = [_describe_root(root) | {"weight": root.weight} for root in self.train_roots]
        return {
            "training": training,
            "training_scans": len(self.train_store or ()),
            "validation": _describe_root(self.held_out),
            "validation_scans": len(self.val_store or ()),
        }

    def train_dataloader(self) -> ResumableLoader:
        """Make the loader of training crops, which yields `Batch`."""
        assert self.train_store is not None
        bank = self._object_bank(self.train_store) if self.augmentation.paste_objects.probability else None
        settings: dict[str, Any] = {"crop_width": self.crop_width, "bank": bank, "seed": self.seed}
        return ResumableLoader(
            TrainingSet(self.train_store, self.projection, self.augmentation, **settings),
            batch_size=self.batch_size,
            sampler=self._sampler(),
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=outlive_signals,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_stack,
        )

    def batches_per_epoch(self) -> int:
        """Batches of each process in an epoch."""
        return len(self._sampler()) // self.batch_size

    def _sampler(self) -> EpochSampler:
        assert self.train_store is not None
        rank, world_size = self._rank_and_world_size()
        per_epoch = self.samples_per_epoch or len(self.train_store)
        if per_epoch < self.batch_size * world_size:
            raise UserError(
                f"data: {per_epoch} crops an epoch do not fill a batch of {self.batch_size} on {world_size} processes; "
                "set data.samples_per_epoch higher or data.batch_size lower"
            )
        return EpochSampler(per_epoch, rank, world_size)

    def val_dataloader(self) -> DataLoader[ValidationScan]:
        """Make the loader of whole validation scans, which yields `ValidationScan`."""
        assert self.val_store is not None
        rank, world_size = self._rank_and_world_size()
        if len(self.val_store) < world_size:  # the others would wait forever for a process without scans
            raise UserError(
                f"data: {len(self.val_store)} validation scans for {world_size} processes; expected at least one each: "
                "name more sequences with data.val or lower trainer.devices"
            )
        return DataLoader(
            ValidationSet(self.val_store, self.projection),
            batch_size=None,
            sampler=range(rank, len(self.val_store), world_size),
            pin_memory=torch.cuda.is_available(),
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _object_bank(self, store: ScanStore) -> ObjectBank:
        names = self.label_set.names
        classes = [names.index(n) for n in self.paste_classes if n in names]
        ground = [names.index(n) for n in GROUND if n in names]
        ground += [len(names) + i for i, members in enumerate(store.sets) if set(members) <= set(ground)]
        bank = ObjectBank(classes, ground)
        for scan in store.cached():
            bank.add(scan.points, scan.labels, scan.instances)
        counts = ", ".join(f"{names[c]} {len(objects)}" for c, objects in sorted(bank.objects.items()))
        rank_zero_info(f"objects to paste: {counts or 'none'}")
        return bank

    def _check_split(self) -> None:
        if not self.held_out.sequences:
            raise UserError("data: the validation split is empty; name its sequences with data.val")
        held_out = Path(self.held_out.path).expanduser().resolve()
        for root in self.train_roots:
            if root.sequences is not None and not root.sequences:
                raise UserError(f"data: the training split of {root.path} is empty; name its sequences with data.train")
            if Path(root.path).expanduser().resolve() != held_out:
                continue
            own = {s.zfill(2) for s in self.held_out.sequences}
            shared = own if root.sequences is None else own & {s.zfill(2) for s in root.sequences}
            if shared:
                raise UserError(
                    f"data: sequences {', '.join(sorted(shared))} of {root.path} are in training and validation; "
                    "hold sequences out whole, their scans are nearly alike"
                )


def _describe_root(root: Root) -> dict[str, Any]:
    return {"name": Path(root.path).expanduser().resolve().name, "sequences": root.sequences}


def _label_image(labels: Labels, index: Tensor) -> Tensor:
    """Labels (H, W) of the points that the pixels hold, 0 in empty pixels."""
    if not len(labels):
        return torch.zeros(index.shape, dtype=torch.uint8)
    return torch.from_numpy(labels)[index.clamp_min(0)].masked_fill_(index < 0, 0)


def _stack(items: list[Batch]) -> Batch:
    return Batch(*(torch.stack(column) for column in zip(*items, strict=True)))
