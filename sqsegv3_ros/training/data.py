"""Where the data lies and how it is varied goes in; batches of range images with labels come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, SEMANTIC_KITTI_MULTISCAN, LabelSet
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.range_image import ProjectionConfig, project
from sqsegv3_ros.training import augment
from sqsegv3_ros.training.augment import Augmentation, Labels, Points
from sqsegv3_ros.training.crop import check_crop, choose_window
from sqsegv3_ros.training.objects import ObjectBank
from sqsegv3_ros.training.scans import Root, Scan, ScanStore, describe

SEMANTIC_KITTI_TRAIN = ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10")
SEMANTIC_KITTI_VAL = ("08",)
RARE = ("bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist")
GROUND = ("road", "parking", "sidewalk", "other-ground", "terrain")


class Batch(NamedTuple):
    """channels: (N, 5, H, W) float32, -1 in empty pixels. mask: (N, H, W) bool. labels: (N, H, W) uint8, 0 if empty."""

    channels: Tensor
    mask: Tensor
    labels: Tensor


class ValidationScan(NamedTuple):
    """A batch of one whole scan, and the way back to its points.

    pixel: (P,) int64, the pixel of each usable point. point_labels: (P,) uint8, their true labels.
    """

    channels: Tensor
    mask: Tensor
    labels: Tensor
    pixel: Tensor
    point_labels: Tensor


def load_label_set(name: str) -> LabelSet:
    """'semantic-kitti', 'semantic-kitti-all' (moving classes apart) or a YAML file in SemanticKITTI's form."""
    for known in (SEMANTIC_KITTI, SEMANTIC_KITTI_MULTISCAN):
        if name == known.name:
            return known
    if not Path(name).expanduser().is_file():
        raise UserError(
            f"model.labels '{name}' is neither {SEMANTIC_KITTI.name} nor {SEMANTIC_KITTI_MULTISCAN.name} nor a file"
        )
    return LabelSet.from_yaml(Path(name).expanduser())


class TrainingSet(Dataset[Batch]):
    """Varied crops. Item i is a pure function of the seed and i, whichever process asks and however often."""

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
        self._root_share = np.cumsum(weights / weights.sum())

    def __getitem__(self, draw: int) -> Batch:
        """draw: the number of the item since training began."""
        rng = np.random.default_rng((self.seed, draw))
        config = self.augmentation
        window = choose_window(self.projection.width, self.crop_width, rng)
        points, labels = self._moved(self._scan_of(draw, rng), rng)
        points, labels = augment.mix_sectors(points, labels, lambda: self._moved(self._any_scan(rng), rng), config, rng)
        count = config.paste_objects.draw(rng)
        if count is not None and self.bank is not None:
            points, labels = self.bank.paste(points, labels, round(count), rng, window.sector)
        points, labels = window.points(points, labels)
        points, labels = augment.disturb_points(points, labels, config, self.projection, rng)
        image = project(torch.from_numpy(points), augment.vary_field_of_view(self.projection, config, rng))
        channels, mask, index = window.image(image)
        return Batch(channels, mask, _label_image(labels, index))

    def _moved(self, scan: Scan, rng: np.random.Generator) -> tuple[Points, Labels]:
        return augment.move_scene(scan.points, scan.labels, self.augmentation, rng)

    def _scan_of(self, draw: int, rng: np.random.Generator) -> Scan:
        """Every scan of a root comes once before one comes twice (where there is one root)."""
        root = int(np.searchsorted(self._root_share, rng.random(), side="right"))
        numbers = self.store.of_root[min(root, len(self.store.of_root) - 1)]
        turn, position = divmod(draw, len(numbers))
        order = np.random.default_rng((self.seed, root, turn)).permutation(len(numbers))
        return self._read(numbers[order[position]], rng)

    def _any_scan(self, rng: np.random.Generator) -> Scan:
        root = int(np.searchsorted(self._root_share, rng.random(), side="right"))
        numbers = self.store.of_root[min(root, len(self.store.of_root) - 1)]
        return self._read(numbers[rng.integers(len(numbers))], rng)

    def _read(self, number: int, rng: np.random.Generator) -> Scan:
        try:
            return self.store.read(number)
        except UserError:
            if self.store.invalid == "raise":
                raise
        # a file that went bad after the check: the run of days goes on with another one
        return self.store.read(int(rng.integers(len(self.store))))


class ValidationSet(Dataset[ValidationScan]):
    """Whole scans as they are."""

    def __init__(self, store: ScanStore, projection: ProjectionConfig):
        self.store = store
        self.projection = projection

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> ValidationScan:
        scan = self.store.read(index)
        image = project(torch.from_numpy(scan.points), self.projection)
        labels = _label_image(scan.labels, image.index)
        truth = torch.from_numpy(scan.labels)[image.usable]
        return ValidationScan(image.channels[None], image.mask[None], labels[None], image.pixel[image.usable], truth)


