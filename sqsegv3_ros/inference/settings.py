# SPDX-License-Identifier: Apache-2.0
"""Specifications and values of all settings of the node; no ROS in it.

`ros/parameters.py` declares the specifications on the node, which keeps one `Settings`, validated when it is made.
"""

from __future__ import annotations

import difflib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sqsegv3_ros.data.label_map import LabelMap, load_label_map
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.point_filter import HEIGHT_LIMIT_M, FilterConfig, ground_classes, parse_class_min_confidence
from sqsegv3_ros.pointcloud2 import INTENSITY_FIELDS, OUTPUTS, CloudSettings

if TYPE_CHECKING:
    from sqsegv3_ros.data.label_set import LabelSet
    from sqsegv3_ros.inference.knn import KnnConfig
    from sqsegv3_ros.inference.model_file import ModelInfo
    from sqsegv3_ros.inference.range_image import ProjectionConfig

NODE_NAME = "sqsegv3"


@dataclass(frozen=True)
class Spec:
    """Specification of one parameter.

    Attributes:
        name: Full name; dots separate groups.
        default: Default value; if the default is the model's own, the type of the value.
        description: One sentence for `ros2 param describe`.
        low: Smallest value, included.
        high: Largest value, included.
        step: Distance of integers in the range, counted from `low`.
        choices: The allowed strings; empty: any.
        rule: A constraint or the meaning of a value, in words.
        at_configure: Read when the node is configured and fixed while it holds a model; all others take effect with
            the next cloud.
        read_only: Set at start only.
    """

    name: str
    default: bool | int | float | str | list[str] | list[float] | type[int | float | str | list[str]]
    description: str
    low: float | None = None
    high: float | None = None
    step: int = 1
    choices: tuple[str, ...] = ()
    rule: str = ""
    at_configure: bool = False
    read_only: bool = False

    @property
    def of_model(self) -> bool:
        """Whether the default is the model's own value, so that it is known once a model is loaded."""
        return isinstance(self.default, type)

    @property
    def kind(self) -> type[Any]:
        """The type of the value."""
        return self.default if isinstance(self.default, type) else type(self.default)

    @property
    def item(self) -> type[Any]:
        """The type of a list's items."""
        return type(self.default[0]) if isinstance(self.default, list) else str

    @property
    def allowed(self) -> str:
        """The range, the choices and the rule, in words."""
        ranged = self.low is not None and self.high is not None
        parts = [f"{self.low:g}..{self.high:g}" if ranged else "", ", ".join(self.choices), self.rule]
        return "; ".join(part for part in parts if part)


