# SPDX-License-Identifier: Apache-2.0
"""`sqsegv3 report`: a self-contained page that shows exactly what was evaluated."""

from __future__ import annotations

import base64
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sqsegv3_ros.cli import main
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI, LabelSet
from sqsegv3_ros.data.semantic_kitti import write_labels, write_scan
from sqsegv3_ros.evaluation.evaluator import Evaluator
from sqsegv3_ros.evaluation.html_report import CLOUD_POINTS, Sample, build_report

CAR, ROAD = SEMANTIC_KITTI.index("car"), SEMANTIC_KITTI.index("road")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A parsed page: its text, its attributes, its open elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.attributes, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def images(self) -> list[bytes]:
        sources = [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]
        return [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]


def clouds_in(html: str) -> list[dict]:
    return json.loads(re.search(r'id="cloud-data">(.*?)</script>', html, re.DOTALL).group(1))["scans"]


def sample(name="00/000000", count=200, seed=0, wrong=0.2) -> Sample:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-40, 40, (count, 4)).astype(np.float32)
    truth = rng.choice([CAR, ROAD], count)
    return Sample(name, points, np.where(rng.random(count) < wrong, 0, truth), truth)


def summary_of(*samples: Sample, labels: LabelSet = SEMANTIC_KITTI) -> dict:
    evaluator = Evaluator(labels)
    for one in samples:
        evaluator.add(one.name, one.points, one.prediction, one.ground_truth)
    return evaluator.summary()


@pytest.fixture
def evaluated(tmp_path):
    """An evaluated data set of three scans, each worse than the one before."""
    for number, wrong in enumerate((0.0, 0.2, 0.6)):
        one = sample(seed=number, wrong=wrong)
        folder = tmp_path / "data/sequences/00"
        write_scan(folder / f"velodyne/00000{number}.bin", one.points)
        write_labels(folder / f"labels/00000{number}.label", SEMANTIC_KITTI.to_raw(one.ground_truth))
        swapped = np.where(one.prediction == 0, CAR + ROAD - one.ground_truth, one.ground_truth)
        predicted = tmp_path / f"predicted/sequences/00/predictions/00000{number}.label"
        write_labels(predicted, SEMANTIC_KITTI.to_raw(swapped))
    evaluate = ["evaluate", "--dataset", str(tmp_path / "data"), "--predictions", str(tmp_path / "predicted")]
    assert main([*evaluate, "--json", str(tmp_path / "evaluation.json")]) == 0
    return tmp_path


def report(root: Path, *arguments: str) -> str:
    output = root / "report.html"
    assert main(["report", *arguments, "--output", str(output), "--force"]) == 0
    return output.read_text()


def test_the_page_is_well_formed_and_self_contained(evaluated):
    html = report(evaluated, str(evaluated / "evaluation.json"))
    page = Page(html)
    assert not page.open
    for _, name, value in page.attributes:
        assert name not in ("href", "srcset", "action")
        if name == "src":
            assert value.startswith("data:")
    assert "default-src 'none'" in html
    assert not re.search(r"https?://|@import|url\(", html)


def test_the_numbers_of_the_evaluation_are_on_the_page(evaluated):
    page = Page(report(evaluated, str(evaluated / "evaluation.json")))
    evaluation = json.loads((evaluated / "evaluation.json").read_text())
    for number in (evaluation["miou"], evaluation["miou_present"], evaluation["accuracy"], evaluation["iou"]["car"]):
        assert f"{100 * number:.1f}" in page.text
    assert f"{evaluation['support']['car']:,}" in page.text
    missed = evaluation["confusion"]["counts"][ROAD][CAR]
    assert f"car predicted as road: {missed:,} points" in [
        value for _, name, value in page.attributes if name == "title"
    ]


def test_the_worst_scans_come_first_with_six_pictures_each(evaluated):
    html = report(evaluated, str(evaluated / "evaluation.json"), "--worst", "2")
    assert [cloud["name"] for cloud in clouds_in(html)] == ["00/000002", "00/000001"]
    images = Page(html).images()
    assert len(images) == 12
    assert all(image.startswith(b"\x89PNG\r\n\x1a\n") for image in images)


def test_without_an_evaluation_the_folders_are_evaluated_first(evaluated):
    folders = ["--dataset", str(evaluated / "data"), "--predictions", str(evaluated / "predicted")]
    now = Page(report(evaluated, *folders))
    before = Page(report(evaluated, str(evaluated / "evaluation.json")))
    assert set(before.text) <= set(now.text)
    assert "border" in now.text


def test_the_same_evaluation_gives_the_same_page_byte_by_byte(evaluated):
    arguments = [str(evaluated / "evaluation.json")]
    assert report(evaluated, *arguments) == report(evaluated, *arguments)


def test_the_cloud_has_points_in_centimetres_and_labels():
    one = sample(count=50)
    points = one.points.copy()
    points[3, 0], points[4, 1] = np.nan, 1000  # left out
    cloud = clouds_in(build_report(summary_of(one), [replace(one, points=points)]))[0]
    planes = np.frombuffer(base64.b64decode(cloud["points"]), dtype="<i2").reshape(5, -1)
    kept = np.delete(np.arange(50), [3, 4])
    np.testing.assert_allclose(planes[:3].T / 100, points[kept, :3], atol=0.00501)
    assert np.array_equal(planes[3], one.prediction[kept])
    assert np.array_equal(planes[4], one.ground_truth[kept])


