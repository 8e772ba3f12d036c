# SPDX-License-Identifier: Apache-2.0
"""Scans that another process publishes: the node labels them as the command line does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs rclpy: pip install 'sqsegv3_ros[ros]', or a sourced ROS 2")

from conftest import DATA, ROOT, SHARED, needs_shared
from live import NODE, Client, street
from programs import depends_on_discovery, running, running_node, wait_until
from sensor_msgs.msg import PointCloud2

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.semantic_kitti import find_scans, read_labels, read_scan, write_scan
from sqsegv3_ros.inference.model_file import read_info
from sqsegv3_ros.pointcloud2 import read_field

pytestmark = depends_on_discovery

PUBLISHER = ROOT / "test" / "publish_scans.py"


def label_live(root: Path, model: Path, predictions: Path, timeout_s: float) -> list[PointCloud2]:
    """Publish every scan of a data set from another process, and compare the labels with those of `sqsegv3 label`."""
    assert main(["label", "--model", str(model), str(root), "--output", str(predictions)]) == 0
    scans = find_scans(root)
    client = Client()
    try:
        with running_node(model=model, latency_budget_ms=60000.0) as node:
            node.wait_for_log("labelling clouds of", 120)
            results = client.collect(PointCloud2, f"{NODE}/output/points")
            with running(PUBLISHER, root) as publisher:
                wait_until(
                    lambda: len(results) >= len(scans) or not publisher.is_running, timeout_s, lambda: len(results)
                )
                assert publisher.exit_code(30) == 0, publisher.log
            assert node.stop() == 0
    finally:
        client.close()
    labels = read_info(model).labels
    assert len(results) == len(scans)
    for number, (scan, labelled) in enumerate(zip(scans, results, strict=True)):
        points = read_scan(scan.path)
        assert labelled.header.stamp.sec == number + 1
        assert labelled.header.frame_id == f"{scan.sequence}/{scan.stem}"
        np.testing.assert_array_equal(read_field(labelled, "x"), points[:, 0])
        np.testing.assert_array_equal(read_field(labelled, "intensity"), points[:, 3])
        expected = read_labels(scan.prediction_path(predictions), len(points))
        np.testing.assert_array_equal(labels.to_raw(read_field(labelled, "label")), expected)
    return results


def test_scans_from_another_process_get_the_labels_of_the_command_line(small_model: Path, tmp_path: Path) -> None:
    for number in range(6):
        write_scan(tmp_path / f"root/sequences/0{number % 2}/velodyne/{number:06d}.bin", street(60_000, number))
    results = label_live(tmp_path / "root", small_model, tmp_path / "predictions", 60)
    assert len({len(np.unique(read_field(r, "label"))) for r in results} | {0}) > 1


@needs_shared
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_all_real_scans_get_the_labels_of_the_command_line(tmp_path: Path) -> None:
    model = tmp_path / "mini.pt"
    assert main(["import-official", str(SHARED / "checkpoints/ssgv3_21_mini"), "--output", str(model)]) == 0
    assert len(label_live(DATA / "semantic_kitti", model, tmp_path / "predictions", 1200)) == 51
