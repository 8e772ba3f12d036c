# SPDX-License-Identifier: Apache-2.0
"""What runs the network: how it is chosen, that every backend gives the same, and what is refused."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT, make_model, needs_openvino, needs_shared

from sqsegv3_ros.cli import main
from sqsegv3_ros.errors import UserError, install_command
from sqsegv3_ros.inference import backends
from sqsegv3_ros.inference.backends import has_native_bf16, make_backend, resolve_runtime, usable_cores
from sqsegv3_ros.inference.model_file import load_model
from sqsegv3_ros.inference.segmenter import Segmenter
from sqsegv3_ros.network.config import NetworkConfig

without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")


def points(count: int = 5000) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(count, 4)) * [15, 15, 1, 0.2]).astype(np.float32)


def without_package(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))


@needs_openvino
@pytest.mark.parametrize(("width", "padding"), [(64, "zero"), (200, "circular")])
def test_openvino_computes_what_torch_does(width: int, padding: str, tmp_path: Path) -> None:
    config = NetworkConfig.ssgv3_21(azimuth_padding=padding, attention_kernel=3).scaled(0.25)
    path = make_model(tmp_path / "model.pt", config=config)
    image = torch.randn(1, 5, 16, width, generator=torch.Generator().manual_seed(0))
    found = {}
    for backend in ("torch", "openvino"):
        network = make_backend(load_model(path), resolve_runtime(backend, "cpu", "fp32"), 16, width)
        with torch.inference_mode():
            found[backend] = network(image).softmax(1).clone()
    torch.testing.assert_close(found["openvino"], found["torch"], rtol=0, atol=5e-5)


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_official_weights_give_the_softmax_of_the_release(backend: str, tmp_path: Path) -> None:
    """The network's input and its softmax at full resolution, as the official release computes them for scan 0."""
    source = np.load(GOLDEN / "projection_000000.npz")
    golden = np.load(GOLDEN / "official_21_scan000000_64x2048.npz")
    channels = np.stack([source["proj_range"], *np.moveaxis(source["proj_xyz"], -1, 0), source["proj_remission"]])
    assert main(["import-official", str(GOLDEN / "official_21"), "--output", str(tmp_path / "official.pt")]) == 0
    model = load_model(tmp_path / "official.pt")
    normalization = model.info.normalization
    means, stds = (np.array(v, np.float32).reshape(5, 1, 1) for v in (normalization.means, normalization.stds))
    image = torch.from_numpy(((channels - means) / stds * source["proj_mask"]).astype(np.float32))[None]
    network = make_backend(model, resolve_runtime(backend, "cpu", "fp32"), 64, 2048)
    with torch.inference_mode():
        softmax = network(image)[0].softmax(0).numpy()
    # the golden itself is 1.3e-4 from the network in float64; with AVX-512 one value of OpenVINO's is 5.3e-5 from it
    atol = {"torch": 5e-5, "openvino": 6e-5}[backend]
    np.testing.assert_allclose(softmax[:, :, 960:1088], golden["softmax_crop_0"], rtol=0, atol=atol)
    clear = golden["margin_0"].astype(np.float32) > 1e-4
    assert clear.mean() > 0.9 and (softmax.argmax(0) == golden["argmax_0"])[clear].all()


@needs_openvino
@without_cuda
def test_auto_takes_openvino_and_bf16_only_on_a_cpu_whose_flags_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(backends, "has_native_bf16", lambda native=native: native)
        runtime = resolve_runtime()
        assert (runtime.backend, str(runtime.device), runtime.precision) == ("openvino", "cpu", precision)
        assert runtime.threads >= 1 and not runtime.hint


def test_bf16_is_read_from_the_flags_of_the_cpu() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    assert has_native_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)


@without_cuda
def test_without_openvino_torch_runs_in_fp32_and_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    without_package(monkeypatch, "openvino")
    runtime = resolve_runtime()
    assert (runtime.backend, runtime.precision) == ("torch", "fp32")
    assert runtime.hint.endswith(install_command("openvino"))
    with pytest.raises(UserError, match=r"needs the Python package 'openvino': pip install .*openvino"):
        resolve_runtime("openvino")


