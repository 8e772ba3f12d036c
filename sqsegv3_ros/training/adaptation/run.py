# SPDX-License-Identifier: Apache-2.0
"""Adaptation of a model to a recording without labels: what `sqsegv3 adapt` does, in stages that resume."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, SEMANTIC_KITTI_MULTISCAN
from sqsegv3_ros.data.semantic_kitti import find_scans, read_scan
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.files import progress, write_atomically
from sqsegv3_ros.inference.backends import usable_cores
from sqsegv3_ros.inference.model_file import ModelInfo, find_model, read_info
from sqsegv3_ros.inference.range_image import Normalization
from sqsegv3_ros.inference.settings import DEFAULTS, Settings
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.export import export_model
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.simulation.measured_sensor import measure_sensor
from sqsegv3_ros.simulation.sensors import sensor_named
from sqsegv3_ros.training.adaptation.checks import require_sound
from sqsegv3_ros.training.adaptation.pseudo_labels import ScanLabels, label_scan
from sqsegv3_ros.training.adaptation.recipe import (
    Plan,
    Trained,
    mixed_precision,
    plan_dict,
    plan_run,
    write_settings,
)
from sqsegv3_ros.training.adaptation.recording import CopiedScans, Recording, copy_scans
from sqsegv3_ros.training.adaptation.source import sensor_from_dict, sensor_to_dict, simulate_source
from sqsegv3_ros.training.adaptation.teacher import (
    START_NAME,
    agreement,
    load_labels,
    read_rounds,
    save_labels,
    statistics,
)
from sqsegv3_ros.training.adaptation.workspace import (
    DRAFT_SUFFIX,
    FACTS_NAME,
    PLAN_NAME,
    RECORDING,
    RUN,
    SETTINGS_NAME,
    SIMULATED,
    delete,
    locked,
)
from sqsegv3_ros.training.callbacks import LAST_NAME
from sqsegv3_ros.training.checkpoint import read_checkpoint, read_trained
from sqsegv3_ros.training.module import SegmentationModule
from sqsegv3_ros.training.run import fit

END_NAME = "end.npz"
HEIGHT_TOLERANCE_M = 0.35  # as the input checks: the ground of streets rarely deviates more
START_SHARE = 1 / 3
"""Of the start's weights in the result: their mean labels other places better than the adapted weights alone.

Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022.
"""


@dataclass(frozen=True)
class AdaptationSettings:
    """What determines an adaptation, beside the recording.

    Attributes:
        model: Model file or name of a model that ships.
        parameters: Values of the node's parameters for the sensor.
        sensor: Name of the simulated sensor; None to measure it in the recording.
        minutes: Time to spend.
        remission_exponent: Power to which the new model raises the remission; None for that of the start.
        seed: Seed of simulation and training.
    """

    model: str
    parameters: Mapping[str, Any]
    sensor: str | None
    minutes: float
    remission_exponent: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What an adaptation found.

    Attributes:
        network: The new network.
        info: Its description.
        before: Statistics of the recording's labels before.
        after: Those after, and the agreement of both.
        rounds: Record of every round.
        start: Labels of the recording's scans before.
        end: Labels after.
        recorded_height_m: Height of the sensor that the new model must be told (`extrinsics.height_m`); None if it is
            that of the model.
    """

    network: SqueezeSegV3
    info: ModelInfo
    before: dict[str, Any]
    after: dict[str, Any]
    rounds: list[dict[str, Any]]
    start: list[ScanLabels]
    end: list[ScanLabels]
    recorded_height_m: float | None


