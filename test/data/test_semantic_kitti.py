# SPDX-License-Identifier: Apache-2.0
"""Files of SemanticKITTI are read as written, and refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sqsegv3_ros.data.semantic_kitti import find_scans, is_dataset, read_labels, read_scan, write_labels, write_scan
from sqsegv3_ros.errors import UserError


def test_scans_and_labels_are_read_as_written(tmp_path: Path) -> None:
    points = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_scan(tmp_path / "deep/er/a.bin", points)
    write_labels(tmp_path / "a.label", np.array([10, 40, 259]))
    np.testing.assert_array_equal(read_scan(tmp_path / "deep/er/a.bin"), points)
    assert read_labels(tmp_path / "a.label", count=3).tolist() == [10, 40, 259]
    assert (tmp_path / "a.label").read_bytes() == b"\n\0\0\0(\0\0\0\x03\x01\0\0"


@pytest.mark.parametrize(
    ("content", "message"), [(b"12345", "5 bytes is not a whole number of points"), (None, "cannot read scan")]
)
def test_an_unreadable_scan_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "broken.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_scan(path)
    assert str(path) in str(error.value)


def test_labels_of_another_count_are_refused(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.label", np.zeros(5))
    with pytest.raises(UserError, match="5 labels, but the scan has 6 points"):
        read_labels(tmp_path / "a.label", count=6)


def test_scans_are_listed_in_order_and_a_missing_sequence_is_named_with_the_existing_ones(tmp_path: Path) -> None:
    for sequence, stem in (("03", "000001"), ("03", "000000"), ("00", "000005")):
        write_scan(tmp_path / f"sequences/{sequence}/velodyne/{stem}.bin", np.zeros((1, 4)))
    assert is_dataset(tmp_path) and not is_dataset(tmp_path / "sequences")
    assert [(s.sequence, s.stem) for s in find_scans(tmp_path)] == [
        ("00", "000005"),
        ("03", "000000"),
        ("03", "000001"),
    ]
    (scan,) = find_scans(tmp_path, ["0"])
    assert scan.labels_path == tmp_path / "sequences/00/labels/000005.label"
    assert scan.prediction_path("out") == Path("out/sequences/00/predictions/000005.label")
    with pytest.raises(UserError, match=r"no sequence '07' \(sequences: 00, 03\)"):
        find_scans(tmp_path, ["07"])
    with pytest.raises(UserError, match="no folder 'sequences'"):
        find_scans(tmp_path / "sequences/00")
    with pytest.raises(UserError, match="nowhere does not exist; expected a SemanticKITTI data set"):
        find_scans(tmp_path / "nowhere")
