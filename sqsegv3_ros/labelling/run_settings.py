# SPDX-License-Identifier: Apache-2.0
"""Settings of a labelling run: resolved once by the driver and followed by every worker."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.labelling.plan import BagOptions

if TYPE_CHECKING:
    from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
    from sqsegv3_ros.pointcloud2 import CloudSettings

FAIL, SKIP_CLOUD, QUARANTINE = "fail", "skip-cloud", "quarantine"
ON_ERROR = (FAIL, SKIP_CLOUD, QUARANTINE)
_RUNTIME = ("backend", "device", "precision", "threads")


@dataclass(frozen=True)
class RunSettings:
    """Everything that determines the labels of a run.

    Attributes:
        parameters: Values of the node's parameters, those of the model only if they are set; model digest, backend,
            device, precision and threads are resolved.
        changed: Values of the parameters that are not the default or the model's own.
        model_name: What the model calls itself.
        bags: Which clouds of bags to label and how to write them.
        scans: How the fourth value of a .bin scan becomes the remission.
        on_error: One of `ON_ERROR`.
        versions: Versions of the packages that compute the labels.
    """

    parameters: Mapping[str, Any]
    changed: Mapping[str, Any]
    model_name: str
    bags: BagOptions
    scans: CloudSettings
    on_error: str
    versions: Mapping[str, str]

    def identity(self) -> dict[str, Any]:
        """What must be equal in all of an archive, as plain JSON types."""
        return {
            "model": {"name": self.model_name, "sha256": self.parameters["model_sha256"]},
            "runtime": {name: self.parameters[name] for name in _RUNTIME},
            "parameters": dict(self.changed),
            "bags": asdict(self.bags),
            "scans": {
                "intensity_fields": list(self.scans.intensity_fields),
                "intensity_scale": self.scans.intensity_scale,
                "intensity_exponent": self.scans.intensity_exponent,
            },
            "versions": dict(self.versions),
        }

    def runtime(self) -> str:
        """Backend, device, precision and threads, human-readable."""
        threads = self.parameters["threads"]
        on_cpu = self.parameters["device"] == "cpu"
        suffix = f", {threads} thread{'s' * (threads > 1)}" if on_cpu else ""
        return f"{self.parameters['backend']} on {self.parameters['device']}, {self.parameters['precision']}{suffix}"

    def make_segmenter(self, model: Path) -> CloudSegmenter:
        """Load a copy of the model file and make it ready exactly as resolved.

        Raises:
            UserError: This machine cannot meet the settings: another model, missing instructions, other packages.
        """
        found = installed_versions(self.parameters["backend"])
        for package, expected in self.versions.items():
            if found[package] != expected:
                raise UserError(f"{package} {found[package]} is installed, the driver has {expected}")
        from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter

        return CloudSegmenter.from_parameters({**self.parameters, "model": str(model)}, warm_up=False)


def resolve(
    parameters: Mapping[str, Any], bags: BagOptions, scans: CloudSettings, on_error: str
) -> tuple[RunSettings, str]:
    """Resolve the settings of a run on this machine.

    Args:
        parameters: Values of the node's parameters, `DEFAULTS` included.
        bags: See `RunSettings`, also for scans and on_error.
        scans: How the fourth value of a .bin scan becomes the remission.
        on_error: One of `ON_ERROR`.

    Returns:
        The settings, and what would make the run faster ('' for nothing).

    Raises:
        UserError: The model cannot be used, or this machine cannot do what the settings ask for.
    """
    from sqsegv3_ros.inference.backends import resolve_runtime

    runtime = resolve_runtime(
        parameters["backend"],
        parameters["device"],
        parameters["precision"],
        parameters["threads"] or None,
        cuda_graph=parameters["cuda_graph"],
    )
    resolved = {"backend": runtime.backend, "device": str(runtime.device), "precision": runtime.precision}
    return _settings({**parameters, **resolved, "threads": runtime.threads}, bags, scans, on_error), runtime.hint


def resolve_for_gpus(
    parameters: Mapping[str, Any], bags: BagOptions, scans: CloudSettings, on_error: str
) -> RunSettings:
    """Resolve the settings of a run whose workers have GPUs, which the driver's machine need not have.

    Raises:
        UserError: The model cannot be used, or the settings ask for a CPU.
    """
    if parameters["device"] not in ("auto", "cuda") or parameters["backend"] == "openvino":
        raise UserError("--gpus-per-actor runs torch on CUDA; leave --device and --backend to 'auto'")
    precision = "fp16" if parameters["precision"] == "auto" else parameters["precision"]
    resolved = {"backend": "torch", "device": "cuda", "precision": precision}
    return _settings({**parameters, **resolved}, bags, scans, on_error)


def _settings(parameters: Mapping[str, Any], bags: BagOptions, scans: CloudSettings, on_error: str) -> RunSettings:
    from sqsegv3_ros.inference.model_file import check_sha256, find_model, read_info
    from sqsegv3_ros.inference.settings import DEFAULTS, Settings

    path = find_model(parameters["model"])
    info = read_info(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    check_sha256(path, sha256, parameters["model_sha256"])
    values = {**parameters, "model": str(path), "model_sha256": sha256}
    found, own = (Settings(dict(given)).for_model(info).values for given in (values, DEFAULTS))
    resolved = {"model", "model_sha256", *_RUNTIME}
    changed = {name: value for name, value in found.items() if name not in resolved and value != own.get(name)}
    return RunSettings(values, changed, info.name, bags, scans, on_error, installed_versions(values["backend"]))


def installed_versions(backend: str) -> dict[str, str]:
    """Versions of what computes the labels, without the build (+cpu); 'source' for a package that is not installed."""
    packages = ["sqsegv3_ros", "torch", *(["openvino"] if backend == "openvino" else [])]
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "source"