class Adaptation:
    """An adaptation with its workspace, a folder in which an interrupted one continues.

    Args:
        recording: The recording.
        settings: Settings.
        workspace: Folder for the copy of the scans, the simulated ones and the run.

    Raises:
        UserError: The model cannot be adapted.
    """

    def __init__(self, recording: Recording, settings: AdaptationSettings, workspace: Path) -> None:
        self.recording, self.settings, self.workspace = recording, settings, workspace
        self._last = self.run_folder / f"{LAST_NAME}.ckpt"
        self.model = find_model(settings.model)
        self.start_info = read_info(self.model)
        self.model_sha256 = hashlib.sha256(self.model.read_bytes()).hexdigest()
        self._require_adaptable()

    @contextmanager
    def opened(self, *, fresh: bool) -> Iterator[None]:
        """Lock the workspace while the block runs.

        Args:
            fresh: Delete an earlier adaptation in it.

        Raises:
            UserError: The workspace is in use or not of an adaptation, or has one with other settings.
        """
        with locked(self.workspace, fresh=fresh):
            facts, plan = self._read(FACTS_NAME), self._read(PLAN_NAME)
            if facts is not None:
                self._require_own(facts["settings"], self._identity())
            if plan is not None:
                self._require_own(plan, {"minutes": self.settings.minutes})
            yield

    @property
    def scans(self) -> Path:
        """SemanticKITTI data set with the chosen scans of the recording."""
        return self.workspace / RECORDING

    @property
    def simulated(self) -> Path:
        """SemanticKITTI data set with the simulated scans."""
        return self.workspace / SIMULATED

    @property
    def run_folder(self) -> Path:
        """Folder of the training run."""
        return self.workspace / RUN

    @property
    def remission_exponent(self) -> float:
        """Power to which the new model raises the remission."""
        return self.settings.remission_exponent or self.start_info.normalization.remission_exponent

    def run(self) -> Outcome:
        """Copy, simulate, train and compare, in an `opened` block.

        Returns:
            The result, not yet written.

        Raises:
            UserError: The recording cannot be used, or the time is too short.
            OperationError: The result is worse than the start, as far as can be seen without labels.
            KeyboardInterrupt: Ctrl-C or SIGTERM stopped it.
        """
        began = time.monotonic()
        facts, plan = self._copy(), self._known_plan()
        if plan is None or not self._is_trained(plan):
            plan = self._train(facts, plan, began)
        return self._compare(facts, plan)

    def write(self, outcome: Outcome, output: Path) -> None:
        """Write the model file of a result."""
        half = self.start_info.weights_dtype == "float16"
        export_model(outcome.network, output, info=outcome.info, half=half)

    def clear(self) -> None:
        """Delete the copies of the scans; the record of the run stays."""
        delete(self.workspace, RECORDING, SIMULATED)

    def node_settings(self) -> Settings:
        """Values of the node's parameters, with the model's own for those that are not set."""
        return Settings({**DEFAULTS, **self.settings.parameters}).for_model(self.start_info)

    def _require_adaptable(self) -> None:
        labels = self.start_info.labels
        if labels not in (SEMANTIC_KITTI, SEMANTIC_KITTI_MULTISCAN):
            raise UserError(
                f"model {self.model} has the label set '{labels.name}'; expected the classes of SemanticKITTI, which "
                "simulated scans have"
            )
        projection = self.node_settings().projection(self.start_info)
        if projection.needs_rings:
            raise UserError(
                f"projection.rows is '{projection.rows}'; adapt needs 'elevation', because mixed and simulated clouds "
                "have no ring numbers"
            )

    def _identity(self) -> dict[str, Any]:
        """What must be equal for an adaptation to continue, in plain JSON types."""
        recording = self.recording
        identity = {
            "model": [self.start_info.name, self.model_sha256],
            "inputs": [job.input for job in recording.jobs],
            **{f"parameters.{name}": value for name, value in self.settings.parameters.items() if _of_the_image(name)},
            "clouds": repr((recording.bags, recording.bag_clouds, recording.file_clouds)),
            "sensor": self.settings.sensor,
            "remission_exponent": self.remission_exponent,
            "seed": self.settings.seed,
        }
        return dict(json.loads(json.dumps(identity)))

    def _require_own(self, found: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """Refuse a workspace with other settings."""
        dropped = [key for key in found if key.startswith("parameters.") and key not in own]
        different = ", ".join([*(key for key in own if found.get(key) != own[key]), *dropped])
        if different:
            raise UserError(
                f"{self.workspace} holds an adaptation with different settings ({different}): choose another "
                "--output, or start anew with --force"
            )

    def _copy(self) -> dict[str, Any]:
        """Copy the scans, again if they were cleared. Returns their number, the sensor and its height."""
        known = self._read(FACTS_NAME)
        if known is None or not self.scans.is_dir():
            draft = f"{RECORDING}{DRAFT_SUFFIX}"
            delete(self.workspace, RECORDING, draft)
            copied = copy_scans(self.recording, self.workspace / draft / "sequences" / "00")
            height, source = self._height(copied)
            name = self.settings.sensor
            sensor = measure_sensor(copied.clouds, height) if name is None else sensor_named(name)
            facts = {
                "settings": self._identity(),
                "scans": copied.scans,
                "read": copied.read,
                "standing": copied.standing,
                "unusable": copied.unusable,
                "height_m": height,
                "height": source,
                "sensor": None if name else sensor_to_dict(sensor),
                "sensor_name": sensor.name,
            }
            if known not in (None, facts):
                raise UserError(
                    f"the recording has changed since the adaptation in {self.workspace}: choose another --output, or "
                    "start anew with --force"
                )
            (self.workspace / draft).rename(self.scans)
            self._write(FACTS_NAME, facts)
            return facts
        return dict(known)

    def _height(self, copied: CopiedScans) -> tuple[float, str]:
        """Height of the sensor, and whether it is 'given', the model's ('model') or 'measured'."""
        given, of_model = self.settings.parameters.get("extrinsics.height_m"), self.start_info.sensor_height_m
        if given:
            return float(given), "given"
        measured = copied.height_m
        if of_model and (measured is None or abs(measured - of_model) <= HEIGHT_TOLERANCE_M):
            return float(of_model), "model"
        return (1.73, "model") if measured is None else (round(measured, 2), "measured")

    def _model_settings(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        info, settings = self.start_info, self.node_settings()
        values = {
            "name": f"{info.name}-adapted",
            "network": dict(info.architecture),
            "labels": info.labels.name,
            "projection": settings.projection(info).to_dict(),
            "normalization": self._normalization().to_dict(),
            "knn": settings.knn(info).to_dict(),
            "sensor_height_m": info.sensor_height_m,
            "recorded_height_m": _recorded_height(facts),
            "start_from": str(self.model.resolve()),
        }
        return dict(json.loads(json.dumps(values)))

    def _normalization(self) -> Normalization:
        """The normalisation of the adapted network."""
        return replace(self.start_info.normalization, remission_exponent=self.remission_exponent)

    def _train(self, facts: Mapping[str, Any], plan: Plan | None, began: float) -> Plan:
        """Simulate, plan if that is not done, and train or resume. Returns the plan."""
        sensor, height = sensor_from_dict(facts["sensor_name"], facts["sensor"]), facts["height_m"]
        print(
            f"{facts['scans']} scans of the recording; simulating a {sensor.name} sensor: {sensor.beams} beams, "
            f"{sensor.columns} columns, {height:.2f} m above the ground",
            flush=True,
        )
        seed = self.settings.seed
        exponent = self.remission_exponent / self.start_info.normalization.remission_exponent
        simulate_source(self.simulated, self.scans, sensor, height, exponent=exponent, seed=seed, jobs=usable_cores())
        model = self._model_settings(facts)
        trained = Trained(model, self.scans, self.simulated, exponent != 1.0, self.run_folder, seed)
        plan = plan or self._plan(trained, facts["scans"], began)
        options = write_settings(self.workspace / SETTINGS_NAME, trained, plan)
        if self._last.is_file():
            options += ["--run.resume", "true"]
        self._labels(START_NAME, self._start_module(_recorded_height(facts)))
        print(f"training: {plan.rounds} rounds of {plan.steps} steps", flush=True)
        if fit(options, resume="the same command without --force").last.stopped_at is not None:
            raise KeyboardInterrupt
        return plan

    def _known_plan(self) -> Plan | None:
        found = self._read(PLAN_NAME)
        return None if found is None else Plan(found["rounds"], found["steps"])

    def _plan(self, trained: Trained, scans: int, began: float) -> Plan:
        probe = write_settings(self.workspace / SETTINGS_NAME, trained, Plan(1, 10))
        plan = plan_run(probe, scans, 60.0 * self.settings.minutes, time.monotonic() - began)
        self._write(PLAN_NAME, {"minutes": self.settings.minutes, **plan_dict(plan)})
        return plan

    def _is_trained(self, plan: Plan) -> bool:
        """Whether the run has done all steps."""
        return self._last.is_file() and read_checkpoint(self._last)[0]["training"]["steps"] >= plan.rounds * plan.steps

    def _labels(self, name: str, module: SegmentationModule) -> list[ScanLabels]:
        """Labels of the recording's scans by a module, from their file if they have been found before."""
        path = self.run_folder / name
        if not path.is_file():
            files = find_scans(self.scans)
            with mixed_precision(module.device):
                labels = [label_scan(module, read_scan(file.path)) for file in progress(files, len(files), "scan")]
            path.parent.mkdir(parents=True, exist_ok=True)
            save_labels(path, labels)
        return load_labels(path)

    def _start_module(self, recorded_height_m: float | None) -> SegmentationModule:
        """The module that the adaptation starts from, with the parameters of the sensor."""
        info, weights = read_trained(self.model)
        settings = self.node_settings()
        info = replace(info, projection=settings.projection(info), knn=settings.knn(info))
        return _module(info, weights, recorded_height_m)

    def _adapted_module(self, recorded_height_m: float | None) -> SegmentationModule:
        """The module with the mean of the weights that the run ended and started with."""
        info, weights = read_trained(self._last)
        start = read_trained(self.model)[1]
        weights = {
            name: torch.lerp(value, start[name], START_SHARE) if value.is_floating_point() else value
            for name, value in weights.items()
        }
        return _module(info, weights, recorded_height_m)

    def _compare(self, facts: Mapping[str, Any], plan: Plan) -> Outcome:
        """Label the recording with the result and compare it with the start."""
        height, names = _recorded_height(facts), self.start_info.labels.names
        module = self._adapted_module(height)
        start, end = load_labels(self.run_folder / START_NAME), self._labels(END_NAME, module)
        before, after = statistics(start, names), {"start_agreement": agreement(start, end), **statistics(end, names)}
        require_sound(before, after, self.workspace)
        info, rounds = self._describe(facts, plan, after), read_rounds(self.run_folder)
        return Outcome(module.network.cpu(), info, before, after, rounds, start, end, height)

    def _describe(self, facts: Mapping[str, Any], plan: Plan, result: Mapping[str, Any]) -> ModelInfo:
        """Describe the new model: what it started from, on what terms, and whose recording it was adapted to."""
        start, settings = self.start_info, self.node_settings()
        names = [Path(path).resolve().name for path in self.recording.inputs]
        provenance = {
            "source": "adapted with `sqsegv3 adapt`",
            "licence": start.licence,
            "note": (
                f"adapted without labels to {facts['scans']} scans of the user's own recording, whose terms apply too; "
                f"started from {start.name}, whose licence it keeps"
            ),
            "adapted": time.strftime("%Y-%m-%d", time.gmtime()),
            "recording": names[:20] + (["..."] if len(names) > 20 else []),
            "sensor": {
                "simulated": facts["sensor_name"], "height_m": facts["height_m"], "height": facts["height"]
            },
            "training": {
                **plan_dict(plan), "scans": facts["scans"], "agreement_with_start": round(result["start_agreement"], 4)
            },
            "started_from": {
                "name": start.name,
                "sha256": self.model_sha256,
                "provenance": dict(start.provenance),
            },
        }  # fmt: skip
        return replace(
            start,
            name=f"{start.name}-adapted",
            projection=settings.projection(start),
            normalization=self._normalization(),
            knn=settings.knn(start),
            provenance=provenance,
        )

    def _read(self, name: str) -> Any:
        path = self.workspace / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _write(self, name: str, value: Any) -> None:
        write_atomically(self.workspace / name, (json.dumps(value, indent=2) + "\n").encode())


def _module(info: ModelInfo, weights: Mapping[str, Tensor], recorded_height_m: float | None) -> SegmentationModule:
    """The module of a described network, in eval mode, on the device that trains."""
    module = SegmentationModule(
        name=info.name,
        network=NetworkConfig.from_dict(info.architecture),
        labels=info.labels.name,
        projection=info.projection,
        normalization=info.normalization,
        knn=info.knn,
        sensor_height_m=info.sensor_height_m,
        recorded_height_m=recorded_height_m,
    )
    module.network.load_state_dict(weights)
    return module.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _of_the_image(parameter: str) -> bool:
    """Whether a parameter determines the images or how their labels are refined; others only concern the node."""
    return parameter.startswith(("projection.", "extrinsics.", "knn."))


def _recorded_height(facts: Mapping[str, Any]) -> float | None:
    return None if facts["height"] == "model" else float(facts["height_m"])
