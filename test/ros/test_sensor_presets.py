# SPDX-License-Identifier: Apache-2.0
"""Sensor presets, input checks and extrinsics in the real node, with synthetic clouds in the sensors' layouts."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from clouds import LAYOUTS, points_of
from clouds import message as message_of
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TransformStamped
from live import LATCHED, Client, message, node_of, outputs_of
from programs import depends_on_discovery
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.inference.extrinsics import Extrinsics
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.model_file import ModelInfo, save_model
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
from sqsegv3_ros.inference.segmenter import Segmenter
from sqsegv3_ros.ros.segment_node import SegmentNode
from sqsegv3_ros.simulation.sensors import SENSORS

pytestmark = depends_on_discovery

PRESETS = sorted((ROOT / "config" / "sensors").glob("*.yaml"))
ERROR = DiagnosticStatus.ERROR


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file whose network is one 1 x 1 convolution, fast at every image size."""
    import torch

    torch.manual_seed(1)
    info = ModelInfo(
        name="by-pixel",
        architecture={},
        labels=SEMANTIC_KITTI,
        projection=ProjectionConfig(width=256),
        normalization=Normalization(),
        knn=KnnConfig(),
        sensor_height_m=1.73,
    )
    path = tmp_path_factory.mktemp("model") / "by-pixel.pt"
    save_model(path, torch.jit.script(torch.nn.Conv2d(5, 20, 1)), info, {})
    return path


def labelled(client: Client, node: SegmentNode, cloud: PointCloud2) -> np.ndarray:
    """The labelled cloud, as a structured array."""
    name = node.get_fully_qualified_name()
    results = client.collect(PointCloud2, f"{name}/output/points")
    for _ in range(10):  # the node may not have discovered the publisher or the subscriber yet
        client.publish(cloud, f"{name}/input/points")
        end = time.monotonic() + 5
        while not results and time.monotonic() < end:
            time.sleep(0.01)
        if results:
            break
    assert results, f"no labelled cloud; {client.diagnostics}"
    assert results[0].header == cloud.header
    return points_of(results[0]).reshape(-1)


def street(elevations_deg: np.ndarray, columns: int, seed: int = 0) -> np.ndarray:
    """(beams, columns, 4): ground 1.73 m below the sensor, two walls, and some rays without a return (0)."""
    generator = np.random.default_rng(seed)
    azimuth = np.pi - (np.arange(columns) + 0.5) / columns * 2 * np.pi
    azimuth, elevation = np.meshgrid(azimuth, np.radians(elevations_deg))
    with np.errstate(divide="ignore"):
        ground = np.where(elevation < 0, 1.73 / np.sin(-elevation), np.inf)
    wall = 8.0 / np.maximum(np.abs(np.sin(azimuth)) * np.cos(elevation), 1e-6)
    distance = np.minimum(np.minimum(ground, wall), 80.0) * (generator.random(azimuth.shape) < 0.9)
    flat = distance * np.cos(elevation)
    xyz = flat * np.cos(azimuth), flat * np.sin(azimuth), distance * np.sin(elevation)
    return np.stack([*xyz, generator.uniform(0, 0.5, azimuth.shape)], 2).astype(np.float32)


def cloud_of(sensor: str, columns: int | None = None) -> PointCloud2:
    """A cloud as the sensor's driver publishes it."""
    beams = np.array(SENSORS[sensor].elevations_deg)  # from the top
    rays = street(beams, columns or SENSORS[sensor].columns)
    if sensor.startswith("ouster"):
        points = np.zeros(rays.shape[:2], LAYOUTS["ouster 48"])
        points["ring"] = np.arange(len(beams))[:, None]
        points["reflectivity"] = rays[..., 3] * 40
        points["intensity"] = rays[..., 3] * 3000  # photons
        rays = rays * [-1, -1, 1, 1]  # the driver's frame points backwards, to the connector
    else:
        points = np.zeros(rays.shape[:2], LAYOUTS["velodyne xyzirt 22"])
        points["ring"] = np.arange(len(beams))[::-1, None]
        points["intensity"] = rays[..., 3] * (255 if sensor == "hdl64e" else 40)
    points["x"], points["y"], points["z"] = np.moveaxis(rays[..., :3], 2, 0)
    if not sensor.startswith("ouster"):
        points = points[np.abs(rays[..., :3]).max(2) > 0]  # Velodyne's driver omits rays without a return
    return message_of(points, cloud_type=PointCloud2, field_type=PointField, header=Header(frame_id="lidar"))