@pytest.mark.slow
def test_the_segmenter_runs_without_openvino_installed(small_model: Path) -> None:
    program = (
        "import sys; sys.modules['openvino'] = None\n"
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'openvino' else find(name, *rest)\n"
        "import numpy as np; from sqsegv3_ros.inference.segmenter import Segmenter\n"
        f"s = Segmenter({str(small_model)!r}, device='cpu'); s.warm_up(1000); print(s.runtime.backend)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "torch", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "tensorrt"}, "backend must be one of auto, torch, openvino, found 'tensorrt'"),
        ({"precision": "int8"}, "precision must be one of auto, fp32, fp16, bf16, found 'int8'"),
        ({"device": "tpu"}, "auto, cuda, cpu"),
        ({"threads": 0}, "threads must be in 1..1024, found 0"),
        ({"device": "cpu", "cuda_graph": True}, "requires a CUDA device; the device is cpu"),
    ],
)
def test_what_cannot_be_used_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_runtime(**arguments)


@needs_openvino
def test_bf16_that_openvino_would_emulate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_native_bf16", lambda: False)
    with pytest.raises(UserError, match="needs a CPU with avx512_bf16 or amx_bf16"):
        resolve_runtime("openvino", "cpu", "bf16")


@needs_openvino
def test_a_precision_that_openvino_does_not_take_is_an_error(small_model: Path) -> None:
    """OpenVINO ignores a hint that it cannot keep; fp16 arithmetic is there on few CPUs."""
    runtime = resolve_runtime("openvino", "cpu", "fp16")
    try:
        make_backend(load_model(small_model), runtime, 64, 256)
    except UserError as error:
        assert "instead of fp16; use precision 'auto'" in str(error)


@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_an_image_width_that_the_network_cannot_take_is_refused(backend: str, small_model: Path) -> None:
    with pytest.raises(UserError, match=r"must be a multiple of 8, at least 8, .*found 60"):
        make_backend(load_model(small_model), resolve_runtime(backend, "cpu"), 64, 60)


@needs_openvino
def test_openvino_refuses_an_image_of_another_size_than_it_was_compiled_for(small_model: Path) -> None:
    network = make_backend(load_model(small_model), resolve_runtime("openvino", "cpu"), 64, 256)
    with pytest.raises(UserError, match=r"compiled for an image \(1, 5, 64, 256\), found \(1, 5, 64, 128\)"):
        network(torch.zeros(1, 5, 64, 128))


@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=needs_openvino)])
def test_warm_up_refuses_logits_that_are_not_finite(backend: str, small_model: Path) -> None:
    model = load_model(small_model)
    with torch.no_grad():
        dict(model.network.named_parameters())["network.heads.0.conv.bias"][3] = float("inf")
    segmenter = Segmenter(model, backend=backend, device="cpu", precision="fp32")
    with pytest.raises(UserError, match=r"non-finite logits \(.*fp32"):
        segmenter.warm_up(points=100)


def test_warm_up_refuses_a_network_that_gives_another_image(small_model: Path) -> None:
    model = load_model(small_model)
    one_class = torch.jit.trace(torch.nn.Conv2d(5, 1, 1), torch.zeros(1, 5, 8, 8))
    segmenter = Segmenter(replace(model, network=cast(Any, one_class)), backend="torch", device="cpu")
    with pytest.raises(UserError, match=r"returned logits \(1, 1, 64, 256\) for a 64 x 256 image and 20 classes"):
        segmenter.warm_up(points=100)


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_the_whole_pipeline_labels_alike_with_both_backends(precision: str, small_model: Path) -> None:
    expected = Segmenter(small_model, backend="torch", device="cpu", precision="fp32").segment(points())
    found = Segmenter(small_model, backend="openvino", device="cpu", precision=precision).segment(points())
    assert (found.labels == expected.labels).mean() > (0.999 if precision == "fp32" else 0.9)
    np.testing.assert_allclose(found.confidences, expected.confidences, atol=1e-3 if precision == "fp32" else 0.2)


@pytest.mark.slow
@needs_openvino
def test_configuring_opens_no_connection(small_model: Path) -> None:
    """OpenVINO sends usage statistics when it is imported and when it converts a model, unless it is kept from it."""
    program = (
        "import socket, sys\n"
        "def refuse(*_): print('CONNECTION'); raise OSError('no network in this test')\n"
        "socket.socket.connect = socket.socket.connect_ex = refuse; socket.getaddrinfo = refuse\n"
        "from sqsegv3_ros.inference.segmenter import Segmenter\n"
        f"s = Segmenter({str(small_model)!r}, backend='openvino', device='cpu'); s.warm_up(1000)\n"
        "import time; time.sleep(1); print('configured')\n"  # statistics are sent by a thread
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["configured"], done.stdout + done.stderr


@needs_openvino
def test_inspect_names_what_runs_the_model(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--runtime", "--backend", "openvino", "--precision", "fp32", "--threads", "1"]
    assert main(["inspect", str(small_model), *options]) == 0
    assert "backend openvino, device cpu, precision fp32, threads 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--backend", "torch"], "backend torch"), (["--device", "cpu"], "device cpu"), (["--threads", "1"], "threads 1")],
)
def test_inspect_names_what_runs_the_model_if_a_runtime_option_is_given(
    small_model: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["inspect", str(small_model), *options]) == 0
    assert words in capsys.readouterr().out
    assert main(["inspect", str(small_model)]) == 0
    assert words not in capsys.readouterr().out


