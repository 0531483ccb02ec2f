"""Questions about the diagnosis and its consequences."""

from __future__ import annotations

from abbe.phantom.texts.template import NO_TUMOUR, Rule, by_grade, by_pattern, by_subtype, category, if_tumour, yes_if
from abbe.phantom.texts.truth import SlideTruth, risk_group

_detection = category("Diagnosis", "Disease Detection")
_classification = category("Diagnosis", "Disease Classification")
_grading = category("Diagnosis", "Grading")
_staging = category("Diagnosis", "Staging")
_differential = category("Diagnosis", "Differential Diagnosis")
_risk = category("Clinical", "Risk Factors")
_prognosis = category("Clinical", "Prognostic Assessment")
_treatment = category("Clinical", "Treatment Guidance")
_biomarker = category("Clinical", "Biomarker Analysis")

_SIZES = (NO_TUMOUR, "up to 5 patches", "6 to 20 patches", "over 20 patches")
_STAGES = ("no tumour stage", "localised, small", "localised, large", "metastatic")
_FINDINGS = ("carcinoma", "inflammation", "necrosis without tumour", "none of these")
_CERTAINTY = ("its own marks are enough", "further stains are needed")
_STEPS = ("no treatment", "excision", "excision and systemic therapy", "systemic therapy")


def _size(truth: SlideTruth) -> str:
    size = truth.deposit_patches
    return _SIZES[(size > 0) + (size > 5) + (size > 20)]


def _stage(truth: SlideTruth) -> str | None:
    if truth.metastasis is None:
        return None
    if not truth.grade:
        return _STAGES[0]
    return _STAGES[3] if truth.metastasis else _STAGES[1 + (truth.share("tumour") >= 0.02)]


def _finding(truth: SlideTruth) -> str:
    if truth.grade:
        return _FINDINGS[0]
    if truth.share("lymphocytes") > 0.30:
        return _FINDINGS[1]
    return _FINDINGS[2 if truth.patches("necrosis") else 3]


def _step(truth: SlideTruth) -> str:
    if not truth.grade:
        return _STEPS[0]
    if truth.metastasis:
        return _STEPS[3]
    return _STEPS[2 if truth.grade == 3 else 1]


DIAGNOSIS = (
    _detection(
        "tumour_present",
        yes_if(lambda truth: truth.grade > 0),
        "Is there a tumour deposit?",
        "Does the section contain tumour?",
        "Can tumour be found anywhere on the slide?",
        "Would you report tumour on this slide?",
    ),
    _detection(
        "metastasis",
        yes_if(lambda truth: truth.metastasis),
        "Is there a metastasis?",
        "Does the section show metastatic disease?",
        "Can a metastatic deposit be found?",
        "Would you report a metastasis on this slide?",
    ),
    _classification(
        "subtype",
        by_subtype("gland-forming carcinoma", "solid or keratinising carcinoma"),
        "What is the diagnosis?",
        "Which type of tumour is present, if any?",
        "How would you classify the tumour?",
        "Which diagnosis fits this slide?",
    ),
    _grading(
        "grade",
        by_grade("grade 1", "grade 2", "grade 3"),
        "What is the grade of the tumour?",
        "Which grade would you assign?",
        "How is the tumour graded?",
        "State the grade of tumour on this slide.",
    ),
    _grading(
        "high_grade",
        yes_if(lambda truth: truth.grade == 3),
        "Is there a poorly differentiated (grade 3) tumour?",
        "Does the section hold a tumour of the highest of three grades?",
        "Can grade 3 tumour be found?",
        "Would you report a grade 3 tumour on this slide?",
    ),
    _staging(
        "deposit_size",
        Rule(_SIZES, _size),
        "How large is the largest tumour deposit, counted in patches?",
        "What is the size in patches of the largest connected deposit?",
        "How many patches does the largest tumour deposit cover?",
        "Measure the largest deposit on this slide: how many patches?",
    ),
    _staging(
        "stage",
        Rule(_STAGES, _stage),
        "What is the stage (large: tumour of at least 2 % of the tissue)?",
        "Which stage applies, with large meaning at least 2 % of the tissue?",
        "How would you stage this case, if tumour of 2 % of the tissue or more is large?",
        "Taking tumour of at least 2 % of the tissue as large, which stage does this slide show?",
    ),
    _differential(
        "differential",
        Rule(_FINDINGS, _finding),
        "Which of these heads the differential diagnosis?",
        "What explains the findings best?",
        "Which of the following should be considered first?",
        "Which of these conditions does this slide speak for?",
    ),
    _differential(
        "certainty",
        if_tumour(_CERTAINTY, lambda truth: _CERTAINTY[truth.grade == 3]),
        "Is the type of the tumour plain from its morphology?",
        "Do the tumour's own marks settle its type?",
        "What does it take to tell the type of the tumour?",
        "Can the tumour be typed from this slide alone?",
    ),
)

CLINICAL = (
    _risk(
        "risk_group",
        if_tumour(("low", "intermediate", "high"), risk_group),
        "Which risk group follows from grade, tumour extent and necrosis?",
        "To what risk group do grade, extent and necrosis assign the patient?",
        "Weighing grade, extent of tumour and necrosis, what is the risk?",
        "By grade, extent and necrosis, which risk group does this slide indicate?",
    ),
    _risk(
        "necrosis_risk",
        yes_if(lambda truth: truth.grade > 0 and truth.share("necrosis") >= 0.15),
        "Is tumour together with necrosis of at least 15 % of the tissue present as a risk factor?",
        "Does the patient carry the risk factor of a tumour with at least 15 % necrosis in the section?",
        "Tumour on a slide with 15 % necrosis or more is a risk factor: is it present?",
        "Would you note, for this slide, the risk factor of tumour with 15 % necrosis or more?",
    ),
    _prognosis(
        "outlook",
        by_pattern("favourable", "intermediate", "unfavourable"),
        "What outlook does the arrangement of lymphocytes suggest?",
        "Judged by where lymphocytes lie, what is the prognosis?",
        "Which prognosis follows from lymphocytes in or around the tumour?",
        "What do lymphocytes on this slide say about the outlook?",
    ),
    _treatment(
        "next_step",
        Rule(_STEPS, _step),
        "What is the next step?",
        "Which treatment follows from these findings?",
        "How should the patient be treated?",
        "Which treatment does this slide call for?",
    ),
    _biomarker(
        "immune_pattern",
        by_pattern("inflamed", "excluded", "desert"),
        "What is the immune pattern of the tumour?",
        "Which immune phenotype does the tumour have?",
        "How would you describe the tumour's immune type?",
        "State the immune phenotype seen on this slide.",
    ),
    _biomarker(
        "marker_panel",
        by_subtype("markers of glandular origin", "markers of squamous origin"),
        "Which markers should confirm the tumour?",
        "Which panel of stains would you expect to be positive?",
        "What markers is the tumour likely to express?",
        "Which markers would you order for this slide?",
    ),
)