def _filter_specs(group: str, remove_classes: Spec) -> tuple[Spec, ...]:
    """The parameters of a filtered cloud, of `~/output/<group>`."""
    limit = HEIGHT_LIMIT_M
    return (
        Spec(f"{group}.keep_classes", [""], "Names of the classes to keep.", rule="['']: all"),
        remove_classes,
        Spec(f"{group}.min_confidence", 0.0, "Points with a lower confidence are removed.", 0.0, 1.0),
        Spec(
            f"{group}.class_min_confidence",
            [""],
            f"The same by class, instead of {group}.min_confidence.",
            rule="entries such as 'person: 0.3'",
        ),
        Spec(
            f"{group}.ego_box",
            [0.0] * 6,
            "Box whose points are removed (the robot): x, y, z of two opposite corners, metres in the cloud's frame.",
            rule="without volume: no box",
        ),
        Spec(f"{group}.min_height_m", -limit, "Lower end of the height band to keep, above the ground.", -limit, limit),
        Spec(f"{group}.max_height_m", limit, "Upper end of the height band to keep.", -limit, limit),
    )


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
        "Runtime of the network. auto: torch on a GPU, else OpenVINO if it is installed, else torch.",
        choices=("auto", "torch", "openvino"),
        at_configure=True,
    ),
    Spec("device", "auto", "Device that runs the model.", rule="auto, cuda, cuda:N or cpu", at_configure=True),
    Spec(
        "precision",
        "auto",
        "Precision of the network. auto: fp16 on a GPU, bf16 with OpenVINO on a CPU that has it, else fp32.",
        choices=("auto", "fp32", "fp16", "bf16"),
        at_configure=True,
    ),
    Spec("threads", 0, "CPU threads that share a scan; 0 = one per core.", 0, 1024, at_configure=True),
    Spec(
        "cuda_graph",
        False,
        "Replay the network's kernels on a CUDA device instead of launching each: quicker for small networks.",
        at_configure=True,
    ),
    Spec(
        "average_mirrored",
        False,
        "Run the network on the mirrored image, too, and average the probabilities: better labels in twice its time.",
        at_configure=True,
    ),
    Spec("autostart", True, "Configure and activate at start, without a lifecycle manager.", read_only=True),
    Spec(
        "input_reliability",
        "auto",
        "Reliability of the input's subscription. auto: reliable if every publisher is, else best effort.",
        choices=("auto", "reliable", "best_effort"),
    ),
    Spec(
        "intensity_fields",
        list(INTENSITY_FIELDS),
        "Names of the intensity field; the first that a cloud has is read.",
        rule="['']: the cloud has none, use 0",
    ),
    Spec(
        "intensity_scale",
        1.0,
        "Remission = this * intensity ** intensity_exponent.",
        1e-9,
        1e9,
    ),
    Spec("intensity_exponent", 1.0, "Remission = intensity_scale * intensity ** this; 0.5: square root.", 0.01, 10.0),
    Spec("ring_field", "ring", "Field that holds the laser's number.", rule="empty: the cloud has none"),
    Spec("max_points", 10_000_000, "Clouds that declare more points are rejected.", 1, 2**31 - 1),
    Spec("projection.fov_up_deg", float, "Elevation of the image's upper edge, degrees.", -90.0, 90.0),
    Spec("projection.fov_down_deg", float, "Elevation of the image's lower edge, degrees.", -90.0, 90.0),
    Spec("projection.height", int, "Rows of the image.", 1, 1024, at_configure=True),
    Spec(
        "projection.width",
        int,
        "Columns of the image.",
        8,
        16384,
        step=8,
        rule="a multiple of 8",
        at_configure=True,
    ),
    Spec(
        "projection.rows",
        str,
        "Source of a point's row.",
        choices=("elevation", "ring_from_bottom", "ring_from_top"),
    ),
    Spec("projection.ring_count", int, "Rings of the sensor; 0 = one per row.", 0, 1024),
    Spec("projection.fill_rows", int, "Rows over which gaps between beams are filled.", 0, 1024),
    Spec(
        "projection.outside_fov",
        str,
        "Points above or below the image: into its edge rows (clamp), or unlabeled (drop).",
        choices=("clamp", "drop"),
    ),
    Spec("knn.mode", str, "How neighbours vote on labels.", choices=("off", "safe", "official")),
    Spec("knn.k", int, "Neighbours that vote.", 1, 225, rule="at most search x search"),
    Spec("knn.search", int, "Side of the search window in pixels.", 1, 15, step=2, rule="odd"),
    Spec("knn.sigma", float, "Sigma of the window's Gaussian in pixels.", 0.001, 100.0),
    Spec("knn.cutoff_m", float, "Largest voting range difference in metres.", rule="<= 0: no limit"),
    Spec("extrinsics.roll_deg", 0.0, "Roll of the sensor on the robot (REP 103), degrees.", -180.0, 180.0),
    Spec("extrinsics.pitch_deg", 0.0, "Pitch of the sensor on the robot, degrees; down is positive.", -180.0, 180.0),
    Spec("extrinsics.yaw_deg", 0.0, "Yaw of the sensor on the robot, degrees.", -180.0, 180.0),
    Spec(
        "extrinsics.height_m",
        float,
        "Height of the sensor above the ground, metres; 0 = not known, not compensated. Absent with base_frame.",
        0.0,
        100.0,
    ),
    Spec(
        "base_frame",
        "",
        "Level frame on the ground: rotation and height of the cloud's frame come from TF instead of extrinsics.*.",
        rule="empty: extrinsics.* hold",
        at_configure=True,
    ),
    Spec("publish.rgb", True, "Add the field rgb (class colours) to ~/output/points."),
    Spec("publish.confidence", True, "Add the field confidence to ~/output/points."),
    Spec("publish.label", True, "Add the field label to ~/output/points."),
    Spec("publish.entropy", False, "Add the field entropy, 0 (certain) to 1, to ~/output/points."),
    Spec(
        "label_map",
        "",
        "Name of a shipped label map, or path of one, that folds, renames, recolours or drops the model's classes.",
        rule="empty: the model's classes",
        at_configure=True,
    ),
    *_filter_specs("filtered", Spec("filtered.remove_classes", [""], "Names of the classes to remove.")),
    *_filter_specs(
        "obstacles",
        Spec("obstacles.remove_classes", list, "Names of the classes to remove; the default is the ground."),
    ),
    Spec("sweeps.count", 1, "Sweeps that vote on labels, the last one included; 1 = off.", 1, 20, at_configure=True),
    Spec("sweeps.fixed_frame", "odom", "Frame that neither moves nor jumps, for sweeps.count.", at_configure=True),
    Spec(
        "sweeps.odometry_topic",
        "",
        "Topic (nav_msgs/Odometry) of the robot's poses in the fixed frame, for sweeps.count.",
        rule="empty: from TF",
        at_configure=True,
    ),
    Spec("latency_budget_ms", 100.0, "Time from receipt to publication, above which diagnostics warn.", 0.1, 600000.0),
    Spec(
        "late_error_after_s", 5.0, "Continuous time over budget, after which diagnostics report an error.", 0.0, 86400.0
    ),
    Spec("stale_after_s", 1.0, "Time without a cloud, after which diagnostics report an error.", 0.01, 86400.0),
)
FILTERS = ("filtered", "obstacles")
"""Groups of parameters, and names of topics, of the filtered clouds."""
SPEC_OF = {spec.name: spec for spec in SPECS}
DEFAULTS: Mapping[str, Any] = {spec.name: spec.default for spec in SPECS if not spec.of_model}
"""Defaults of the parameters that do not depend on the model."""
_BUILTIN_PARAMETERS = ("use_sim_time", "start_type_description_service")
_ANGLES = ("extrinsics.roll_deg", "extrinsics.pitch_deg", "extrinsics.yaw_deg")


