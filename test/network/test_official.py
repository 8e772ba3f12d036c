# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders of the official release: read completely and numerically correct, or refused with every reason."""

from __future__ import annotations

import copy
import shutil
import zipfile

import pytest
import torch
import yaml
from conftest import GOLDEN, needs_shared

from sqsegv3_ros import cli
from sqsegv3_ros.data.label_set import SEMANTIC_KITTI_MULTISCAN
from sqsegv3_ros.errors import UserError
from sqsegv3_ros.inference.model_file import load_model, read_info
from sqsegv3_ros.network.config import NetworkConfig
from sqsegv3_ros.network.model import SqueezeSegV3
from sqsegv3_ros.network.official import load_official
from sqsegv3_ros.network.official_keys import FILES, official_key

CLASSES = 3
ARCH = {
    "backbone": {
        "name": "SAC",
        "input_depth": {"range": True, "xyz": True, "remission": True},
        "dropout": 0.02,
        "bn_d": 0.03,
        "OS": 8,
        "extra": {"layers": 21},
    },
    "decoder": {"name": "SAC", "dropout": 0.04, "bn_d": 0.03, "extra": False},
    "head": {"name": "segmentation", "dropout": 0.05},
    "post": {"KNN": {"use": True, "params": {"knn": 7, "search": 9, "sigma": 2, "cutoff": 0.5}}},
    "dataset": {
        "sensor": {
            "type": "spherical",
            "fov_up": 10,
            "fov_down": -30.5,
            "img_prop": {"width": 1024, "height": 32},
            "img_means": [-1.04, 10.88, 0.23, 12.12, 0.21],  # the order of the 53: range and z swapped
            "img_stds": [0.86, 11, 6.91, 12.32, 0.16],
        }
    },
}
DATA = {
    "name": "toy",
    "labels": {0: "unlabeled", 10: "car", 40: "road"},
    "color_map": {0: [0, 0, 0], 10: [245, 150, 100], 40: [255, 0, 255]},
    "learning_map": {0: 0, 10: 1, 40: 2},
    "learning_map_inv": {0: 0, 1: 10, 2: 40},
    "learning_ignore": {0: True, 1: False, 2: False},
}


def state_of(model):
    """{file: {key: tensor}} as the release would save the model."""
    files = {file: {} for file in FILES}
    for key, value in model.state_dict().items():
        file, name = official_key(key)
        files[file][name] = value
    return files


def write_folder(folder, files, *, arch=ARCH, data=DATA, suffix="", **save_options):
    folder.mkdir(exist_ok=True)
    (folder / "arch_cfg.yaml").write_text(yaml.safe_dump(arch))
    (folder / "data_cfg.yaml").write_text(yaml.safe_dump(data))
    for file, state in files.items():
        torch.save(state, folder / f"{file}{suffix}", **save_options)
    return folder


@pytest.fixture(scope="module")
def toy():
    """A network with 3 classes and random weights."""
    torch.manual_seed(1)
    return SqueezeSegV3(NetworkConfig.ssgv3_21(num_classes=CLASSES))


@pytest.fixture
def files(toy):
    return state_of(toy)


def changed(settings, path, value):
    settings = copy.deepcopy(settings)
    *parents, last = path.split(".")
    place = settings
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return settings


def assert_same_weights(found, expected):
    expected = expected.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())


def test_settings_are_read_from_the_files_of_the_folder(tmp_path, files, toy):
    checkpoint = load_official(write_folder(tmp_path / "c", files))
    assert_same_weights(checkpoint.model, toy)
    assert not checkpoint.model.training
    assert checkpoint.normalization.means == (-1.04, 10.88, 0.23, 12.12, 0.21)
    assert checkpoint.normalization.stds == (0.86, 11.0, 6.91, 12.32, 0.16)
    projection = checkpoint.projection
    assert (projection.height, projection.width) == (32, 1024)
    assert (projection.fov_up_deg, projection.fov_down_deg) == (10.0, -30.5)
    assert (projection.keep, projection.outside_fov, projection.official_mask) == ("nearest", "clamp", False)
    knn = checkpoint.knn
    assert (knn.mode, knn.k, knn.search, knn.sigma, knn.cutoff_m) == ("safe", 7, 9, 2.0, 0.5)
    config = checkpoint.config
    assert (config.dropout, config.decoder_dropout, config.head_dropout) == (0.02, 0.04, 0.05)
    assert (config.bn_momentum, config.num_classes) == (0.03, 3)
    assert checkpoint.labels.names == ("unlabeled", "car", "road")


