# SPDX-License-Identifier: Apache-2.0
"""Specifications and values of all settings of the node, and ROS 2 parameter files; no ROS in it.

`ros/parameters.py` declares the specifications on the node and makes one validated `Settings` from the values.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqsegv3_ros.errors import UserError, missing_package
from sqsegv3_ros.pointcloud2 import OUTPUTS, CloudSettings

if TYPE_CHECKING:
    from sqsegv3_ros.inference.knn import KnnConfig
    from sqsegv3_ros.inference.model_file import ModelInfo
    from sqsegv3_ros.inference.range_image import ProjectionConfig

NODE_NAME = "sqsegv3"
NAN = math.nan  # as the model says, for parameters of which every number is a value


@dataclass(frozen=True)
class Spec:
    """Specification of one parameter.

    Attributes:
        name: Full name; dots separate groups.
        default: Its type is the parameter's type.
        description: One sentence for `ros2 param describe`.
        low: Smallest value, included.
        high: Largest value, included.
        rule: A constraint in words, if a range cannot express it.
        at_configure: Read when the node is configured and fixed while it holds a model; all others take effect with
            the next cloud.
    """

    name: str
    default: bool | int | float | str | list[str]
    description: str
    low: float | None = None
    high: float | None = None
    rule: str = ""
    at_configure: bool = False


SPECS: tuple[Spec, ...] = (
    Spec(
        "model",
        "",
        "Path of the model file, or the name of a shipped one.",
        rule="empty: the shipped model called default",
        at_configure=True,
    ),
    Spec(
        "model_sha256",
        "",
        "sha256 that the model file must have.",
        rule="64 hexadecimal digits, or empty: not checked",
        at_configure=True,
    ),
    Spec(
        "backend",
        "auto",
        "What runs the network. auto: torch on a GPU, else OpenVINO if it is installed, else torch.",
        rule="auto, torch or openvino",
        at_configure=True,
    ),
    Spec("device", "auto", "Where the model runs.", rule="auto, cuda, cuda:N or cpu", at_configure=True),
    Spec(
        "precision",
        "auto",
        "What the network computes in. auto: fp16 on a GPU, bf16 with OpenVINO on a CPU that has it, else fp32.",
        rule="auto, fp32, fp16 or bf16",
        at_configure=True,
    ),
    Spec("threads", 0, "CPU threads that share a scan; 0 = one per core.", 0, 1024, at_configure=True),
    Spec(
        "cuda_graph",
        False,
        "Replay the network's kernels on a CUDA device instead of launching each: quicker for small networks.",
        at_configure=True,
    ),
    Spec("autostart", True, "Configure and activate at start, without a lifecycle manager.", at_configure=True),
    Spec("knn.mode", "", "How neighbours vote on labels.", rule="off, safe, official, or empty: the model's own"),
    Spec("knn.k", 0, "Neighbours that vote; 0: the model's own.", 0, 225),
    Spec("knn.search", 0, "Side of the search window in pixels, odd; 0: the model's own.", 0, 15),
    Spec("knn.sigma", 0.0, "Sigma of the window's Gaussian in pixels; 0: the model's own.", 0.0, 100.0),
    Spec(
        "knn.cutoff_m", NAN, "Largest voting range difference in metres.", rule="NaN: the model's own; <= 0: no limit"
    ),
    Spec("projection.fov_up_deg", NAN, "Upper edge of the image, degrees.", rule="-90..90, or NaN: the model's own"),
    Spec("projection.fov_down_deg", NAN, "Lower edge of the image, degrees.", rule="-90..90, or NaN: the model's own"),
    Spec("projection.height", 0, "Rows of the image; 0: the model's own.", 0, 1024, at_configure=True),
    Spec(
        "projection.width", 0, "Columns of the image, a multiple of 8; 0: the model's own.", 0, 16384, at_configure=True
    ),
    Spec(
        "projection.rows",
        "",
        "What a point's row comes from.",
        rule="elevation, ring_from_bottom, ring_from_top, or empty: the model's own",
    ),
    Spec("projection.ring_count", 0, "Rings of the sensor; 0: as many as the image has rows.", 0, 1024),
    Spec("projection.fill_rows", 0, "Rows over which gaps between beams are filled; 0: the model's own.", 0, 1024),
    Spec(
        "projection.outside_fov",
        "",
        "Points above or below the image: into its edge rows, or unlabeled.",
        rule="clamp, drop, or empty: the model's own",
    ),
    Spec(
        "input_reliability",
        "auto",
        "Reliability of the input's subscription. auto: reliable if every publisher is, else best effort.",
        rule="auto, reliable or best_effort",
    ),
    Spec("intensity_field", "intensity", "Field that holds the intensity.", rule="empty: the cloud has none, use 0"),
    Spec(
        "intensity_scale",
        1.0,
        "Factor from the cloud's intensity, to the power below, to the model's remission.",
        1e-9,
        1e9,
    ),
    Spec("intensity_exponent", 1.0, "Remission = intensity_scale * intensity ** this; 0.5: root.", 0.01, 10.0),
    Spec("ring_field", "ring", "Field that holds the laser's number.", rule="empty: the cloud has none"),
    Spec("max_points", 10_000_000, "Clouds that declare more points are refused.", 1, 2**31 - 1),
    Spec("filtered.remove_classes", [""], "Names of the classes that ~/output/filtered leaves out."),
    Spec("publish.rgb", True, "Add the field rgb (class colours) to ~/output/points."),
    Spec("publish.confidence", True, "Add the field confidence to ~/output/points."),
    Spec("publish.label", True, "Add the field label to ~/output/points."),
    Spec("latency_budget_ms", 100.0, "Time from receipt to publication, above which diagnostics warn.", 0.1, 600000.0),
    Spec("late_error_after_s", 5.0, "Over budget for so long without a break is an error.", 0.0, 86400.0),
    Spec("stale_after_s", 1.0, "No cloud for so long is an error in diagnostics.", 0.01, 86400.0),
    Spec("mount.roll_deg", 0.0, "Roll of the sensor on the robot (REP 103), degrees.", -180.0, 180.0),
    Spec("mount.pitch_deg", 0.0, "Pitch of the sensor on the robot, positive: looking down, degrees.", -180.0, 180.0),
    Spec("mount.yaw_deg", 0.0, "Yaw of the sensor on the robot, degrees.", -180.0, 180.0),
    Spec("mount.height_m", 0.0, "Height of the sensor above the ground, metres; 0: as the model's.", 0.0, 100.0),
    Spec("base_frame", "", "Level frame on the ground: mount from TF.", rule="empty: mount.* holds", at_configure=True),
    Spec("sensor_frame", "velodyne", "The sensor's frame, for the mount from TF.", at_configure=True),
    Spec("tf_timeout_s", 5.0, "How long configuring waits for the mount from TF.", 0.0, 600.0, at_configure=True),
)
NAMES = frozenset(spec.name for spec in SPECS)
AT_CONFIGURE = frozenset(spec.name for spec in SPECS if spec.at_configure)
_BY_NAME = {spec.name: spec for spec in SPECS}
_BUILTIN_PARAMETERS = ("use_sim_time", "start_type_description_service")


@dataclass(frozen=True)
class Settings:
    """The values of all parameters, validated as far as possible without a model.

    Attributes:
        values: Value of every parameter by name.

    Raises:
        UserError: A value is not allowed.
    """

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.cloud_settings(rings_needed=False)
        _one_of(self.values, "backend", ("auto", "torch", "openvino"))
        _one_of(self.values, "precision", ("auto", "fp32", "fp16", "bf16"))
        _one_of(self.values, "input_reliability", ("auto", "reliable", "best_effort"))
        _one_of(self.values, "knn.mode", ("", "off", "safe", "official"))
        _one_of(self.values, "projection.rows", ("", "elevation", "ring_from_bottom", "ring_from_top"))
        _one_of(self.values, "projection.outside_fov", ("", "clamp", "drop"))
        digest = self.values["model_sha256"]
        if digest and (len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef")):
            raise UserError(f"model_sha256 must be 64 hexadecimal digits, found '{digest}'")
        if self.values["knn.search"] and self.values["knn.search"] % 2 == 0:
            raise UserError(f"knn.search must be odd, found {self.values['knn.search']}")
        if self.values["projection.width"] % 8:
            raise UserError(f"projection.width must be a multiple of 8, found {self.values['projection.width']}")
        for name in ("projection.fov_up_deg", "projection.fov_down_deg"):
            angle = self.values[name]
            if not math.isnan(angle) and not -90 <= angle <= 90:
                raise UserError(f"{name} must lie in -90..90 or be NaN, found {angle}")
        for spec in SPECS:
            value = self.values[spec.name]
            allowed = isinstance(spec.default, float) and math.isnan(spec.default)  # NaN is then "as the model says"
            if isinstance(value, float) and (math.isinf(value) or (math.isnan(value) and not allowed)):
                raise UserError(f"{spec.name} must be finite, found {value}")

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The fields that are added to the labelled cloud."""
        return tuple(name for name in OUTPUTS if self.values[f"publish.{name}"])

    @property
    def remove_classes(self) -> tuple[str, ...]:
        """The names of the classes that the filtered cloud leaves out."""
        return tuple(name for name in self.values["filtered.remove_classes"] if name)

    def cloud_settings(self, rings_needed: bool) -> CloudSettings:
        """How clouds are decoded. Raises UserError if the settings contradict each other."""
        return CloudSettings(
            intensity_field=self.values["intensity_field"],
            intensity_scale=self.values["intensity_scale"],
            intensity_exponent=self.values["intensity_exponent"],
            ring_field=self.values["ring_field"],
            ring_required=rings_needed,
            max_points=self.values["max_points"],
        )

    def projection(self, info: ModelInfo) -> ProjectionConfig:
        """The model's projection with the robot's overrides. Raises UserError if they do not fit together."""
        return replace(info.projection, **self._overrides("projection"))

    def knn(self, info: ModelInfo) -> KnnConfig:
        """The model's KNN settings with the robot's overrides. Raises UserError if they do not fit together."""
        return replace(info.knn, **self._overrides("knn"))

    def _overrides(self, group: str) -> dict[str, Any]:
        own = {name.partition(".")[2]: v for name, v in self.values.items() if name.startswith(f"{group}.")}
        # "", 0 and NaN mean "as the model says"; a cutoff of 0 is a value
        return {
            name: value
            for name, value in own.items()
            if not (isinstance(value, float) and math.isnan(value)) and (value or name in ("cutoff_m", *_ANGLES))
        }


