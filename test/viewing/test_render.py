# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 render`: the picture of a scan, its orientation, and its error messages."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan
from sqsegv3_ros.viewing import scan_picture
from sqsegv3_ros.viewing.pictures import ERROR_COLORS, error_kinds

Image = pytest.importorskip("PIL.Image")

ROAD, PERSON = 40, 30
PERSON_COLOR = tuple(SEMANTIC_KITTI.colors[SEMANTIC_KITTI.index("person")].tolist())


@pytest.fixture
def root(tmp_path):
    """A data set of one scan: a ring of road around the sensor and a person 20 m ahead, 10 m to the left."""
    angle = np.linspace(-np.pi, np.pi, 4000, endpoint=False)
    road = np.stack([12 * np.cos(angle), 12 * np.sin(angle), np.full_like(angle, -1.7), np.full_like(angle, 0.2)], 1)
    person = np.array(
        [[20, 10 + dy, dz, 0.5] for dy in np.linspace(-0.5, 0.5, 10) for dz in np.linspace(-1.5, 0.3, 20)]
    )
    folder = tmp_path / "data/sequences/00"
    write_scan(folder / "velodyne/000000.bin", np.concatenate([road, person]))
    write_labels(folder / "labels/000000.label", np.repeat([ROAD, PERSON], [len(road), len(person)]))
    return tmp_path


def scan_of(root) -> str:
    return str(root / "data/sequences/00/velodyne/000000.bin")


def truth_of(root) -> str:
    return str(root / "data/sequences/00/labels/000000.label")


def drawn(root, *arguments: str) -> np.ndarray:
    output = root / "picture.png"
    assert main(["render", *arguments, "--output", str(output), "--force"]) == 0
    with Image.open(output) as image:
        return np.asarray(image.convert("RGB"))


def strip(picture: np.ndarray, number: int) -> np.ndarray:
    top = (
        scan_picture.MARGIN
        + scan_picture.CAPTION
        + number * (scan_picture.CAPTION + scan_picture.STRIP_HEIGHT)
        + scan_picture.CAPTION
    )
    return picture[top : top + scan_picture.STRIP_HEIGHT]


def panel(picture: np.ndarray, strips: int, edge: int) -> np.ndarray:
    top = (
        scan_picture.MARGIN
        + scan_picture.CAPTION
        + strips * (scan_picture.CAPTION + scan_picture.STRIP_HEIGHT)
        + scan_picture.CAPTION
    )
    return picture[top : top + edge, scan_picture.MARGIN : scan_picture.MARGIN + edge]


def centre_of(picture: np.ndarray, color) -> tuple[float, float]:
    rows, columns = np.nonzero((picture == color).all(axis=2))
    assert len(rows)
    return float(rows.mean()), float(columns.mean())


def test_label_image_and_birds_eye_view_show_objects_in_their_place(root):
    picture = drawn(root, scan_of(root))
    _, column = centre_of(strip(picture, 1), PERSON_COLOR)
    azimuth = np.degrees(np.arctan2(10, 20))  # to the left of forward
    assert column == pytest.approx((0.5 - azimuth / 360) * 2048, abs=6)
    row, column = centre_of(panel(picture, 2, 1200), PERSON_COLOR)
    assert row == pytest.approx(600 - 20 * 12, abs=3)  # 12 pixels per metre
    assert column == pytest.approx(600 - 10 * 12, abs=3)


def test_the_ground_truth_of_a_data_set_is_shown_without_labels(root):
    assert np.array_equal(drawn(root, scan_of(root)), drawn(root, scan_of(root), "--labels", truth_of(root)))


def test_a_scan_of_a_root_is_chosen_by_name(root):
    by_name = drawn(root, str(root / "data"), "--scan", "00/000000")
    first = drawn(root, str(root / "data"))
    assert np.array_equal(by_name, first)


def test_a_scan_without_labels_is_drawn_by_range_and_height(root):
    lonely = root / "lonely.bin"
    lonely.write_bytes((root / "data/sequences/00/velodyne/000000.bin").read_bytes())
    picture = drawn(root, str(lonely))
    assert not (picture == PERSON_COLOR).all(axis=2).any()
    assert picture.shape[1] == 2048


def test_a_comparison_shows_right_and_wrong_points(root):
    predicted = root / "predicted/sequences/00/predictions/000000.label"
    labels = np.repeat([ROAD, ROAD], [4000, 200])  # the person is missed
    labels[:100] = 0
    write_labels(predicted, labels)
    picture = drawn(root, scan_of(root), "--labels", str(root / "predicted"), "--compare", truth_of(root))
    errors = strip(picture, 3)
    _, column = centre_of(errors, ERROR_COLORS["wrong"])
    assert column == pytest.approx((0.5 - np.degrees(np.arctan2(10, 20)) / 360) * 2048, abs=6)
    assert centre_of(errors, ERROR_COLORS["right"])
    assert centre_of(errors, ERROR_COLORS["missed"])
    other_way = drawn(root, scan_of(root), "--labels", truth_of(root), "--compare", str(root / "predicted"))
    assert np.array_equal(strip(other_way, 2), strip(picture, 1))