def test_parity_reproduces_the_releases_mask_and_vote(tmp_path, files):
    folder = write_folder(tmp_path / "c", files)
    checkpoint = load_official(folder, parity=True)
    assert checkpoint.projection.official_mask
    assert checkpoint.knn.mode == "official"
    (folder / "arch_cfg.yaml").write_text(yaml.safe_dump(changed(ARCH, "post.KNN.use", False)))
    assert load_official(folder, parity=True).knn.mode == "off"
    assert load_official(folder).knn.mode == "off"


def test_legacy_pickle_and_dataparallel_prefix_are_read(tmp_path, files, toy):
    wrapped = {file: {f"module.{key}": value for key, value in state.items()} for file, state in files.items()}
    folder = write_folder(tmp_path / "c", wrapped, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(folder / "backbone")
    assert_same_weights(load_official(folder).model, toy)


def test_best_and_train_weights_are_distinguished(tmp_path, files, toy):
    folder = write_folder(tmp_path / "c", files)
    torch.manual_seed(2)
    other = SqueezeSegV3(toy.config)
    write_folder(folder, state_of(other), suffix="_train")
    assert_same_weights(load_official(folder, "best").model, toy)
    assert_same_weights(load_official(folder, "train").model, other)


def test_error_mentions_that_only_train_weights_are_there(tmp_path, files):
    folder = write_folder(tmp_path / "c", files, suffix="_train")
    with pytest.raises(
        UserError, match=r"lacks backbone, segmentation_decoder.*the folder has only the 'train' weights"
    ):
        load_official(folder)
    load_official(folder, "train")


def test_every_missing_file_is_named(tmp_path, files):
    folder = write_folder(tmp_path / "c", files)
    for file in ("backbone", "segmentation_head3"):
        (folder / file).unlink()
    with pytest.raises(UserError, match=r"lacks backbone, segmentation_head3 \(weights 'best'\)$"):
        load_official(folder)
    with pytest.raises(UserError, match="is not a folder"):
        load_official(tmp_path / "nowhere")
    (folder / "arch_cfg.yaml").unlink()
    with pytest.raises(UserError, match=r"has no arch_cfg\.yaml; a folder of the official release holds"):
        load_official(folder)


def test_missing_unexpected_misshapen_and_non_finite_weights_are_all_named(tmp_path, files):
    del files["backbone"]["enc2.bn.running_var"]
    files["segmentation_decoder"]["dec9.conv.weight"] = torch.zeros(1)
    files["backbone"]["conv1.weight"] = torch.zeros(32, 4, 3, 3)
    files["segmentation_head5"]["1.bias"] = torch.tensor([0.0, float("nan"), 0.0])
    with pytest.raises(UserError) as error:
        load_official(write_folder(tmp_path / "c", files))
    message = str(error.value)
    assert "missing backbone: enc2.bn.running_var" in message
    assert "unexpected segmentation_decoder: dec9.conv.weight" in message
    assert "wrong shape backbone: conv1.weight is (32, 4, 3, 3), expected (32, 5, 3, 3)" in message
    assert "not finite segmentation_head5: 1.bias" in message


def test_long_list_of_problems_is_truncated_with_a_count(tmp_path, files):
    arch = changed(ARCH, "backbone.extra.layers", 53)
    with pytest.raises(UserError, match=r"missing backbone: enc2\.residual_1[\s\S]*and 326 more"):
        load_official(write_folder(tmp_path / "c", files, arch=arch))  # 507 - 171 keys are missing, 10 of them listed


def test_heads_and_label_set_must_have_the_same_classes(tmp_path, files):
    data = changed(DATA, "learning_map_inv", {0: 0, 1: 10})
    data["learning_map"] = {0: 0, 10: 1, 40: 1}
    data["learning_ignore"] = {0: True, 1: False}
    with pytest.raises(UserError, match=r"data_cfg\.yaml has 2 classes .* other numbers: segmentation_head5 3"):
        load_official(write_folder(tmp_path / "c", files, data=data))


def test_multi_scan_checkpoint_with_26_labels_is_read(tmp_path):
    labels = SEMANTIC_KITTI_MULTISCAN
    data = {
        "name": "kitti",
        "labels": {c.raw_id: c.name for c in labels.classes},
        "color_map": {c.raw_id: list(c.color[::-1]) for c in labels.classes},
        "learning_map": dict(labels.raw_to_label),
        "learning_map_inv": {label: c.raw_id for label, c in enumerate(labels.classes)},
    }
    model = SqueezeSegV3(NetworkConfig.ssgv3_21(num_classes=26))
    checkpoint = load_official(write_folder(tmp_path / "c", state_of(model), data=data))
    assert len(checkpoint.labels) == checkpoint.config.num_classes == 26
    assert_same_weights(checkpoint.model, model)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("backbone.name", "darknet", r"is a RangeNet\+\+ checkpoint"),
        ("backbone.name", "resnet", "backbone.name must be 'SAC'"),
        ("backbone.extra.layers", 34, "layers must be 21 or 53, found 34"),
        ("backbone.OS", 16, "OS must be 8, found 16"),
        ("backbone.input_depth.remission", False, "input_depth disables remission"),
        ("dataset.sensor.img_means", None, "has no entry 'dataset.sensor.img_means'"),
        ("dataset.sensor.img_means", [1, 2], "means must be five finite numbers"),
        ("dataset.sensor.img_stds", [1, 2, "x", 4, 5], "must be numbers"),
        ("dataset.sensor.img_prop.width", "wide", "must be a int, found 'wide'"),
        ("dataset.sensor.img_prop.width", 2044, "multiple of 8"),
        ("dataset.sensor.type", "solid-state", "must be 'spherical'"),
        ("post", None, "has no entry 'post.KNN.use'"),
    ],
)
def test_unsupported_architecture_is_refused_naming_the_entry(tmp_path, path, value, message):
    with pytest.raises(UserError, match=message):
        load_official(write_folder(tmp_path / "c", {}, arch=changed(ARCH, path, value)))


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 broken zip", "code", "list"])
def test_unreadable_weights_are_refused_without_running_code(tmp_path, files, content):
    folder = write_folder(tmp_path / "c", files)
    victim = folder / "segmentation_head2"
    if content == "code":
        torch.save({"1.weight": Touch(tmp_path / "ran")}, victim)
    elif content == "list":
        torch.save([torch.zeros(1)], victim)
    else:
        victim.write_bytes(content)
    with pytest.raises(UserError, match="segmentation_head2"):
        load_official(folder)
    assert not (tmp_path / "ran").exists()


