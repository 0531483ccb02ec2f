from __future__ import annotations

import pytest

from abbe.store.aliases import _CANONICAL, _SPELLINGS, canonical, same_encoder


@pytest.mark.parametrize(
    ("spellings", "name"),
    [
        (("conch_v15", "conch_v1.5", "conch1_5", "mahmood-conch1_5"), "conch_v15"),
        (("conch", "CONCH_v1", "hf-hub:MahmoodLab/CONCH"), "conch_v1"),
        (("uni_v2", "uni2", "uni2-h", "UNI2-h", "hf-hub:MahmoodLab/UNI2-h", "timm:hf_hub:MahmoodLab/UNI2-h"), "uni_v2"),
        (("uni", "uni_v1", "MahmoodLab/UNI"), "uni"),
        (("virchow2", "Virchow-v2", "hf-hub:paige-ai/Virchow2"), "virchow2"),
        (("gigapath", "prov-gigapath", "hf_hub:prov-gigapath/prov-gigapath"), "gigapath"),
        (("h-optimus-0", "hoptimus0", "bioptimus/H-optimus-0"), "h_optimus_0"),
        (("h-optimus-1", "hoptimus1"), "h_optimus_1"),
        (("phikon", "phikon_v1", "owkin/phikon"), "phikon"),
        (("phikon_v2", "owkin/phikon-v2"), "phikon_v2"),
        (("ctranspath", "CTransPath"), "ctranspath"),
        (("resnet50", "ResNet-50"), "resnet50"),
        (("texture",), "texture"),
        (("my own/encoder",), "my_own_encoder"),
        ((None, ""), None),
    ],
)
def test_spellings_of_one_encoder(spellings: tuple[str | None, ...], name: str | None) -> None:
    assert [canonical(spelling) for spelling in spellings] == [name] * len(spellings)


def test_different_encoders_stay_different() -> None:
    names = [*_SPELLINGS, "texture", "conch_v16", "uni_v3", "resnet50_trunc"]
    assert len({canonical(name) for name in names}) == len(set(names))
    assert not same_encoder("uni", "uni_v2")
    assert not same_encoder("uni", None)
    assert same_encoder("", None)


def test_no_spelling_means_two_encoders() -> None:
    assert len(_CANONICAL) == sum(1 + len(others) for others in _SPELLINGS.values())
    for spelling, name in _CANONICAL.items():
        assert canonical(spelling) == name, "the table must be written as names are folded"