def test_a_large_cloud_is_subsampled_evenly():
    one = sample(count=3 * CLOUD_POINTS)
    cloud = clouds_in(build_report(summary_of(one), [one]))[0]
    planes = np.frombuffer(base64.b64decode(cloud["points"]), dtype="<i2").reshape(5, -1)
    assert planes.shape[1] == CLOUD_POINTS
    assert np.mean(planes[4] == CAR) == pytest.approx(np.mean(one.ground_truth == CAR), abs=0.02)


def test_latency_and_numbers_of_a_live_evaluation_are_shown():
    latency = [*range(1, 101)]  # 1..100 ms
    live = {"latency_ms": latency, "live": {"scans lost": 3, "rate (Hz)": 9.987654}}
    page = Page(build_report(summary_of(sample()) | live))
    text = " ".join(page.text)
    assert "100 scans: p50 50.5 ms, p95 95.0 ms, p99 99.0 ms, longest 100.0 ms" in text
    assert "scans lost 3" in text
    assert "9.988" in text
    heights = [float(value) for tag, name, value in page.attributes if (tag, name) == ("rect", "height")]
    bars = [value for value in page.text if re.fullmatch(r"\d+ scans", value)]
    assert len(bars) == len(heights)
    assert sum(int(bar.split()[0]) for bar in bars) == 100


def test_without_latency_there_is_no_histogram():
    assert "Latency" not in " ".join(Page(build_report(summary_of(sample()))).text)


def test_names_cannot_break_out_of_the_page():
    evil = '</script><script>alert("x")</script>'
    classes = tuple(replace(c, name=f"{evil}{i}") for i, c in enumerate(SEMANTIC_KITTI.classes))
    labels = LabelSet(evil, classes, dict(SEMANTIC_KITTI.raw_to_label))
    one = sample(name=f"00/{evil}")
    html = build_report(summary_of(one, labels=labels) | {"dataset": evil, "live": {evil: evil}}, [one], note=evil)
    assert "<script>alert" not in html
    assert not Page(html).open
    assert clouds_in(html)[0]["name"] == f"00/{evil}"


def test_predictions_that_changed_since_the_evaluation_are_refused(evaluated, capsys):
    path = evaluated / "predicted/sequences/00/predictions/000002.label"
    write_labels(path, np.full(200, 10))
    arguments = ["report", str(evaluated / "evaluation.json"), "--output", str(evaluated / "r.html")]
    assert main(arguments) == 2
    assert str(path) in capsys.readouterr().err
    assert not (evaluated / "r.html").exists()


def test_an_evaluation_from_another_machine_is_shown_without_pictures_and_says_so(evaluated, capsys):
    (evaluated / "predicted").rename(evaluated / "moved")
    html = report(evaluated, str(evaluated / "evaluation.json"))
    assert "No pictures" in " ".join(Page(html).text)
    assert "--predictions" in capsys.readouterr().err
    assert not Page(html).images()
    again = report(evaluated, str(evaluated / "evaluation.json"), "--predictions", str(evaluated / "moved"))
    assert Page(again).images()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot read"),
        ("[]", "is not an evaluation"),
        ('{"miou": 1}', "is not an evaluation"),
        ('{"format": "sqsegv3-evaluation", "format_version": 99}', "version 99"),
        ('{"format": "sqsegv3-evaluation", "format_version": 1}', "lacks label_set"),
    ],
)
def test_files_that_are_not_an_evaluation_are_refused(tmp_path, capsys, content, message):
    path = tmp_path / "e.json"
    path.write_text(content)
    assert main(["report", str(path), "--output", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error


def test_latencies_that_are_not_numbers_are_refused(tmp_path, capsys):
    path = tmp_path / "e.json"
    path.write_text(json.dumps(summary_of(sample()) | {"latency_ms": [1.0, "fast"]}))
    assert main(["report", str(path), "--output", str(tmp_path / "r.html")]) == 2
    assert "latency_ms" in capsys.readouterr().err


def test_pictures_need_pillow_and_a_report_without_them_does_not(evaluated, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    arguments = ["report", str(evaluated / "evaluation.json"), "--output", str(evaluated / "r.html")]
    assert main(arguments) == 2
    assert "Pillow" in capsys.readouterr().err
    assert main([*arguments, "--worst", "0"]) == 0


def test_wrong_use_is_refused(evaluated, capsys):
    evaluation, output = str(evaluated / "evaluation.json"), ["--output", str(evaluated / "r.html")]
    assert main(["report", *output]) == 2
    assert "--dataset" in capsys.readouterr().err
    assert main(["report", evaluation, "--sequences", "00", *output]) == 2
    assert main(["report", evaluation, "--output", str(evaluated / "r.txt")]) == 2
    (evaluated / "r.html").write_text("mine")
    assert main(["report", evaluation, *output]) == 2
    assert (evaluated / "r.html").read_text() == "mine"