@dataclass(frozen=True)
class Settings:
    """The values of the parameters, validated as far as possible without a model.

    Attributes:
        values: Value of every parameter by name. Those that default to the model's may be missing until `for_model`.

    Raises:
        UserError: A value is not allowed.
    """

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", {name: check_value(name, value) for name, value in self.values.items()})
        self.cloud_settings(rings_needed=False)
        for group in FILTERS:
            self.filter(group)
        digest = self.values["model_sha256"]
        if digest and (len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef")):
            raise UserError(f"model_sha256 must be 64 hexadecimal digits, found '{digest}'")
        if self.values["base_frame"]:
            self._refuse_extrinsics()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The fields that are added to the labelled cloud."""
        return tuple(name for name in OUTPUTS if self.values[f"publish.{name}"])

    def filter(self, group: str) -> FilterConfig:
        """What `~/output/<group>` keeps. Raises UserError if the values do not fit together."""
        values = self._group(group)
        names = {name: tuple(filter(None, values.get(name, ()))) for name in ("keep_classes", "remove_classes")}
        try:
            by_class = parse_class_min_confidence(values["class_min_confidence"])
            return FilterConfig(**{**values, **names, "class_min_confidence": by_class})
        except UserError as error:
            raise UserError(f"{group}: {error}") from error

    def labels(self, info: ModelInfo) -> LabelSet:
        """The classes of the output: the model's, or those of the label map. Raises UserError if it does not fit."""
        label_map = self.label_map
        return info.labels if label_map is None else label_map.apply(info.labels).labels

    @property
    def label_map(self) -> LabelMap | None:
        """The label map. Raises UserError if it cannot be read."""
        return load_label_map(self.values["label_map"]) if self.values["label_map"] else None

    @property
    def angles_deg(self) -> tuple[float, float, float]:
        """Roll, pitch and yaw of the sensor."""
        roll, pitch, yaw = (self.values[name] for name in _ANGLES)
        return roll, pitch, yaw

    @property
    def height_m(self) -> float | None:
        """Height of the sensor above the ground; None if not known."""
        return self.values.get("extrinsics.height_m") or None

    def for_model(self, info: ModelInfo) -> Settings:
        """Return the settings with the model's own values for those that are not set.

        Raises:
            UserError: The values do not fit the model.
        """
        own = {
            **{f"projection.{name}": value for name, value in info.projection.to_dict().items()},
            **{f"knn.{name}": value for name, value in info.knn.to_dict().items()},
            "extrinsics.height_m": info.sensor_height_m,
            "obstacles.remove_classes": ground_classes(self.labels(info)) or [""],
        }
        if self.values["base_frame"]:
            del own["extrinsics.height_m"]
        defaults = {spec.name: spec.kind(own[spec.name] or 0) for spec in SPECS if spec.of_model and spec.name in own}
        return Settings({**defaults, **self.values})

    def cloud_settings(self, rings_needed: bool) -> CloudSettings:
        """How clouds are decoded. Raises UserError if the settings contradict each other."""
        return CloudSettings(
            intensity_fields=tuple(name for name in self.values["intensity_fields"] if name),
            intensity_scale=self.values["intensity_scale"],
            intensity_exponent=self.values["intensity_exponent"],
            ring_field=self.values["ring_field"],
            ring_required=rings_needed,
            max_points=self.values["max_points"],
        )

    def projection(self, info: ModelInfo) -> ProjectionConfig:
        """The model's projection with these values. Raises UserError if they do not fit together."""
        values = self._group("projection")
        return replace(info.projection, **{**values, "ring_count": values["ring_count"] or None})

    def knn(self, info: ModelInfo) -> KnnConfig:
        """The model's KNN settings with these values. Raises UserError if they do not fit together."""
        return replace(info.knn, **self._group("knn"))

    def _group(self, group: str) -> dict[str, Any]:
        return {name.partition(".")[2]: v for name, v in self.values.items() if name.startswith(f"{group}.")}

    def _refuse_extrinsics(self) -> None:
        given = [name for name in _ANGLES if self.values[name]]
        given += [name for name in ("extrinsics.height_m",) if name in self.values]
        if given:
            found = ", ".join(f"{name} is {self.values[name]:g}" for name in given)
            raise UserError(
                f"{found}, but base_frame is '{self.values['base_frame']}', so that rotation and height come from TF; "
                "leave base_frame empty, or set the angles to 0.0 (a sensor's preset may set one) and no height"
            )


def is_builtin(name: str) -> bool:
    """Return whether ROS declares a parameter on every node."""
    return name in _BUILTIN_PARAMETERS or name.startswith("qos_overrides.")


def describe_unknown(name: str) -> str:
    """Return a message about a parameter that does not exist, with the most similar name if there is one."""
    similar = difflib.get_close_matches(name, SPEC_OF, n=1)
    return f"unknown parameter '{name}'" + (f"; did you mean '{similar[0]}'?" if similar else "")


def check_value(name: str, value: Any) -> Any:
    """Convert a parameter's value to its type. Raises UserError if the name is unknown or the value not allowed."""
    if name not in SPEC_OF:
        raise UserError(describe_unknown(name))
    spec = SPEC_OF[name]
    if spec.kind is float and type(value) is int:
        value = float(value)
    if spec.kind is list and isinstance(value, (list, array)):  # rclpy gives numbers as an array
        value = [float(item) if spec.item is float and type(item) is int else item for item in value]
    if type(value) is not spec.kind or (spec.kind is list and not all(type(item) is spec.item for item in value)):
        kind = f"list of {spec.item.__name__}" if spec.kind is list else spec.kind.__name__
        quote = "; quote the text, as YAML reads off, no, on and yes as booleans" if type(value) is bool else ""
        raise UserError(f"parameter {name} must be {kind}, found {value!r}{quote if spec.kind is str else ''}")
    if (spec.kind is float or spec.item is float) and not np.isfinite(value).all():
        raise UserError(f"parameter {name} must be finite, found {value}")
    if spec.choices and value not in spec.choices:
        raise UserError(f"parameter {name} must be one of {', '.join(map(repr, spec.choices))}, found '{value}'")
    if spec.low is not None and spec.high is not None:
        in_steps = spec.kind is float or (value - spec.low) % spec.step == 0
        if not (spec.low <= value <= spec.high and in_steps):
            raise UserError(f"parameter {name} must be in {spec.allowed}, found {value}")
    return value
