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
