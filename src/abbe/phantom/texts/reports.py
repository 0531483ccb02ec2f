"""The report of a slide: sentences composed from its truth, each with several wordings."""

from __future__ import annotations

from abbe.phantom.draw import pick, shuffled
from abbe.phantom.texts.truth import SlideTruth, largest, risk_group

_NAMES = {"stroma": "fibrous stroma", "muscle": "muscle", "fat": "adipose tissue", "gland": "benign glands"}
_SHARE = (
    "{name} makes up {share} of the tissue.",
    "About {share} of the section is {name}.",
    "{name} takes {share}.",
    "{name}: {share}.",
)
_MOST = (
    "The section is dominated by {name}.",
    "{name} prevails.",
    "Mostly {name}.",
    "The largest part is {name}.",
)
_NECROSIS = (
    "Necrosis is present ({share}).",
    "There is necrosis, about {share} of the area.",
    "Necrotic areas cover {share}.",
)
_NO_NECROSIS = ("No necrosis.", "Necrosis is not seen.", "The tissue is free of necrosis.")
_LYMPHOCYTES = (
    "Lymphocytes cover {share} of the section.",
    "A lymphocytic infiltrate is seen over {share}.",
    "Lymphocytic infiltrate, {share} of the area.",
)
_NO_LYMPHOCYTES = ("No lymphocytic infiltrate.", "Lymphocytes are sparse.", "There is no dense lymphoid infiltrate.")
_TUMOUR = (
    "There is a {kind}, grade {grade}, covering {share} of the tissue.",
    "A grade {grade} {kind} is present and takes {share} of the area.",
    "Diagnosis: {kind}, grade {grade} ({share}).",
    "Findings are those of a {kind}, grade {grade}, in {share} of the section.",
)
_TYPES = {
    "a": ("gland-forming carcinoma", "carcinoma forming glands"),
    "b": ("solid or keratinising carcinoma", "carcinoma growing in solid or keratinising sheets"),
}
_DEPOSIT = (
    "The largest deposit measures {size}.",
    "Its largest connected deposit is {size}.",
    "Largest focus: {size}.",
)
_NO_TUMOUR = ("No tumour is seen.", "There is no evidence of tumour.", "Negative for tumour.")
_PATTERNS = {
    "inside": ("Lymphocytes infiltrate the tumour.", "Lymphocytes are found inside the tumour."),
    "margin": ("Lymphocytes gather at the tumour's margin.", "Lymphocytes line the margin of the tumour."),
    "none": ("Lymphocytes keep away from the tumour.", "The tumour is not accompanied by lymphocytes."),
}
_METASTASIS = {
    True: ("Metastatic disease.", "The deposit is a metastasis."),
    False: ("No metastasis.", "No metastatic disease is seen."),
}
_RISK = ("Risk group: {risk}.", "By grade, extent and necrosis the risk is {risk}.", "The case is of {risk} risk.")


def report_text(truth: SlideTruth, *, seed: int) -> str:
    """The report of one slide, a function of truth and seed. Shares are rounded to 1 %."""

    def say(wordings: tuple[str, ...], **values: object) -> str:
        text = pick(wordings, seed, truth.seed, truth.slide_id, wordings).format(**values)
        return text[0].upper() + text[1:]

    tissue = []
    most = largest(truth, tuple(_NAMES))
    if most:
        tissue.append(say(_MOST, name=_NAMES[most]))
    for name in shuffled([name for name in _NAMES if truth.patches(name)], seed, truth.seed, truth.slide_id):
        wording = pick(_SHARE, seed, truth.seed, truth.slide_id, name)
        tissue.append(say((wording,), name=_NAMES[name], share=_percent(truth.share(name))))
    change = []
    for name, present, absent in (
        ("necrosis", _NECROSIS, _NO_NECROSIS),
        ("lymphocytes", _LYMPHOCYTES, _NO_LYMPHOCYTES),
    ):
        change.append(say(present if truth.patches(name) else absent, share=_percent(truth.share(name))))
    tumour = [say(_NO_TUMOUR)]
    if truth.grade:
        kind = say(_TYPES[truth.subtype])
        size = f"{truth.deposit_patches} patch{'es' * (truth.deposit_patches > 1)}"
        tumour = [
            say(_TUMOUR, kind=kind[0].lower() + kind[1:], grade=truth.grade, share=_percent(truth.share("tumour"))),
            say(_DEPOSIT, size=size),
            say(_PATTERNS[truth.til_pattern]),
            say(_RISK, risk=risk_group(truth)),
        ]
    if truth.metastasis is not None:
        tumour.append(say(_METASTASIS[truth.metastasis]))
    # As in real reports the tumour comes first or last; the other sentences keep their order within a paragraph.
    parts = shuffled([tuple(tissue), tuple(change)], seed, truth.seed, truth.slide_id)
    first = pick((True, False), seed, truth.seed, truth.slide_id, "first")
    ordered = [tuple(tumour), *parts] if first else [*parts, tuple(tumour)]
    return " ".join(sentence for part in ordered for sentence in part)


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"
