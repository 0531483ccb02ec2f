"""One canonical name per patch encoder, because tools spell the same model differently.

`canonical` is used wherever two encoder names are compared; names stored in files are not changed.
"""

from __future__ import annotations

import re

# canonical name: every other spelling in use, lower case, with "_" for "-", ".", "/", ":" and spaces
_SPELLINGS: dict[str, tuple[str, ...]] = {
    "chief": ("chief_ctranspath", "chief_patch"),
    "conch_v1": ("conch", "conch_v1_0", "conch1", "mahmood_conch", "mahmoodlab_conch", "conch_vit_b_16"),
    "conch_v15": ("conch_v1_5", "conch1_5", "conch15", "mahmood_conch1_5", "mahmoodlab_conchv1_5", "conchv1_5"),
    "ctranspath": ("ctp", "ctrans_path", "xiyue_wang_ctranspath"),
    "gigapath": ("prov_gigapath", "provgigapath", "gigapath_tile", "prov_gigapath_prov_gigapath", "gigapath_v1"),
    "gpfm": (),
    "h_optimus_0": ("h_optimus0", "hoptimus0", "hoptimus_0", "bioptimus_h_optimus_0", "h0"),
    "h_optimus_1": ("h_optimus1", "hoptimus1", "hoptimus_1", "bioptimus_h_optimus_1", "h1"),
    "h0_mini": ("h_optimus_mini", "hoptimus_mini", "bioptimus_h0_mini", "h0mini"),
    "hibou_b": ("hibou_base", "histai_hibou_b"),
    "hibou_l": ("hibou_large", "histai_hibou_l"),
    "midnight": ("midnight12k", "midnight_12k", "kaiko_midnight", "kaiko_ai_midnight"),
    "musk": ("xiangjx_musk",),
    "phikon": ("phikon_v1", "owkin_phikon"),
    "phikon_v2": ("phikonv2", "phikon2", "owkin_phikon_v2"),
    "plip": ("vinid_plip",),
    "quiltnet": ("quiltnet_b_32", "quilt_net", "wisdomik_quiltnet_b_32"),
    "resnet50": ("resnet50_imagenet", "resnet_50"),
    "resnet50_trunc": ("resnet50_truncated", "resnet50_baseline", "resnet50_trunc_imagenet"),
    "uni": ("uni_v1", "uni1", "mahmood_uni", "mahmoodlab_uni"),
    "uni_v2": ("uni2", "uni2_h", "uni_2", "univ2", "uni2h", "mahmood_uni2_h", "mahmoodlab_uni2_h"),
    "virchow": ("virchow_v1", "virchow1", "paige_virchow", "paige_ai_virchow"),
    "virchow2": ("virchow_v2", "virchow_2", "paige_virchow2", "paige_ai_virchow2"),
}
_CANONICAL = {spelling: name for name, others in _SPELLINGS.items() for spelling in (name, *others)}
_HUB = re.compile(r"^(?:timm[:/])?hf[-_]hub[:/]")


def canonical(name: str | None) -> str | None:
    """The canonical name of an encoder: "UNI2-h" and "hf-hub:MahmoodLab/uni2_h" are "uni_v2". None and "" are None.

    An unknown name is only normalised: lower case, and "_" for "-", ".", "/", ":" and spaces.
    """
    if not name:
        return None
    folded = re.sub(r"[-./:\s]+", "_", _HUB.sub("", name.strip().lower())).strip("_")
    return _CANONICAL.get(folded, folded)


def same_encoder(one: str | None, other: str | None) -> bool:
    """Whether two names mean the same encoder. Two missing names count as the same."""
    return canonical(one) == canonical(other)
