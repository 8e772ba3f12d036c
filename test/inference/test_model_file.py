# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import resource
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.knn import KnnConfig
from sqsegv3_ros.inference.model_file import (
    INFO_FILE,
    STATE_FILE,
    ModelInfo,
    default_model,
    find_model,
    load_model,
    read_info,
    read_training_state,
    save_model,
    shipped_models,
    weights_sha256,
)
from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig

INFO = ModelInfo(
    name="test model",
    architecture={"blocks": [1, 1]},
    labels=SEMANTIC_KITTI,
    projection=ProjectionConfig(width=512, keep="farthest"),
    normalization=Normalization((1.0, 2.0, 3.0, 4.0, 5.0)),
    knn=KnnConfig("safe", 7, 7),
    sensor_height_m=1.73,
    provenance={"licence": "CC0", "metrics": {"miou": 0.5}},
)
STATE = {"stem.weight": torch.arange(6.0).view(2, 3), "stem.norm.num_batches_tracked": torch.tensor(7)}


def scripted() -> torch.jit.ScriptModule:
    torch.manual_seed(0)
    return torch.jit.script(torch.nn.Conv2d(5, 20, 3, padding=1).eval())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "model.pt", scripted(), INFO, STATE)
    return tmp_path / "model.pt"


def rewrite(source: Path, target: Path, change: dict[str, bytes | None]) -> Path:
    """Copy an archive with some entries replaced (or, None, left out), named by how they end."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            key = next((k for k in change if name.endswith(k)), None)
            content = old.read(name) if key is None else change[key]
            if content is not None:
                new.writestr(name, content)
    return target


def test_what_is_saved_comes_back_with_the_same_outputs(model: Path) -> None:
    model_file = load_model(model)
    image = torch.rand(1, 5, 8, 16)
    assert torch.equal(model_file.network(image), scripted()(image))
    info = model_file.info
    for name in ("name", "architecture", "projection", "normalization", "knn", "sensor_height_m", "provenance"):
        assert getattr(info, name) == getattr(INFO, name)
    assert info.labels.classes == SEMANTIC_KITTI.classes
    assert (info.weights_dtype, info.weights_sha256) == ("float32", weights_sha256(scripted()))


def test_half_weights_take_half_the_space_and_run_in_full_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = torch.jit.script(torch.nn.Conv2d(5, 2000, 3))
    save_model(tmp_path / "full.pt", wide, INFO, {})
    save_model(tmp_path / "half.pt", wide.half(), INFO, {})
    assert (tmp_path / "half.pt").stat().st_size < 0.55 * (tmp_path / "full.pt").stat().st_size
    model_file = load_model(tmp_path / "half.pt")
    assert model_file.info.weights_dtype == "float16"
    assert model_file.network(torch.rand(1, 5, 8, 8)).dtype == torch.float32


def test_the_training_state_comes_back_and_nothing_in_the_file_is_run_for_it(model: Path, tmp_path: Path) -> None:
    state = read_training_state(model)
    assert state.keys() == STATE.keys() and all(torch.equal(state[name], STATE[name]) for name in STATE)
    damaged = rewrite(model, tmp_path / "damaged.pt", {STATE_FILE: b"garbage"})
    with pytest.raises(UserError, match=rf"damaged\.pt is damaged: its {STATE_FILE}"):
        read_training_state(damaged)
    with pytest.raises(UserError, match=f"has no {STATE_FILE}"):
        read_training_state(rewrite(model, tmp_path / "without.pt", {STATE_FILE: None}))


def test_the_description_is_read_without_loading_the_network(model: Path, tmp_path: Path) -> None:
    no_network = rewrite(model, tmp_path / "no_network.pt", {"data.pkl": b"garbage"})
    assert read_info(no_network).name == "test model"
    with pytest.raises(UserError, match="is damaged"):
        load_model(no_network)


@pytest.mark.parametrize("size", [0, 100, 0.5, 0.99])
def test_a_truncated_file_is_explained(model: Path, tmp_path: Path, size: float) -> None:
    data = model.read_bytes()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(data[: int(size if size > 1 else size * len(data))])
    for read in (read_info, load_model):
        with pytest.raises(UserError, match=r"cut\.pt .*truncated or not a model file"):
            read(cut)


def test_a_foreign_torchscript_file_and_a_foreign_zip_are_explained(tmp_path: Path) -> None:
    scripted().save(str(tmp_path / "foreign.pt"))
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    for name in ("foreign.pt", "foreign.zip"):
        with pytest.raises(UserError, match=r"foreign\..* has no sqsegv3\.json"):
            load_model(tmp_path / name)


def description(**changes: object) -> bytes:
    return json.dumps({**INFO.to_dict(), **changes}).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (description(width_multiple=0), "width_multiple must be a whole number of 1 or more, found 0"),
        (description(sensor_height_m="tall"), "sensor_height_m must be above 0.*found 'tall'"),
        (description(format_version=99), "format version 99.*reads version 2.*update"),
        (description(format_version=1), "format version 1.*reads version 2.*export the model again"),
        (description(format="something else"), "not written by sqsegv3_ros"),
        (description(projection={"width": 12}), "multiple of 8"),
        (description(projection={"widht": 16}), "unknown setting widht"),
        (description(labels={}), "label set"),
        (description(knn=None), "knn|NoneType"),
        (b"{", "damaged"),
        (b"[]", "not written by sqsegv3_ros"),
    ],
)
def test_a_wrong_description_is_explained(model: Path, tmp_path: Path, content: bytes, message: str) -> None:
    wrong = rewrite(model, tmp_path / "wrong.pt", {INFO_FILE: content})
    with pytest.raises(UserError, match=rf"wrong\.pt .*({message})"):
        read_info(wrong)


def test_weights_that_were_changed_are_noticed(model: Path, tmp_path: Path) -> None:
    other = torch.jit.script(torch.nn.Conv2d(5, 20, 3, padding=1).eval())
    buffer = io.BytesIO()
    torch.jit.save(other, buffer, _extra_files={INFO_FILE: json.dumps(read_info(model).to_dict())})
    (tmp_path / "swapped.pt").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="its weights have sha256"):
        load_model(tmp_path / "swapped.pt")


def test_a_pinned_sha256_is_held_to(model: Path) -> None:
    digest = load_model(model).sha256
    assert load_model(model, sha256=digest.upper()).sha256 == digest
    with pytest.raises(UserError, match=f"has sha256 {digest}, expected {'0' * 64}"):
        load_model(model, sha256="0" * 64)


def test_a_file_that_is_not_there_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model file .*none\.pt"):
        read_info(tmp_path / "none.pt")
    with pytest.raises(UserError, match="is not a file"):
        read_info(tmp_path)


def test_a_file_that_grows_after_its_size_was_read_is_not_copied_beyond_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sqsegv3_ros.inference.model_file.MAX_FILE_BYTES", 100)
    with pytest.raises(UserError, match=r"/proc/self/maps grew beyond the limit of 100 bytes"):
        load_model("/proc/self/maps")  # its size is 0, its content longer


def test_too_many_open_files_are_a_message(model: Path) -> None:
    load_model(model)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(UserError, match=r"cannot read model .*model\.pt: Too many open files"):
            load_model(model)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_model_of_mixed_types_is_not_saved(tmp_path: Path) -> None:
    mixed = torch.nn.Sequential(torch.nn.Conv2d(5, 5, 1), torch.nn.Conv2d(5, 5, 1).half())
    with pytest.raises(UserError, match="all weights as float32 or all as float16"):
        save_model(tmp_path / "mixed.pt", torch.jit.script(mixed), INFO, {})
    assert not (tmp_path / "mixed.pt").exists()


def test_the_shipped_model_is_found_beside_an_installed_package(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "install/share/sqsegv3_ros"
    (share / "models").mkdir(parents=True)
    (share / "package.xml").write_text("<package/>")
    shipped = share / "models/default.pt"
    shipped.write_bytes(model.read_bytes())
    monkeypatch.setattr("sqsegv3_ros.files.__file__", str(tmp_path / "install/lib/python3/site-packages/p/share.py"))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    assert default_model() == shipped
    monkeypatch.setattr("sqsegv3_ros.files.__file__", str(tmp_path / "elsewhere/a/b/c/d/e/f/share.py"))
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path / "install"))
    assert default_model() == shipped


def test_a_model_for_non_commercial_use_states_its_licence_when_chosen_and_is_not_installed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find_model("kitti")
    assert "kitti: the licence of its weights is CC BY-NC-SA 4.0, not for commercial use" in caplog.text
    assert read_info(find_model("kitti")).licence.startswith("CC BY-NC-SA 4.0")
    monkeypatch.setattr("sqsegv3_ros.inference.model_file.shipped_models", lambda: {"default": model})
    with pytest.raises(UserError, match=r"not installed: give the path of models/kitti.pt"):
        find_model("kitti")


def test_models_that_ship_are_found_by_name_and_files_by_path(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = shipped_models()
    assert {"default", "kitti"} <= shipped.keys()
    monkeypatch.chdir(tmp_path)
    assert find_model(None) == find_model("") == find_model("default") == shipped["default"]
    assert find_model("kitti") == shipped["kitti"]
    assert find_model(str(model)) == find_model(model) == model
    (tmp_path / "kitti").mkdir()  # a folder is no model
    assert find_model("kitti") == shipped["kitti"]
    (tmp_path / "kitti").rmdir()
    (tmp_path / "kitti").write_bytes(model.read_bytes())  # a file that happens to have the name
    assert find_model("kitti") == shipped["kitti"]
    assert find_model("./kitti") == Path("kitti")
    assert find_model("~/mine.pt") == Path.home() / "mine.pt"
    with pytest.raises(UserError, match=r"not found: no such file, and the shipped models are default, kitti"):
        find_model("kiti")
    assert find_model("/nowhere/mine.pt") == Path("/nowhere/mine.pt")  # who reads it says so


def test_the_end_of_torchscript_is_not_announced_to_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # as torch does on Python 3.14
    def warning(name: str) -> Any:
        function = getattr(torch.jit, name)

        def warn(*arguments: Any, **options: Any) -> Any:
            warnings.warn(f"`torch.jit.{name}` is not supported in Python 3.14+ and may break.", FutureWarning, 2)
            return function(*arguments, **options)

        return warn

    network = torch.jit.script(torch.nn.Conv2d(5, 20, 3, padding=1).eval())
    for name in ("load", "save"):
        monkeypatch.setattr(torch.jit, name, warning(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(tmp_path / "model.pt", network, INFO, STATE)
        load_model(tmp_path / "model.pt")
