from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf

from abbe import create_patch_encoder
from abbe.errors import ConfigError, InputError
from abbe.slides.patch_encoders.timm import TimmEncoder
from abbe.slides.patch_encoders.timm_models import CLASS_AND_MEAN, MODEL_CARDS, ModelCard, model_card

PATCHES = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


def saved(folder: Path, *, seed: int = 0, arguments: dict | None = None, classes: int = 3, **data: object) -> Path:
    """A small vision transformer with random weights, written as timm writes models for the hub."""
    torch.manual_seed(seed)
    arguments = {**SHAPE, **(arguments or {})}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=classes, **arguments)
    config = {"input_size": [3, 32, 32], "crop_pct": 0.9, "interpolation": "bicubic", **data}
    save_for_hf(model, str(folder), model_config=None, model_args=arguments, safe_serialization=True)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    written["pretrained_cfg"].update(config)
    path.write_text(json.dumps(written))
    return folder


def opened(folder: Path, **options: str) -> TimmEncoder:
    encoder = create_patch_encoder(f"timm:local-dir:{folder}", **options)
    assert isinstance(encoder, TimmEncoder)
    return encoder


def test_features_are_those_of_timm_itself_on_pil_images(tmp_path):
    encode = opened(saved(tmp_path / "m"), device="cpu")
    model = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True, num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    images = torch.stack([transform(Image.fromarray(patch)) for patch in PATCHES])
    with torch.inference_mode():
        expected = model(images).numpy()
    found = encode(PATCHES)
    assert found.dtype == np.float32
    assert found.shape == (4, encode.width) == (4, 24)
    assert encode.input_size == (32, 32)
    # Pillow and torch resize with other rounding: one grey level here and there.
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert np.abs(expected[0] - expected[1]).max() > 0.3


def test_a_row_does_not_depend_on_its_batch_and_any_patch_size_is_taken(tmp_path):
    encode = opened(saved(tmp_path / "m"), device="cpu")
    together = encode(PATCHES)
    np.testing.assert_allclose(np.concatenate([encode(PATCHES[i : i + 1]) for i in range(4)]), together, atol=1e-5)
    np.testing.assert_allclose(encode(PATCHES[::-1])[::-1], together, atol=1e-5)
    assert encode(np.zeros((2, 64, 64, 3), np.uint8)).shape == (2, 24)
    assert encode(PATCHES[:0]).shape == (0, 24)
    locked = PATCHES.copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(encode(locked), together)


def test_normalisation_and_weights_are_the_models_own_and_make_the_version(tmp_path):
    one = opened(saved(tmp_path / "one"), device="cpu")
    again = opened(saved(tmp_path / "again"), device="cpu")
    colours = opened(saved(tmp_path / "colours", mean=[0.7, 0.6, 0.7], std=[0.2, 0.2, 0.2]), device="cpu")
    weights = opened(saved(tmp_path / "weights", seed=1), device="cpu")
    assert one.version == again.version
    np.testing.assert_array_equal(one(PATCHES), again(PATCHES))
    assert len({one.version, colours.version, weights.version}) == 3
    assert np.abs(one(PATCHES) - colours(PATCHES)).max() > 0.05
    assert np.abs(one(PATCHES) - weights(PATCHES)).max() > 0.05


def test_class_token_and_mean_of_patch_tokens_leave_registers_out(tmp_path, monkeypatch):
    folder = saved(tmp_path / "m", arguments={"reg_tokens": 4})
    plain = opened(folder, device="cpu")
    monkeypatch.setattr("abbe.slides.patch_encoders.timm.model_card", lambda _: ModelCard(pool=CLASS_AND_MEAN))
    encode = opened(folder, device="cpu")
    assert encode.width == 48
    assert encode.version != plain.version
    rows = encode(PATCHES)
    np.testing.assert_allclose(rows[:, :24], plain(PATCHES), atol=1e-5)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    with torch.inference_mode():
        tokens = model.forward_features(
            encode._normalise(encode._resize(torch.tensor(PATCHES).permute(0, 3, 1, 2)) / 255)
        )
    np.testing.assert_allclose(rows[:, 24:], tokens[:, 5:].mean(1).numpy(), atol=1e-5)