def input_message(client: Client, node: SegmentNode, cloud: PointCloud2) -> str:
    """The diagnostic message of the input after the node's first cloud."""
    labelled(client, node, cloud)
    client.status("processing", lambda s: {v.key: v.value for v in s.values}["labelled"] != "0")
    return str(client.diagnostics["input"].message)  # from the same message


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_labels_clouds_of_its_sensor_without_a_warning(client: Client, model: Path, preset: Path) -> None:
    with node_of(client, "--params-file", str(preset), model=model) as node:
        cloud = cloud_of(preset.stem)
        points = labelled(client, node, cloud)
        there = np.abs(points["x"]) + np.abs(points["y"]) > 0
        assert (points["label"][there] != 0).mean() > 0.5 and len(np.unique(points["label"])) > 2
        assert (points["label"][~there] == 0).all()
        client.status("processing", lambda s: {v.key: v.value for v in s.values}["labelled"] != "0")
        assert client.diagnostics["input"].message == "receiving clouds"
        image = {v.key: v.value for v in client.status("model", lambda s: bool(s.values)).values}
        assert 16 <= int(image["image_height"]) <= 128 and image["image_width"] == "256"  # the model's own


@pytest.mark.parametrize(
    ("preset", "sensor", "warning"),
    [
        ("vlp16", "hdl32e", "rings do not fit: found 0..31, expected 0..15"),
        ("ouster_os1_64", "ouster_os1_128", "rings do not fit: found 0..127, expected 0..63"),
        ("hdl64e", "vlp16", "field of view does not fit"),
    ],
)
def test_diagnostics_warn_if_the_sensor_is_not_that_of_the_preset(
    client: Client, model: Path, preset: str, sensor: str, warning: str
) -> None:
    file = ROOT / "config" / "sensors" / f"{preset}.yaml"
    with node_of(client, "--params-file", str(file), model=model) as node:
        assert warning in input_message(client, node, cloud_of(sensor))


def test_diagnostics_warn_if_the_cloud_has_fewer_columns_than_the_image(client: Client, model: Path) -> None:
    file = ROOT / "config" / "sensors" / "ouster_os1_64.yaml"
    with node_of(client, "--params-file", str(file), model=model, projection__width=1024) as node:
        assert "columns do not fit" in input_message(client, node, cloud_of("ouster_os1_64", 512))


def test_a_users_file_overrides_single_values_of_the_preset(client: Client, model: Path, tmp_path: Path) -> None:
    preset, own = ROOT / "config" / "sensors" / "ouster_os1_64.yaml", tmp_path / "own.yaml"
    for nodes in ("/**", "/**/sqsegv3"):  # keys in use for any node and for this node
        own.write_text(f"{nodes}: {{ros__parameters: {{extrinsics: {{yaw_deg: 0.5}}, intensity_scale: 0.25}}}}\n")
        with node_of(client, "--params-file", str(preset), "--params-file", str(own), model=model) as node:
            names = ("extrinsics.yaw_deg", "intensity_scale", "intensity_fields")
            values = [node.get_parameter(name).value for name in names]
            assert values == [0.5, 0.25, ["reflectivity"]]


# ---- extrinsics ------------------------------------------------------------------------------------------------------

TILT: dict[str, Any] = {"extrinsics__roll_deg": 6.0, "extrinsics__pitch_deg": 15.0}


