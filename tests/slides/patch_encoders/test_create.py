import numpy as np
import pytest
import torch

import abbe
from abbe.errors import ConfigError
from abbe.slides.patch_encoders import PATCH_ENCODERS, create_patch_encoder


@pytest.mark.parametrize("name", PATCH_ENCODERS)
def test_the_contract(name):
    encode = abbe.create_patch_encoder(name)
    patches = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    features = encode(patches)
    assert isinstance(features, np.ndarray)
    assert features.dtype == np.float32
    assert features.shape == (3, encode.width)
    assert np.isfinite(features).all()
    assert encode.name == name
    assert np.array_equal(encode(patches[1:2])[0], features[1])
    assert np.array_equal(encode(torch.from_numpy(patches)), features)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'textur'\. Did you mean 'texture'\?"):
        create_patch_encoder("textur")


@pytest.mark.parametrize("family", ["timm", "lazyslide"])
def test_a_family_without_a_model_says_how_to_name_one(family):
    for name in (family, f"{family}:"):
        with pytest.raises(ConfigError, match=rf"names no model; write for example '{family}:"):
            create_patch_encoder(name)


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'tim:resnet18'. Known: lazyslide:NAME, texture, timm:MODEL"):
        create_patch_encoder("tim:resnet18")


def test_texture_takes_a_device_and_a_precision_and_stays_what_it_is():
    patches = np.full((1, 32, 32, 3), 200, np.uint8)
    there = create_patch_encoder("texture", device="cpu", precision="bfloat16")
    assert np.array_equal(there(patches), create_patch_encoder("texture")(patches))
