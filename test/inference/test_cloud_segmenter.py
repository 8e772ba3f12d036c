# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import LAYOUTS, message, random_points

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
from sqsegv3_ros.inference.settings import DEFAULTS, Settings
from sqsegv3_ros.pointcloud2 import read_field


def segmenter_of(**values: Any) -> CloudSegmenter:
    return CloudSegmenter.from_parameters({"backend": "torch", **values}, warm_up=False)  # torch loads fastest


def test_settings_that_change_while_a_cloud_is_in_work_hold_from_the_next_cloud_on(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread answers parameters: a cloud decoded without rings must not be projected by rings."""
    cloud_segmenter = segmenter_of(model=str(small_model), ring_field="")
    points = random_points(LAYOUTS["velodyne xyzirt 22"], 2000)
    points["ring"] %= 64
    values = {"projection.rows": "ring_from_top", "publish.rgb": False, "filtered.remove_classes": ["car"]}
    changed = Settings({**DEFAULTS, **values}).for_model(cloud_segmenter.segmenter.info)
    segment = cloud_segmenter.segmenter.segment

    def segment_late(*arguments: Any, **options: Any) -> Any:
        cloud_segmenter.apply(changed)
        return segment(*arguments, **options)

    monkeypatch.setattr(cloud_segmenter.segmenter, "segment", segment_late)
    before = cloud_segmenter.process(message(points), {"points"}).clouds["points"]
    after = cloud_segmenter.process(message(points), {"points"}).clouds["points"]
    assert [f.name for f in before.fields][-3:] == ["rgb", "confidence", "label"]
    assert [f.name for f in after.fields][-3:] == ["time", "confidence", "label"]
    assert bytes(before.data)[:22] == bytes(after.data)[:22] == np.asarray(points)[:1].tobytes()
    assert cloud_segmenter.description()["knn_mode"] == "safe"
    assert cloud_segmenter.description()["average_mirrored"] == "false"


def test_a_model_that_ships_is_found_by_its_name_and_a_cuda_graph_needs_cuda() -> None:
    described = segmenter_of(model="default").description()
    assert Path(described["file"]).name == "default.pt" and described["licence"].startswith("Apache-2.0")
    with pytest.raises(UserError, match="requires a CUDA device; the device is cpu"):
        segmenter_of(model="default", device="cpu", cuda_graph=True)
    with pytest.raises(UserError, match="the shipped models are default, kitti"):
        segmenter_of(model="simulatd")


def test_a_base_frame_is_refused_without_tf(small_model: Path) -> None:
    with pytest.raises(UserError, match="base_frame is 'base_link', but only the node has TF; set base_frame to ''"):
        segmenter_of(model=str(small_model), base_frame="base_link")


@pytest.mark.parametrize(("name", "column"), [("reflectivity", 3), ("i", 3)])
def test_the_intensity_is_found_by_its_usual_names(small_model: Path, name: str, column: int) -> None:
    points = random_points(LAYOUTS["xyzi 16"], 2000)
    points["intensity"] = np.random.default_rng(0).uniform(0, 0.5, 2000)
    named = message(points)
    named.fields[column].name = name
    results = [segmenter_of(model=str(small_model)).process(cloud, {"points"}) for cloud in (message(points), named)]
    labels = [bytes(read_field(result.clouds["points"], "label")) for result in results]
    assert labels[0] == labels[1] and len(set(labels[0])) > 1