def test_errors_distinguish_right_wrong_left_unlabeled_and_not_evaluated():
    labels, truth = np.array([1, 2, 0, 3, 0]), np.array([1, 1, 1, 0, 0])
    kinds = [list(ERROR_COLORS)[k] for k in error_kinds(SEMANTIC_KITTI, labels, truth)]
    assert kinds == ["right", "wrong", "missed", "not_evaluated", "not_evaluated"]


def test_an_image_of_another_size_still_fills_the_width(root):
    picture = drawn(root, scan_of(root), "--image-size", "16", "512", "--fov", "10", "-20")
    assert (strip(picture, 1) == PERSON_COLOR).all(axis=2).sum() > 64  # a few blocks of 4 x 16 pixels


def test_an_empty_scan_and_unusable_points_are_drawn(root):
    empty = root / "empty.bin"
    empty.write_bytes(b"")
    (root / "empty.label").write_bytes(b"")
    drawn(root, str(empty), "--labels", str(root / "empty.label"), "--compare", str(root / "empty.label"))
    write_scan(root / "odd.bin", np.array([[np.nan, 0, 0, 0], [0, 0, 0, 0], [np.inf, 1, 1, 0], [5, 0, np.nan, 0]]))
    write_labels(root / "odd.label", np.array([ROAD] * 4))
    drawn(root, str(root / "odd.bin"), "--labels", str(root / "odd.label"))
    drawn(root, str(root / "odd.bin"))


def refused(capsys, *arguments: str) -> str:
    assert main(["render", *arguments]) == 2
    return capsys.readouterr().err


def test_an_existing_picture_is_replaced_only_with_force(root, capsys):
    output = root / "kept.png"
    output.write_bytes(b"mine")
    assert "--force" in refused(capsys, scan_of(root), "--output", str(output))
    assert output.read_bytes() == b"mine"


def test_input_that_cannot_be_drawn_is_named(root, capsys):
    output = ["--output", str(root / "new.png")]
    assert "nowhere.bin" in refused(capsys, str(root / "nowhere.bin"), *output)
    assert "00/000007" in refused(capsys, str(root / "data"), "--scan", "00/000007", *output)
    (root / "empty").mkdir()
    assert "has no point-cloud files" in refused(capsys, str(root / "empty"), *output)
    assert "no scan '000003'" in refused(capsys, scan_of(root), "--scan", "000003", *output)
    (root / "drive.mcap").write_bytes(bytes(32))
    assert "sqsegv3 convert" in refused(capsys, str(root / "drive.mcap"), *output)
    assert "multiple of 8" in refused(capsys, scan_of(root), "--image-size", "64", "1001", *output)
    assert ".png" in refused(capsys, scan_of(root), "--output", str(root / "new.jpg"))
    assert not (root / "new.png").exists()


def test_labels_that_do_not_fit_are_named(root, capsys):
    output = ["--output", str(root / "new.png")]
    short, strange = root / "short.label", root / "strange.label"
    write_labels(short, np.array([ROAD]))
    write_labels(strange, np.full(4200, 77))
    assert str(short) in refused(capsys, scan_of(root), "--labels", str(short), *output)
    assert "77" in refused(capsys, scan_of(root), "--compare", str(strange), *output)
    lonely = root / "lonely.bin"
    lonely.write_bytes((root / "data/sequences/00/velodyne/000000.bin").read_bytes())
    assert "--labels" in refused(capsys, str(lonely), "--compare", truth_of(root), *output)


def test_without_pillow_the_command_that_installs_it_is_named(root, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    message = refused(capsys, scan_of(root), "--output", str(root / "new.png"))
    assert "Pillow" in message
    assert "[tools]" in message


def test_a_pillow_that_is_too_old_is_refused_by_version(root, capsys, monkeypatch):
    monkeypatch.setattr("PIL.__version__", "9.0.1")
    message = refused(capsys, scan_of(root), "--output", str(root / "new.png"))
    assert "Pillow>=10.1" in message
    assert "9.0.1" in message


def test_point_files_of_a_folder_are_drawn_with_their_own_ground_truth_or_the_labels_beside(root):
    points = np.fromfile(scan_of(root), "<f4").reshape(-1, 4)
    truth = np.repeat([SEMANTIC_KITTI.index("road"), SEMANTIC_KITTI.index("person")], [4000, 200])
    fields = [(name, "f4") for name in ("x", "y", "z", "intensity")] + [("ground_truth", "u1")]
    folder = root / "clouds"
    folder.mkdir()
    np.save(folder / "b.npy", np.array([(*p, t) for p, t in zip(points.tolist(), truth, strict=True)], fields))
    np.save(folder / "a.npy", points)
    write_labels(folder / "a.label", np.repeat([ROAD, PERSON], [4000, 200]))
    by_labels, by_field = drawn(root, str(folder)), drawn(root, str(folder), "--scan", "b")
    expected = drawn(root, scan_of(root))
    title = scan_picture.MARGIN + scan_picture.CAPTION
    assert np.array_equal(by_labels[title:], expected[title:])
    assert np.array_equal(by_field[title:], expected[title:])
    (folder / "c.npy").write_bytes(b"")
    assert np.array_equal(drawn(root, str(folder), "--scan", "b"), by_field)  # c is not even opened
