# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import LAYOUTS, message, random_points

from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.cloud_segmenter import CloudSegmenter
from sqsegv3_ros.inference.settings import SPECS, Settings


def settings(**changes: Any) -> Settings:
    values = {spec.name: spec.default for spec in SPECS}
    return Settings({**values, **{name.replace("__", "."): value for name, value in changes.items()}})


def test_settings_that_change_while_a_cloud_is_in_work_hold_from_the_next_cloud_on(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread answers parameters: a cloud decoded without rings must not be projected by rings."""
    cloud_segmenter = CloudSegmenter(settings(model=str(small_model), ring_field=""), warm_up=False)
    points = random_points(LAYOUTS["velodyne xyzirt 22"], 2000)
    points["ring"] %= 64
    changed = settings(
        model=str(small_model), projection__rows="ring_from_top", publish__rgb=False, filtered__remove_classes=["car"]
    )
    segment = cloud_segmenter.segmenter.segment

    def segment_late(*arguments: Any) -> Any:
        cloud_segmenter.apply(changed)
        return segment(*arguments)

    monkeypatch.setattr(cloud_segmenter.segmenter, "segment", segment_late)
    before = cloud_segmenter.process(message(points), {"points"}).clouds["points"]
    after = cloud_segmenter.process(message(points), {"points"}).clouds["points"]
    assert [f.name for f in before.fields][-3:] == ["rgb", "confidence", "label"]
    assert [f.name for f in after.fields][-3:] == ["time", "confidence", "label"]
    assert bytes(before.data)[:22] == bytes(after.data)[:22] == np.asarray(points)[:1].tobytes()
    assert cloud_segmenter.description()["knn_mode"] == "safe"


def test_a_model_that_ships_is_found_by_its_name_and_a_cuda_graph_needs_cuda() -> None:
    described = CloudSegmenter(settings(model="default"), warm_up=False).description()
    assert Path(described["file"]).name == "default.pt" and described["licence"] == "Apache-2.0"
    with pytest.raises(UserError, match="requires a CUDA device; the device is cpu"):
        CloudSegmenter(settings(model="default", device="cpu", cuda_graph=True), warm_up=False)
    with pytest.raises(UserError, match="the shipped models are default, kitti"):
        CloudSegmenter(settings(model="simulatd"), warm_up=False)