def test_a_convolutional_model_with_batch_statistics_is_taken(tmp_path):
    model = timm.create_model("test_resnet", num_classes=0)
    save_for_hf(model, str(tmp_path / "m"), safe_serialization=True)
    encode = opened(tmp_path / "m", device="cpu")
    rows = encode(PATCHES)
    assert rows.shape == (4, model.num_features)
    np.testing.assert_allclose(encode(PATCHES[2:3])[0], rows[2], atol=1e-5)


def test_a_model_that_gives_no_single_row_a_patch_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"shape \(1, 17, 24\); it must be one row per patch"):
        opened(saved(tmp_path / "m", arguments={"global_pool": ""}), device="cpu")


def test_a_card_is_found_in_any_case_and_revision():
    assert model_card("hf-hub:MahmoodLab/UNI@main").arguments["init_values"] == 1e-5
    assert model_card("hf_hub:paige-ai/Virchow2").pool == CLASS_AND_MEAN
    assert model_card("vit_small_patch16_224") == ModelCard()
    for card in MODEL_CARDS.values():
        assert not any(isinstance(value, str) for value in card.options().values())


def test_uni2_and_virchow_have_the_architecture_of_their_cards():
    """The arguments build, on the meta device (no memory), models of the published size."""
    with torch.device("meta"):
        uni2 = timm.create_model("vit_giant_patch14_224", **MODEL_CARDS["mahmoodlab/uni2-h"].options())
    assert uni2.num_features == 1536
    assert round(sum(p.numel() for p in uni2.parameters()) / 1e6) == 681


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("missing", [True, False])
def test_weights_that_do_not_fit_the_model_are_refused(tmp_path, classes, missing):
    """LayerScale weights that the model has no place for, or lacks, with and without a classifier: none is dropped."""
    folder = saved(tmp_path / "m", arguments={} if missing else {"init_values": 1e-5}, classes=classes)
    written = json.loads((folder / "config.json").read_text())
    if missing:
        written["model_args"]["init_values"] = 1e-5
    else:
        del written["model_args"]["init_values"]
    (folder / "config.json").write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=rf"{'Missing' if missing else 'Unexpected'} key.*blocks\.0\.ls1\.gamma"):
        opened(folder, device="cpu")


def test_weights_without_the_classifier_of_the_config_are_refused_by_key(tmp_path):
    folder = saved(tmp_path / "m", classes=0)
    written = json.loads((folder / "config.json").read_text())
    written["num_classes"] = written["model_args"]["num_classes"] = 5
    (folder / "config.json").write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r"Missing key.*head\.weight.*config\.json .*num_classes"):
        opened(folder, device="cpu")


def test_weights_are_checked_where_arguments_and_config_name_other_numbers_of_classes(tmp_path):
    """timm then checks nothing by itself."""
    folder = saved(tmp_path / "m", classes=0)
    expected = opened(folder, device="cpu")
    written = json.loads((folder / "config.json").read_text())
    written["num_classes"] = 5
    written["model_args"]["num_classes"] = 0
    (folder / "config.json").write_text(json.dumps(written))
    np.testing.assert_array_equal(opened(folder, device="cpu")(PATCHES), expected(PATCHES))
    written["model_args"]["init_values"] = 1e-5
    (folder / "config.json").write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r"Missing key.*blocks\.0\.ls1\.gamma"):
        opened(folder, device="cpu")