def tilted(points: np.ndarray, extrinsics: Extrinsics) -> np.ndarray:
    """Points of a level sensor, in the frame of a sensor with these extrinsics."""
    result = points.copy()
    result[:, :3] = points[:, :3] @ np.array(extrinsics.rotation)
    return result


def pixel_centres() -> np.ndarray:
    """(N, 4): a street with one point at the centre of each pixel, so that rounding moves none into another."""
    return street(3.0 - 28.0 * (np.arange(64) + 0.5) / 64, 256).reshape(-1, 4)


def check_levelled(
    client: Client, node: SegmentNode, model: Path, height_m: float | None = None, frame: str = "velodyne"
) -> None:
    level = pixel_centres()
    seen = tilted(level, Extrinsics.from_angles(TILT["extrinsics__roll_deg"], TILT["extrinsics__pitch_deg"], 0))
    result = labelled(client, node, message(seen, frame=frame))
    expected = Segmenter(model, extrinsics=Extrinsics(height_m=height_m), backend="torch").segment(level).labels
    assert (Segmenter(model, backend="torch").segment(seen).labels == expected).mean() < 0.9
    assert ((Segmenter(model, backend="torch").segment(level).labels == expected).mean() < 0.95) == (
        height_m is not None
    )
    assert (result["label"] == expected).mean() > 0.995
    for column, name in enumerate(("x", "y", "z", "intensity")):
        np.testing.assert_array_equal(result[name], seen[:, column])


def test_a_tilted_sensor_gets_the_labels_of_a_level_one_and_keeps_its_coordinates(client: Client, model: Path) -> None:
    with node_of(client, model=model, **TILT) as node:
        check_levelled(client, node, model)
        # the levelled points fit the image, so there is no warning about the field of view
        client.status("processing", lambda s: {v.key: v.value for v in s.values}["labelled"] != "0")
        assert client.diagnostics["input"].message == "receiving clouds"


@pytest.mark.skipif(importlib.util.find_spec("tf2_ros") is not None, reason="tests machines without tf2_ros")
def test_a_base_frame_without_tf2_ros_fails_to_configure_with_instructions(client: Client, model: Path) -> None:
    with node_of(client, model=model, base_frame="base_link", configures=False):
        status = client.status("model", lambda s: s.level == ERROR)
        assert "base_frame is set, but tf2_ros is not installed" in status.message
        assert "ros-$ROS_DISTRO-tf2-ros-py" in status.message and "extrinsics.roll_deg" in status.message


def broadcast(
    client: Client,
    parent: str,
    child: str,
    extrinsics: Extrinsics,
    send: Callable[[TransformStamped], Any],
    height_m: float = 1.2,
) -> None:
    transform = TransformStamped()
    transform.header.frame_id, transform.child_frame_id = parent, child
    transform.transform.translation.x, transform.transform.translation.z = 0.4, height_m
    (_, _, r02), (_, _, r12), (r20, r21, r22) = extrinsics.rotation
    w = math.sqrt(1 + extrinsics.rotation[0][0] + extrinsics.rotation[1][1] + r22) / 2
    rotation = transform.transform.rotation
    rotation.w, rotation.x, rotation.y = w, (r21 - r12) / (4 * w), (r02 - r20) / (4 * w)
    rotation.z = (extrinsics.rotation[1][0] - extrinsics.rotation[0][1]) / (4 * w)
    send(transform)


def stand_in_for_tf2(topic: str) -> types.ModuleType:
    """The part of tf2_ros that TfExtrinsics uses, by its documentation, without chains of transforms."""
    module = types.ModuleType("tf2_ros")

    class TransformException(Exception):  # noqa: N818
        pass

    class Buffer:
        def __init__(self, cache_time: Any = None, node: Any = None) -> None:
            self.transforms: dict[tuple[str, str], TransformStamped] = {}

        def lookup_transform(self, target: str, source: str, time: Any, timeout: Any = None) -> TransformStamped:
            if (target, source) not in self.transforms:
                raise TransformException(f'"{target}" passed to lookupTransform argument target_frame does not exist.')
            return self.transforms[target, source]

    class TransformListener:
        def __init__(self, buffer: Buffer, node: Any) -> None:
            def keep(transform: TransformStamped) -> None:
                buffer.transforms[transform.header.frame_id, transform.child_frame_id] = transform

            self.node, self.subscription = node, node.create_subscription(TransformStamped, topic, keep, LATCHED)

        def unregister(self) -> None:
            self.node.destroy_subscription(self.subscription)

    for part in (TransformException, Buffer, TransformListener):
        setattr(module, part.__name__, part)
    return module


