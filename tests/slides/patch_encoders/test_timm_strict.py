"""No family of timm loads weights that do not fit the model."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import model_entrypoint, save_for_hf

from abbe import create_patch_encoder
from abbe.errors import ConfigError

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
DAVIT = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64), "num_heads": (1, 1, 1, 1)}
SMALL = ("test_", "pico", "atto", "femto", "nano", "tiny", "_s", "small", "050", "18", "")


def saved(folder: Path, name: str, arguments: dict, *, missing: bool = False) -> str:
    """The encoder's name of a folder with random weights, without one of them if `missing`."""
    model = timm.create_model(name, num_classes=3, **arguments)
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    if missing:
        weights = load_file(folder / "model.safetensors")
        del weights[[key for key in weights if key.endswith("weight")][1]]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return f"timm:local-dir:{folder}"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}),
        ("test_efficientnet", {}),
        ("mobilenetv3_small_050", {}),
        ("hardcorenas_a", {}),
        ("vit_base_patch16_siglip_224", VIT),
    ],
)
def test_weights_that_fit_are_loaded_and_missing_ones_refused(name, arguments, tmp_path):
    assert create_patch_encoder(saved(tmp_path / "whole", name, arguments), device="cpu").width
    with pytest.raises(ConfigError, match=r"Missing key.*weight"):
        create_patch_encoder(saved(tmp_path / "torn", name, arguments, missing=True), device="cpu")


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("dla46_c", {}),
        ("davit_base_fl", DAVIT),
        ("vit_base_patch16_siglip_gap_224", VIT),
        ("vit_base_patch16_siglip_224", VIT | {"global_pool": "avg"}),
    ],
)
def test_a_family_that_timm_loads_without_the_check_is_refused(name, arguments, missing, tmp_path):
    folder = saved(tmp_path / "m", name, arguments, missing=missing)
    with pytest.raises(ConfigError, match=rf"{folder}.*without checking"):
        create_patch_encoder(folder, device="cpu")


def test_weights_of_fcmae_without_the_final_normalisation_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    model = timm.create_model("convnextv2_atto", num_classes=0)
    save_for_hf(model, str(tmp_path / "m"), safe_serialization=True)
    weights = load_file(tmp_path / "m" / "model.safetensors")
    lacking = {key: value for key, value in weights.items() if not key.startswith("head.norm")}
    save_file(lacking, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    store, commit = tmp_path / "cache" / "models--timm--convnextv2_atto.fcmae", "0" * 40
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(commit)
    shutil.copytree(tmp_path / "m", store / "snapshots" / commit)
    with pytest.raises(ConfigError, match=r"convnextv2_atto\.fcmae.*Missing key.*head\.norm\.weight"):
        create_patch_encoder("timm:convnextv2_atto.fcmae", device="cpu")


def test_a_folder_cannot_switch_the_check_off(tmp_path):
    folder = saved(tmp_path / "m", "convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}, missing=True)
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"model_args": {', '"model_args": {"pretrained_strict": false,', 1))
    assert "pretrained_strict" in config.read_text()
    with pytest.raises(ConfigError, match=r"Missing key.*weight"):
        create_patch_encoder(folder, device="cpu")


@pytest.mark.long
def test_no_constructor_of_timm_is_given_the_argument():
    """One small model of every module of timm, on the meta device (no memory)."""
    modules = defaultdict(list)
    for name in timm.list_models():
        modules[model_entrypoint(name).__module__.rpartition(".")[2]].append(name)
    refusing = set()
    for module, names in modules.items():
        name = next(name for part in SMALL for name in names if part in name)
        try:
            with torch.device("meta"):
                timm.create_model(name, pretrained_strict=True)
        except TypeError as error:
            if "multiple values for keyword argument 'pretrained_strict'" not in str(error):
                raise
            refusing.add(module)
    assert len(modules) > 50
    assert refusing <= {"dla", "hardcorenas", "inception_v3", "mobilenetv3", "mobilenetv5"}
