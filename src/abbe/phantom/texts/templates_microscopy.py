"""Questions about what the microscope shows: tissues and their shares, changes, cells."""

from __future__ import annotations

from abbe.phantom.texts.truth import (
    AMOUNTS,
    NO_TUMOUR,
    SlideTruth,
    amount,
    by_grade,
    by_pattern,
    by_subtype,
    category,
    largest,
    yes,
)

_architecture = category("Microscopy", "Tissue Architecture and Arrangement")
_tumour = category("Microscopy", "Tumor Characteristics")
_change = category("Microscopy", "Histopathological Changes")
_cells = category("Microscopy", "Cytomorphological Characteristics")

_FRAME = ("stroma", "muscle", "fat", "gland")
_EXTENT = (NO_TUMOUR, "under 0.5 %", "0.5 % to 2 %", "over 2 %")
_GROWTH = ("forms glands", "grows in solid sheets")
_NUCLEI = ("mild", "moderate", "marked")
_PLACE = ("inside the tumour", "along the margin of the tumour", "neither inside nor along the margin")


def _extent(truth: SlideTruth) -> str:
    share = truth.share("tumour")
    return _EXTENT[(share > 0) + (share >= 0.005) + (share > 0.02)]


def _deposits(truth: SlideTruth) -> str:
    if not truth.grade:
        return NO_TUMOUR
    return "one" if truth.deposit_patches == truth.tumour_patches else "more than one"


def _density(truth: SlideTruth) -> str:
    share = truth.share("lymphocytes")
    return ("low", "moderate", "high")[(share >= 0.10) + (share > 0.30)]


MICROSCOPY = (
    _architecture(
        "dominant_tissue",
        _FRAME,
        lambda truth: largest(truth, _FRAME),
        "Which of these tissues covers most of the slide?",
        "Among the tissues named, which one takes up the largest area?",
        "Looking over the whole section, which of the following is the most extensive?",
        "Of the tissues listed, which one dominates this section?",
    ),
    _architecture(
        "gland_amount",
        AMOUNTS,
        lambda truth: amount(truth, "gland"),
        "How much of the tissue is benign glands?",
        "What share of the section do benign glands take?",
        "Benign glandular tissue makes up how much of the slide?",
        "Estimate the part of this slide that consists of benign glands.",
    ),
    _architecture(
        "fat_amount",
        AMOUNTS,
        lambda truth: amount(truth, "fat"),
        "How much of the tissue is fat?",
        "What share of the section is adipose tissue?",
        "Adipose tissue makes up how much of the slide?",
        "Estimate the part of this slide that fat occupies.",
    ),
    _architecture(
        "muscle_amount",
        AMOUNTS,
        lambda truth: amount(truth, "muscle"),
        "How much of the tissue is muscle?",
        "What share of the section is made of muscle fibres?",
        "Muscle makes up how much of the slide?",
        "Estimate the part of this slide that is muscle.",
    ),
    _architecture(
        "stroma_or_muscle",
        ("stroma", "muscle"),
        lambda truth: largest(truth, ("stroma", "muscle")),
        "Is there more stroma or more muscle?",
        "Which covers the larger area, stroma or muscle?",
        "Comparing fibrous stroma with muscle, which is more extensive?",
        "Between stroma and muscle, which one prevails on this slide?",
    ),
    _tumour(
        "tumour_extent",
        _EXTENT,
        _extent,
        "How much of the tissue is tumour?",
        "What share of the section does tumour take?",
        "Tumour makes up how much of the slide?",
        "Estimate the part of this slide that is tumour.",
    ),
    _tumour(
        "growth",
        (*_GROWTH, NO_TUMOUR),
        lambda truth: by_subtype(truth, _GROWTH),
        "How does the tumour grow?",
        "Which growth pattern does the tumour show?",
        "What is the architecture of the tumour, if there is one?",
        "Describe how tumour cells are arranged on this slide.",
    ),
    _tumour(
        "deposits",
        ("one", "more than one", NO_TUMOUR),
        _deposits,
        "How many separate tumour deposits are there?",
        "Does the tumour lie in one deposit or in several?",
        "Count the connected tumour deposits: which is right?",
        "In how many separate places does this slide hold tumour?",
    ),
    _tumour(
        "keratin",
        ("yes", "no"),
        lambda truth: yes(truth.subtype == "b" and truth.grade <= 2),
        "Does a tumour on this slide keratinise?",
        "Is there a keratinising tumour here?",
        "Can keratin formed by tumour be found?",
        "Would you report keratinisation of a tumour on this slide?",
    ),
    _change(
        "necrosis_present",
        ("yes", "no"),
        lambda truth: yes(truth.patches("necrosis") > 0),
        "Is there any necrosis?",
        "Does the section contain necrotic tissue?",
        "Can necrosis be found anywhere on the slide?",
        "Would you report necrosis on this slide?",
    ),
    _change(
        "necrosis_amount",
        AMOUNTS,
        lambda truth: amount(truth, "necrosis"),
        "How much of the tissue is necrotic?",
        "What share of the section is necrosis?",
        "Necrosis makes up how much of the slide?",
        "Estimate the part of this slide that is necrotic.",
    ),
    _change(
        "lymphocyte_density",
        ("low", "moderate", "high"),
        _density,
        "How dense is the lymphocytic infiltrate over the whole section (low under 10 %, high over 30 % of it)?",
        "Rate the amount of lymphocytes: low is under 10 %, high is over 30 % of the tissue.",
        "With under 10 % of the tissue as low and over 30 % as high, how rich is the slide in lymphocytes?",
        "Lymphocytes may cover under 10 % (low), up to 30 % (moderate) or more (high): which fits this slide?",
    ),
    _change(
        "lymphocyte_place",
        (*_PLACE, NO_TUMOUR),
        lambda truth: by_pattern(truth, _PLACE),
        "Where do lymphocytes lie with respect to the tumour?",
        "How are lymphocytes arranged around the tumour?",
        "In relation to the tumour, where is the lymphocytic infiltrate?",
        "Describe the place of lymphocytes relative to tumour on this slide.",
    ),
    _change(
        "necrosis_or_lymphocytes",
        ("necrosis", "lymphocytes"),
        lambda truth: largest(truth, ("necrosis", "lymphocytes")),
        "Is there more necrosis or more lymphocytic infiltrate?",
        "Which covers the larger area, necrosis or lymphocytes?",
        "Comparing necrosis with lymphocytes, which is more extensive?",
        "Between necrosis and lymphocytes, which one prevails on this slide?",
    ),
    _cells(
        "pleomorphism",
        (*_NUCLEI, NO_TUMOUR),
        lambda truth: by_grade(truth, _NUCLEI),
        "How pleomorphic are the tumour nuclei?",
        "What degree of nuclear pleomorphism does the tumour show?",
        "How much do nuclei of the tumour vary in size and shape?",
        "Rate the variation among tumour nuclei on this slide.",
    ),
    _cells(
        "lymphocytes_or_glands",
        ("lymphocytes", "glandular cells"),
        lambda truth: {"lymphocytes": "lymphocytes", "gland": "glandular cells", None: None}[
            largest(truth, ("lymphocytes", "gland"))
        ],
        "Which cells take up more area, lymphocytes or benign glandular cells?",
        "Are lymphocytes or benign glandular cells more widespread?",
        "Comparing lymphocytes with benign glandular cells, which fill more of the section?",
        "Between lymphocytes and benign glandular cells, which prevail on this slide?",
    ),
)