def test_the_pooling_of_the_config_stays_when_the_classifier_goes(tmp_path):
    """timm's reset_classifier would set this one back to the average."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5, global_pool="catavgmax")
    save_for_hf(model, str(tmp_path / "m"), model_args={"global_pool": "catavgmax"}, safe_serialization=True)
    expected = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True, num_classes=0).eval()
    encode = opened(tmp_path / "m", device="cpu")
    assert encode.width == 2 * model.num_features
    images = encode._normalise(encode._resize(torch.tensor(PATCHES).permute(0, 3, 1, 2)) / 255)
    with torch.inference_mode():
        np.testing.assert_allclose(encode(PATCHES), expected(images).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("vit_smal_patch16_224", "no model 'vit_smal_patch16_224'. Did you mean 'vit_small_patch16_224'"),
        ("MahmoodLab/UNI", r"timm\.list_models\(\) lists all; on the hub: hf-hub:OWNER/NAME$"),
        (
            "local-dir:/nowhere",
            "timm:local-dir:/nowhere: no such folder; give one with config.json and model.safetensors",
        ),
        ("local-dir:", "names no folder; write timm:local-dir:PATH"),
        ("Local-Dir:/nowhere", "no such folder"),
        ("hf_hub:", "names no repository; write timm:hf-hub:OWNER/NAME"),
        ("file:/nowhere", "unknown source 'file'"),
        ("hf-hub:someone/something", "not in the local cache.*HF_HUB_OFFLINE"),
        ("vit_small_patch16_224", "not in the local cache.*HF_HUB_OFFLINE"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_remedy(model, said, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=said):
        create_patch_encoder(f"timm:{model}", device="cpu")


class _Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_a_folder_with_pickled_weights_is_refused_before_timm_sees_it(tmp_path, monkeypatch):
    folder = saved(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save(_Payload(tmp_path / "ran"), folder / "pytorch_model.bin")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    with pytest.raises(ConfigError, match=r"model\.safetensors: no such file; .*safe_serialization=True"):
        opened(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


def publish(repository: str, files: Path, cache: Path) -> None:
    """Put the files into the local cache of the hub as the main branch of a repository."""
    folder, commit = cache / f"models--{repository.replace('/', '--')}", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    shutil.copytree(files, folder / "snapshots" / commit)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_a_repository_of_the_hub_and_a_model_of_timm_give_what_the_folder_gives(form, tmp_path, cache):
    expected = opened(saved(tmp_path / "m"), device="cpu")
    if form == "pickle":
        weights = load_file(tmp_path / "m" / "model.safetensors")
        torch.save(weights, tmp_path / "m" / "pytorch_model.bin")
        (tmp_path / "m" / "model.safetensors").unlink()
    publish("someone/something", tmp_path / "m", cache)
    encode = create_patch_encoder("timm:hf-hub:someone/something@main", device="cpu")
    assert encode.version == expected.version
    np.testing.assert_array_equal(encode(PATCHES), expected(PATCHES))

    model = timm.create_model("test_vit", num_classes=1000)
    save_for_hf(model, str(tmp_path / "timm"), safe_serialization=form == "safetensors")
    publish("timm/test_vit.r160_in1k", tmp_path / "timm", cache)
    encode = create_patch_encoder("timm:test_vit", device="cpu")
    images = encode._normalise(encode._resize(torch.tensor(PATCHES).permute(0, 3, 1, 2)) / 255)
    model.reset_classifier(0)
    with torch.inference_mode():
        np.testing.assert_allclose(encode(PATCHES), model.eval()(images).numpy(), atol=1e-5)


@pytest.mark.parametrize("model", ["hf-hub:someone/something", "test_vit"])
def test_pickled_code_never_runs_even_where_the_environment_allows_it(model, tmp_path, cache, monkeypatch):
    folder = saved(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save(_Payload(tmp_path / "ran"), folder / "pytorch_model.bin")
    publish("someone/something", folder, cache)
    publish("timm/test_vit.r160_in1k", folder, cache)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ConfigError, match=rf"timm:{model}: .*pickle .*use weights saved as safetensors$"):
        create_patch_encoder(f"timm:{model}", device="cpu")
    assert not (tmp_path / "ran").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # the payload works


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"config\.json: cannot be read as JSON"),
        ("{}", r"config\.json: architecture is None; it must be a model of timm"),
        ("[]", r"config\.json: architecture is None"),
        ('{"architecture": "vit_tiny_patch16_225"}', "architecture is 'vit_tiny_patch16_225'.*Did you mean"),
        ('{"architecture": "resnet18", "model_args": 3}', "model_args is 3; it must be an object"),
        (
            '{"architecture": "resnet18"}',
            "config.json .architecture, .* and model.safetensors must describe the same model",
        ),
        ('{"architecture": "swin_tiny_patch4_window7_224"}', "must describe the same model"),
    ],
)
def test_a_config_that_fits_no_model_or_not_the_weights_is_refused(text, said, tmp_path):
    folder = saved(tmp_path / "m")
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=said):
        opened(folder, device="cpu")


def test_torn_weights_and_a_transform_that_cannot_be_are_refused(tmp_path):
    folder = saved(tmp_path / "m", input_size=7)
    with pytest.raises(ConfigError, match=r"cannot be loaded.*pretrained_cfg"):
        opened(folder, device="cpu")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(
        ConfigError, match=r"model\.safetensors: not safetensors, or cut short .*; copy or save it again"
    ):
        opened(folder, device="cpu")


def test_wrong_patches_devices_and_precisions_are_refused(tmp_path):
    folder = saved(tmp_path / "m")
    encode = opened(folder, device="cpu")
    with pytest.raises(InputError, match="float32"):
        encode(PATCHES.astype(np.float32))  # type: ignore[arg-type]
    for options, said in (
        ({"device": "tpu"}, "--device is 'tpu'"),
        ({"device": "cuda:99"}, "CUDA devices are available"),
        ({"device": "cpu", "precision": "float61"}, "Did you mean 'float16'"),
        ({"device": "cpu", "precision": "float16"}, "on a CPU"),
    ):
        with pytest.raises(ConfigError, match=said):
            opened(folder, **options)


def test_bfloat16_on_a_cpu_is_near_float32(tmp_path):
    folder = saved(tmp_path / "m")
    full, half = opened(folder, device="cpu")(PATCHES), opened(folder, device="cpu", precision="bfloat16")(PATCHES)
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_float16_on_a_gpu_is_near_float32_on_a_cpu(tmp_path):
    folder = saved(tmp_path / "m")
    half = opened(folder)
    assert half.device.type == "cuda"
    assert half.dtype == torch.float16
    np.testing.assert_allclose(half(PATCHES), opened(folder, device="cpu")(PATCHES), atol=0.05)
    assert half.version == opened(folder, device="cpu").version


@pytest.mark.parametrize("module", ["timm", "torchvision"])
def test_a_missing_extra_names_itself(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs {module}.*pip install \"abbe\[encoders\]\""):
        create_patch_encoder("timm:vit_small_patch16_224")


def test_names_are_safe_for_folders(tmp_path):
    encode = opened(saved(tmp_path / "my model (2)"), device="cpu")
    assert encode.name == "timm-my-model-2"


class _Gate(BaseHTTPRequestHandler):
    """A hub that refuses every file as the real one refuses those of a gated repository."""

    def _refuse(self) -> None:
        self.send_response(401 if "stranger" in self.path else 403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to this model is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = _refuse

    def log_message(self, format: str, *arguments: object) -> None:
        pass


_ASK = """
import abbe
for owner in ("stranger", "unasked"):
    try:
        abbe.create_patch_encoder(f"timm:hf-hub:{owner}/model", device="cpu")
    except abbe.errors.ConfigError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_gated_model_says_how_to_get_access(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), _Gate)
    Thread(target=server.serve_forever, daemon=True).start()
    places = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    try:
        command = [sys.executable, "-c", _ASK]
        done = subprocess.run(command, env={**os.environ, **places}, capture_output=True, text=True, timeout=900)
    finally:
        server.shutdown()
        server.server_close()
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for owner, line in zip(("stranger", "unasked"), lines, strict=True):
        for said in ("gated", f"https://huggingface.co/{owner}/model", "hf auth login", "HF_TOKEN"):
            assert said in line