@pytest.fixture
def send_transform(client: Client, monkeypatch: pytest.MonkeyPatch) -> Callable[[TransformStamped], Any]:
    if importlib.util.find_spec("tf2_ros") is not None:
        import tf2_ros

        broadcaster: Callable[[TransformStamped], Any] = tf2_ros.StaticTransformBroadcaster(client.node).sendTransform
        return broadcaster
    monkeypatch.setitem(sys.modules, "tf2_ros", stand_in_for_tf2("/tf_static_of_the_test"))
    publisher = client.node.create_publisher(TransformStamped, "/tf_static_of_the_test", LATCHED)
    return publisher.publish


def test_extrinsics_are_read_from_tf_for_the_frame_of_the_cloud(
    client: Client, model: Path, send_transform: Callable[[TransformStamped], Any]
) -> None:
    broadcast(client, "base_link", "lidar", Extrinsics.from_angles(6.0, 15.0, 0), send_transform)
    with node_of(client, model=model, base_frame="base_link") as node:
        for _ in range(2):
            check_levelled(client, node, model, height_m=1.2, frame="lidar")
        assert not node.has_parameter("extrinsics.height_m")  # which would not be what is used
        listened = {subscription.topic_name for subscription in node.subscriptions}
        assert listened == {f"{node.get_fully_qualified_name()}/input/points"}  # no longer to TF


def test_clouds_of_a_frame_without_a_transform_are_rejected_until_there_is_one(
    client: Client, model: Path, send_transform: Callable[[TransformStamped], Any]
) -> None:
    with node_of(client, model=model, base_frame="base_link") as node:
        cloud = message(pixel_centres(), frame="roof_lidar")

        def refused(status: DiagnosticStatus) -> bool:
            client.publish(cloud, f"{node.get_fully_qualified_name()}/input/points")
            return "no transform" in status.message

        status = client.status("input", refused)
        assert "from the cloud's frame 'roof_lidar' to base_frame 'base_link'" in status.message
        assert any("no_transform" in value.key for value in status.values)
        broadcast(client, "base_link", "roof_lidar", Extrinsics.from_angles(6.0, 15.0, 0), send_transform)
        assert len(labelled(client, node, cloud)) == len(pixel_centres())


def test_a_sensor_that_is_not_above_the_base_frame_costs_only_the_clouds_with_a_height_band(
    client: Client, model: Path, send_transform: Callable[[TransformStamped], Any]
) -> None:
    broadcast(client, "roof", "lidar", Extrinsics.from_angles(6.0, 15.0, 0), send_transform, height_m=-0.1)
    with node_of(client, model=model, base_frame="roof", obstacles__min_height_m=0.2) as node:
        obstacles = client.collect(PointCloud2, f"{node.get_fully_qualified_name()}/output/obstacles")
        cloud = message(pixel_centres(), frame="lidar")
        found = outputs_of(client, node, cloud, points=PointCloud2, filtered=PointCloud2)
        assert found["points"].width == len(pixel_centres()) and not obstacles
        status = client.status("input", lambda s: "~/output/obstacles is not published" in s.message)
        assert "set base_frame to a frame on the ground" in status.message and status.level != ERROR
        assert "extrinsics.height_m" not in status.message  # refused beside base_frame
        values = {pair.key: pair.value for pair in client.diagnostics["processing"].values}
        assert values["failed"] == "0"