_ANGLES = ("fov_up_deg", "fov_down_deg")


def _one_of(values: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> None:
    if values[name] not in allowed:
        raise UserError(f"{name} must be one of {', '.join(repr(a) for a in allowed)}, found '{values[name]}'")


def read_parameters(path: Path) -> dict[str, Any]:
    """Read the node's parameters from a ROS 2 parameter file, nested or with dotted names.

    Args:
        path: YAML file. The keys `/**` and those that end in `sqsegv3` hold for the node; other nodes' are ignored.

    Returns:
        The values that the file sets, by parameter name; later ones take precedence.

    Raises:
        UserError: A parameter is unknown, of a wrong type or out of its range (names file and parameter), or the file
            has parameters of other nodes only.
    """
    try:
        import yaml
    except ImportError as error:
        raise missing_package("PyYAML", "reading a parameter file", "tools") from error
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read parameter file {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"parameter file {path} is not valid YAML: {error}") from error
    groups = list(_groups(tree))
    if not groups:
        raise UserError(f"parameter file {path} has no ros__parameters; expected /**: {{ros__parameters: {{...}}}}")
    own = [group for node, group in groups if node == "/**" or node.rpartition("/")[2] == NODE_NAME]
    if not own:
        nodes = ", ".join(node or "no node" for node, _ in groups)
        raise UserError(
            f"parameter file {path} has parameters of {nodes}; expected /**, /{NODE_NAME} or /**/{NODE_NAME}"
        )
    found = {name: value for group in own for name, value in _flat(group)}
    values = {name: value for name, value in found.items() if not is_builtin(name)}
    try:
        return {name: check_value(name, value) for name, value in values.items()}
    except UserError as error:
        raise UserError(f"parameter file {path}: {error}") from error


def is_builtin(name: str) -> bool:
    """Return whether ROS declares a parameter on every node."""
    return name in _BUILTIN_PARAMETERS or name.startswith("qos_overrides.")


def describe_unknown(name: str) -> str:
    """Return a message about a parameter that does not exist, with the most similar name if there is one."""
    similar = difflib.get_close_matches(name, NAMES, n=1)
    return f"unknown parameter '{name}'" + (f"; did you mean '{similar[0]}'?" if similar else "")


def check_value(name: str, value: Any) -> Any:
    """Convert a parameter's value to its type. Raises UserError if the name is unknown or the value not allowed."""
    if name not in NAMES:
        raise UserError(describe_unknown(name))
    spec = _BY_NAME[name]
    kind = type(spec.default)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"parameter {name} must be {kind.__name__}, found {value!r}")
    number: Any = value
    if spec.low is not None and spec.high is not None and not spec.low <= number <= spec.high:
        raise UserError(f"parameter {name} must lie in {spec.low:g}..{spec.high:g}, found {value}")
    return value


def _groups(tree: Any, node: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every node's full name and the mapping below its ros__parameters, in order. Keys may be nested namespaces."""
    if isinstance(tree, Mapping):
        for name, below in tree.items():
            if name == "ros__parameters" and isinstance(below, Mapping):
                yield node, below
            else:
                yield from _groups(below, f"{node}/{str(name).strip('/')}")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
