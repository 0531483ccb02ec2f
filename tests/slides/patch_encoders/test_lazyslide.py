from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from abbe import create_patch_encoder
from abbe.errors import ConfigError
from abbe.slides.patch_encoders.lazyslide import tensors_only


def test_a_missing_extra_names_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "lazyslide_models", None)
    with pytest.raises(ConfigError, match=r"needs lazyslide_models.*pip install \"abbe\[lazyslide\]\""):
        create_patch_encoder("lazyslide:uni")


class _Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


def test_pickled_code_never_runs_whatever_a_model_asks_torch_for(tmp_path, monkeypatch):
    torch.save(_Payload(tmp_path / "ran"), tmp_path / "weights.bin")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with (
        pytest.raises(ConfigError, match=r"lazyslide:x: .*use weights saved as safetensors$") as caught,
        tensors_only("lazyslide:x"),
    ):
        torch.load(tmp_path / "weights.bin", weights_only=False)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.fixture
def models():
    return pytest.importorskip("lazyslide_models", reason='needs the extra "lazyslide"')


def test_a_registered_model_encodes_by_its_own_transform(models):
    name = "abbe-test-tiny"
    if name not in models.MODEL_REGISTRY:

        class Tiny(models.TimmModel):
            def __init__(self) -> None:
                torch.manual_seed(0)
                super().__init__("vit_tiny_patch16_224", pretrained=False)

        models.register(key=name, task=models.ModelTask.vision)(Tiny)
    encode = create_patch_encoder(f"lazyslide:{name}", device="cpu")
    patches = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    rows = encode(patches)
    assert rows.dtype == np.float32
    assert rows.shape == (3, encode.width) == (3, 192)
    assert encode.name == "lazyslide-abbe-test-tiny"
    np.testing.assert_allclose(encode(patches[1:2])[0], rows[1], atol=1e-5)
    model = models.MODEL_REGISTRY[name]()
    transform = model.get_transform()
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([transform(patch) for patch in patches])).numpy()
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert encode.version == create_patch_encoder(f"lazyslide:{name}", device="cpu").version


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unii", "Did you mean 'uni'"),
        ("instanseg", "does not encode images"),
        ("uni", "not in the local cache"),
        ("phikon", "cannot be loaded.*hf auth login"),
        ("hibou-b", "runs code from its repository"),
    ],
)
def test_what_cannot_be_used_is_refused(models, name, said):
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        create_patch_encoder(f"lazyslide:{name}", device="cpu")
