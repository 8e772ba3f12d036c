# SPDX-License-Identifier: Apache-2.0
"""What every test shares: where the reference data lies, and the environment in which ROS 2 runs in tests."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from live import Client

    from sqsegv3_ros.network.config import NetworkConfig

# nothing of a test leaves the machine, and tests that run side by side do not hear each other
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
# a worker of pytest-xdist has a domain of its own; the processes that it starts read this again, and share it with it
_DOMAIN = os.environ.get("ROS_DOMAIN_ID") or str(random.SystemRandom().randint(1, 100))
_FIRST_DOMAIN = int(os.environ.setdefault("SQSEGV3_TEST_DOMAIN", _DOMAIN))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
os.environ["ROS_DOMAIN_ID"] = str((_FIRST_DOMAIN + _WORKER - 1) % 100 + 1)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: its threads share two cores with other processes

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SQSEGV3_SHARED", ROOT.parent / "shared"))
DATA = SHARED / "data"
GOLDEN = SHARED / "golden"

needs_shared = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"needs the reference data in {SHARED} (set SQSEGV3_SHARED to its folder)"
)


needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs openvino: pip install openvino"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `cuda` if there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A ROS node of the test, on the domain of its worker."""
    from live import Client

    client = Client()
    yield client
    client.close()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with random weights, quick enough for a test: one block a stage, 1/4 of the channels, 64 x 256."""
    return make_model(tmp_path_factory.mktemp("model") / "small.pt", seed=1)  # which gives every class to some points


def make_model(
    path: Path, *, name: str = "small-random", width: int = 256, seed: int = 0, config: NetworkConfig | None = None
) -> Path:
    """Write a model file with random weights."""
    import torch

    from sqsegv3_ros.data.label_set import SEMANTIC_KITTI
    from sqsegv3_ros.inference.knn import KnnConfig
    from sqsegv3_ros.inference.model_file import ModelInfo
    from sqsegv3_ros.inference.range_image import Normalization, ProjectionConfig
    from sqsegv3_ros.network.config import NetworkConfig
    from sqsegv3_ros.network.export import export_model
    from sqsegv3_ros.network.model import SqueezeSegV3

    torch.manual_seed(seed)
    config = config or NetworkConfig(blocks=(1, 1, 1, 1, 1)).scaled(0.25)
    info = ModelInfo(
        name=name,
        architecture={},
        labels=SEMANTIC_KITTI,
        projection=ProjectionConfig(width=width),
        normalization=Normalization(),
        knn=KnnConfig(),
        sensor_height_m=1.73,
        provenance={"source": "random weights for tests"},
    )
    export_model(SqueezeSegV3(config), path, info=info)
    return path