def test_torch_runs_the_network_with_the_threads_asked_for_and_leaves_torch_as_it_was(small_model: Path) -> None:
    before, used = torch.get_num_threads(), []
    segmenter = Segmenter(small_model, backend="torch", device="cpu", precision="fp32", threads=1)
    network = segmenter._network._network
    segmenter._network._network = lambda image: used.append(torch.get_num_threads()) or network(image)
    segmenter.segment(points())
    assert used == [1] and torch.get_num_threads() == before


@needs_openvino
def test_signals_are_handled_after_networks_were_compiled_and_deleted(small_model: Path) -> None:
    """OpenVINO gives the compiling thread a signal stack, which must not be unmapped while the thread has it."""
    program = f"""if True:
        import signal
        from sqsegv3_ros.inference.segmenter import Segmenter

        first, second = (Segmenter({str(small_model)!r}, backend="openvino", precision="fp32") for _ in range(2))
        del first, second
        signal.signal(signal.SIGINT, lambda *_: print("handled"))
        signal.raise_signal(signal.SIGINT)
    """
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


@needs_openvino
def test_threads_that_configure_at_once_share_one_openvino_core() -> None:
    backends._make_openvino_core.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        cores = list(pool.map(lambda _: backends._openvino_core(), range(8)))
    assert len({id(core) for core in cores}) == 1


def test_two_precisions_of_one_model_file_do_not_disturb_each_other(small_model: Path) -> None:
    model = load_model(small_model)
    options: dict[str, Any] = {"backend": "torch", "device": "cpu"}
    expected = Segmenter(small_model, precision="fp32", **options).segment(points())
    half = Segmenter(model, precision="bf16", **options)
    full = Segmenter(model, precision="fp32", **options)
    np.testing.assert_array_equal(full.segment(points()).labels, expected.labels)
    rounded = half.segment(points())
    assert (rounded.labels == expected.labels).mean() > 0.9
    assert (rounded.confidences != expected.confidences).any()


def test_the_torch_backend_is_made_without_a_warning(small_model: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for precision in ("fp32", "bf16"):
            make_backend(load_model(small_model), resolve_runtime("torch", "cpu", precision), 64, 256)


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("?", 8)])
def test_a_container_uses_no_more_threads_than_its_quota(
    quota: str, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(Path, "read_text", lambda *_: quota)
    assert usable_cores() == cores


@needs_openvino
def test_ctrl_c_while_openvino_converts_ends_with_keyboard_interrupt(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO itself drops it, or reports it as an error of the model."""
    from openvino.frontend.pytorch import ts_decoder

    class Interrupted(ts_decoder.TorchScriptPythonDecoder):  # type: ignore[misc, no-any-unimported]
        sent = 0

        def get_op_type(self) -> Any:  # called from C++
            Interrupted.sent += 1
            if Interrupted.sent in (1, 20):
                os.kill(os.getpid(), signal.SIGINT)
            return super().get_op_type()

    model, runtime = load_model(small_model), resolve_runtime("openvino", "cpu")
    monkeypatch.setattr(ts_decoder, "TorchScriptPythonDecoder", Interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            make_backend(model, runtime, 64, 256)
        assert Interrupted.sent > 20 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@needs_openvino
def test_a_network_that_openvino_cannot_convert_is_refused(small_model: Path) -> None:
    class Eigenvalues(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(image @ image.transpose(2, 3)).real

    network = torch.jit.trace(Eigenvalues(), torch.ones(1, 5, 8, 8))
    model = replace(load_model(small_model), network=network)
    with pytest.raises(UserError, match=r"OpenVINO cannot convert model .*small\.pt: .*--backend torch"):
        make_backend(model, resolve_runtime("openvino", "cpu"), 64, 256)