class DrawSampler(Sampler[int]):
    """The numbers of the items of an epoch that this process trains on; every `world`-th from `rank` on."""

    def __init__(self, per_epoch: int, rank: int = 0, world: int = 1):
        self.per_epoch = per_epoch - per_epoch % world
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration belongs to (Lightning calls it)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.per_epoch // self.world

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.per_epoch + self.rank
        draws = range(first, (self.epoch + 1) * self.per_epoch, self.world)
        skip, self.skip = self.skip, 0
        return iter(draws[skip:])


class ResumableLoader(DataLoader):
    """A loader that goes on in the middle of an epoch: its state is the number of batches handed out."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        assert isinstance(self.sampler, DrawSampler)
        assert self.batch_size is not None
        self._handed_out = self._resume_at % len(self)
        self._resume_at = 0
        self.sampler.skip = self._handed_out * self.batch_size
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    _handed_out = 0
    _resume_at = 0

    def state_dict(self) -> dict[str, int]:
        """What Lightning puts into a checkpoint."""
        return {"batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Where the next iteration begins."""
        self._resume_at = state["batches"]


class ScanData(LightningDataModule):
    """The training and validation scans.

    Args:
        root: SemanticKITTI root (sequences/NN/{velodyne,labels}), or a bag of labelled clouds, which has sequence 00.
        train: its sequences to train on.
        val: sequences to validate on, held out whole; of `val_root`, or of `root` where that is not given.
        val_root: root of the validation sequences.
        extra: further roots to train on, each with its sequences and weight (simulated scans, other recordings).
        root_weight: how often scans of `root` are drawn, relative to the extra roots; by number of scans if not given.
        invalid: 'raise' on a file that cannot be used, or 'skip' it with a count.
        batch_size: crops in a step, of each process.
        samples_per_epoch: crops in an epoch, over all processes; as many as there are scans if not given.
        crop_width: columns of a crop; whole images if not given.
        workers: processes that prepare training batches; 0 prepares them in the training process.
        cache_gb: memory for scans that are kept after the first reading.
        paste_classes: classes whose objects augmentation pastes, where the labels have instance ids.
        augmentation: how training scans are varied.
        projection, labels: taken from the model's settings.
        seed: of everything random about the data.
    """

    def __init__(
        self,
        root: str | None = None,
        train: Sequence[str] = SEMANTIC_KITTI_TRAIN,
        val: Sequence[str] = SEMANTIC_KITTI_VAL,
        val_root: str | None = None,
        extra: Sequence[Root] = (),
        root_weight: float | None = None,
        invalid: str = "raise",
        batch_size: int = 2,
        samples_per_epoch: int | None = None,
        crop_width: int | None = None,
        workers: int = 0,
        cache_gb: float = 4.0,
        paste_classes: Sequence[str] = RARE,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
        projection: ProjectionConfig = ProjectionConfig(),  # noqa: B008 (frozen)
        labels: str = "semantic-kitti",
        seed: int = 0,
    ):
        super().__init__()
        check_crop(crop_width, projection.width)
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value < least:
                raise UserError(f"data: {name} must be {least} or more, found {value}")
        if root is None and not extra:
            raise UserError("data: no training data given; set --data.root to a folder with sequences/NN/velodyne")
        if val_root is None and root is None:
            raise UserError("data: no validation data given; set --data.val_root")
        self.projection = projection
        self.label_set = load_label_set(labels)
        self.invalid = invalid
        self.batch_size = batch_size
        self.samples_per_epoch = samples_per_epoch
        self.crop_width = crop_width
        self.workers = workers
        self.cache_bytes = cache_gb * 2**30
        self.paste_classes = tuple(paste_classes)
        self.augmentation = augmentation
        self.seed = seed
        self.train_roots = [*([Root(root, list(train), root_weight)] if root is not None else []), *extra]
        self.val_root = Root(val_root or root or "", list(val))
        self._check_split()
        self.train_store: ScanStore | None = None
        self.val_store: ScanStore | None = None

    def setup(self, stage: str = "fit") -> None:
        """Check everything and say what was found. Raises UserError naming what is missing or cannot be used."""
        if self.train_store is not None:
            return
        settings: dict[str, Any] = {"labels": self.label_set, "invalid": self.invalid}
        self.train_store = ScanStore(self.train_roots, **settings, cache_bytes=self.cache_bytes)
        left = self.cache_bytes - sum(scan.nbytes for scan in self.train_store.cached())
        self.val_store = ScanStore([self.val_root], **settings, cache_bytes=left)
        rank_zero_info(describe(self.train_store.found, self.label_set, "training"))
        rank_zero_info(describe(self.val_store.found, self.label_set, "validation"))

    @property
    def frequencies(self) -> list[float]:
        """The share of the training points of each class, as far as scans are in memory."""
        assert self.train_store is not None
        points = self.train_store.found.points
        return [float(p) for p in points / max(int(points.sum()), 1)]

    def provenance(self) -> dict[str, Any]:
        """What the model is trained on, as plain JSON types; folders by their names only."""
        roots = [
            {"name": Path(r.path).expanduser().resolve().name, "sequences": r.sequences, "weight": r.weight}
            for r in self.train_roots
        ]
        train, val = self.train_store, self.val_store
        return {
            "training": roots,
            "training_scans": len(train) if train else 0,
            "validation": {
                "name": Path(self.val_root.path).expanduser().resolve().name, "sequences": self.val_root.sequences
            },
            "validation_scans": len(val) if val else 0,
        }  # fmt: skip

    def train_dataloader(self) -> ResumableLoader:
        """Batches of crops: `Batch`."""
        assert self.train_store is not None
        bank = self._object_bank(self.train_store) if self.augmentation.paste_objects.probability else None
        return ResumableLoader(
            self._training_set(bank),
            batch_size=self.batch_size,
            sampler=self._sampler(),
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_stack,
        )

    def _training_set(self, bank: ObjectBank | None) -> TrainingSet:
        assert self.train_store is not None
        settings: dict[str, Any] = {"crop_width": self.crop_width, "bank": bank, "seed": self.seed}
        return TrainingSet(self.train_store, self.projection, self.augmentation, **settings)

    def batches_per_epoch(self) -> int:
        """Batches that each process gets in an epoch."""
        return len(self._sampler()) // self.batch_size

    def _sampler(self) -> DrawSampler:
        assert self.train_store is not None
        rank, world = self._place()
        per_epoch = self.samples_per_epoch or len(self.train_store)
        if per_epoch < self.batch_size * world:
            raise UserError(
                f"data: {per_epoch} crops an epoch do not fill a batch of {self.batch_size} on {world} processes; "
                "set data.samples_per_epoch higher or data.batch_size lower"
            )
        return DrawSampler(per_epoch, rank, world)

    def val_dataloader(self) -> DataLoader[ValidationScan]:
        """Whole scans, one by one: `ValidationScan`."""
        assert self.val_store is not None
        rank, world = self._place()
        return DataLoader(
            ValidationSet(self.val_store, self.projection),
            batch_size=None,
            sampler=range(rank, len(self.val_store), world),
            pin_memory=torch.cuda.is_available(),
        )

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _object_bank(self, store: ScanStore) -> ObjectBank:
        names = self.label_set.names
        classes = [names.index(n) for n in self.paste_classes if n in names]
        bank = ObjectBank(classes, [names.index(n) for n in GROUND if n in names])
        for scan in store.cached():
            bank.add(scan.points, scan.labels, scan.instances)
        found = ", ".join(f"{names[c]} {len(objects)}" for c, objects in sorted(bank.objects.items()))
        rank_zero_info(f"objects to paste: {found or 'none'}")
        return bank

    def _check_split(self) -> None:
        if not self.val_root.sequences:
            raise UserError("data: the validation split is empty; name its sequences with data.val")
        held_out = Path(self.val_root.path).expanduser().resolve()
        for root in self.train_roots:
            if root.sequences is not None and not root.sequences:
                raise UserError(f"data: the training split of {root.path} is empty; name its sequences with data.train")
            if Path(root.path).expanduser().resolve() != held_out:
                continue
            own = {s.zfill(2) for s in self.val_root.sequences}
            shared = own if root.sequences is None else own & {s.zfill(2) for s in root.sequences}
            if shared:
                raise UserError(
                    f"data: sequences {', '.join(sorted(shared))} of {root.path} are in training and validation; "
                    "hold sequences out whole, their scans are nearly alike"
                )


def _label_image(labels: Labels, index: Tensor) -> Tensor:
    """(H, W) labels of the winners of the pixels, 0 where there is none."""
    if not len(labels):
        return torch.zeros(index.shape, dtype=torch.uint8)
    return torch.from_numpy(labels)[index.clamp_min(0)].masked_fill_(index < 0, 0)


def _stack(items: list[Batch]) -> Batch:
    return Batch(*(torch.stack(column) for column in zip(*items, strict=True)))