class Touch:
    """A pickle of this creates a file when it is loaded carelessly."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@needs_shared
def test_real_legacy_file_of_the_release_is_read(tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(GOLDEN / "official_21", folder)
    shutil.copy(GOLDEN / "legacy_format_segmentation_head5", folder / "segmentation_head5")
    found, expected = load_official(folder).model, load_official(GOLDEN / "official_21").model
    assert_same_weights(found.heads[0], expected.heads[0])


@pytest.mark.slow
def test_imported_model_file_computes_the_same_as_the_checkpoint(tmp_path, files, toy, capsys):
    folder, output = write_folder(tmp_path / "toy-21", files), tmp_path / "model.pt"
    assert cli.main(["import-official", str(folder), "--output", str(output)]) == 0
    info = read_info(output)
    assert (info.name, info.weights_dtype) == ("toy-21", "float32")
    assert NetworkConfig.from_dict(info.architecture).num_classes == 3
    image = torch.randn(1, 5, 8, 64)
    with torch.no_grad():
        expected = toy.eval()(image)[0].softmax(1)
        found = load_model(output).network(image).softmax(1)
    assert (found - expected).abs().max() < 1e-5

    assert cli.main(["import-official", str(folder), "--output", str(output)]) == 2
    assert "--force" in capsys.readouterr().err
    assert cli.main(["import-official", str(folder), "--output", str(output), "--force", "--half"]) == 0
    assert read_info(output).weights_dtype == "float16"


def test_failed_import_leaves_no_file_behind(tmp_path, files, capsys):
    del files["backbone"]["conv1.weight"]
    folder, output = write_folder(tmp_path / "c", files), tmp_path / "model.pt"
    assert cli.main(["import-official", str(folder), "--output", str(output)]) == 2
    assert "missing backbone: conv1.weight" in capsys.readouterr().err
    assert not output.exists()


def test_model_file_contains_no_source_paths(tmp_path, files):
    import sqsegv3_ros

    folder, output = write_folder(tmp_path / "c", files), tmp_path / "model.pt"
    cli.main(["import-official", str(folder), "--output", str(output)])
    source = sqsegv3_ros.__path__[0].encode()
    with zipfile.ZipFile(output) as archive:
        assert not [name for name in archive.namelist() if source in archive.read(name)]
