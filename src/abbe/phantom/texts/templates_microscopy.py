"""Questions about what the microscope shows: tissues and their shares, changes, cells."""

from __future__ import annotations

from abbe.phantom.texts.template import (
    NO_TUMOUR,
    Rule,
    amount,
    by_grade,
    by_pattern,
    by_subtype,
    category,
    if_tumour,
    most_of,
    yes_if,
)
from abbe.phantom.texts.truth import SlideTruth

_architecture = category("Microscopy", "Tissue Architecture and Arrangement")
_tumour = category("Microscopy", "Tumor Characteristics")
_change = category("Microscopy", "Histopathological Changes")
_cells = category("Microscopy", "Cytomorphological Characteristics")

_EXTENT = (NO_TUMOUR, "under 0.5 %", "0.5 % to 2 %", "over 2 %")
_DENSITIES = ("low", "moderate", "high")
_DEPOSITS = ("one", "more than one")


def _extent(truth: SlideTruth) -> str:
    share = truth.share("tumour")
    return _EXTENT[(share > 0) + (share >= 0.005) + (share > 0.02)]


def _density(truth: SlideTruth) -> str:
    share = truth.share("lymphocytes")
    return _DENSITIES[(share >= 0.10) + (share > 0.30)]


MICROSCOPY = (
    _architecture(
        "dominant_tissue",
        most_of("stroma", "muscle", "fat", "gland"),
        "Which of these tissues covers most of the slide?",
        "Among the tissues named, which one takes up the largest area?",
        "Looking over the whole section, which of the following is the most extensive?",
        "Of the tissues listed, which one dominates this section?",
    ),
    _architecture(
        "gland_amount",
        amount("gland"),
        "How much of the tissue is benign glands?",
        "What share of the section do benign glands take?",
        "Benign glandular tissue makes up how much of the slide?",
        "Estimate the part of this slide that consists of benign glands.",
    ),
    _architecture(
        "fat_amount",
        amount("fat"),
        "How much of the tissue is fat?",
        "What share of the section is adipose tissue?",
        "Adipose tissue makes up how much of the slide?",
        "Estimate the part of this slide that fat occupies.",
    ),
    _architecture(
        "muscle_amount",
        amount("muscle"),
        "How much of the tissue is muscle?",
        "What share of the section is made of muscle fibres?",
        "Muscle makes up how much of the slide?",
        "Estimate the part of this slide that is muscle.",
    ),
    _architecture(
        "stroma_or_muscle",
        most_of("stroma", "muscle"),
        "Is there more stroma or more muscle?",
        "Which covers the larger area, stroma or muscle?",
        "Comparing fibrous stroma with muscle, which is more extensive?",
        "Between stroma and muscle, which one prevails on this slide?",
    ),
    _tumour(
        "tumour_extent",
        Rule(_EXTENT, _extent),
        "How much of the tissue is tumour?",
        "What share of the section does tumour take?",
        "Tumour makes up how much of the slide?",
        "Estimate the part of this slide that is tumour.",
    ),
    _tumour(
        "growth",
        by_subtype("forms glands", "grows in solid sheets"),
        "How does the tumour grow?",
        "Which growth pattern does the tumour show?",
        "What is the architecture of the tumour, if there is one?",
        "Describe how tumour cells are arranged on this slide.",
    ),
    _tumour(
        "deposits",
        if_tumour(_DEPOSITS, lambda truth: _DEPOSITS[truth.deposit_patches < truth.tumour_patches]),
        "How many separate tumour deposits are there?",
        "Does the tumour lie in one deposit or in several?",
        "Count the connected tumour deposits: which is right?",
        "In how many separate places does this slide hold tumour?",
    ),
    _tumour(
        "keratin",
        yes_if(lambda truth: truth.subtype == "b" and truth.grade <= 2),
        "Does a tumour on this slide keratinise?",
        "Is there a keratinising tumour here?",
        "Can keratin formed by tumour be found?",
        "Would you report keratinisation of a tumour on this slide?",
    ),
    _change(
        "necrosis_present",
        yes_if(lambda truth: truth.patches("necrosis") > 0),
        "Is there any necrosis?",
        "Does the section contain necrotic tissue?",
        "Can necrosis be found anywhere on the slide?",
        "Would you report necrosis on this slide?",
    ),
    _change(
        "necrosis_amount",
        amount("necrosis"),
        "How much of the tissue is necrotic?",
        "What share of the section is necrosis?",
        "Necrosis makes up how much of the slide?",
        "Estimate the part of this slide that is necrotic.",
    ),
    _change(
        "lymphocyte_density",
        Rule(_DENSITIES, _density),
        "How dense is the lymphocytic infiltrate over the whole section (low under 10 %, high over 30 % of it)?",
        "Rate the amount of lymphocytes: low is under 10 %, high is over 30 % of the tissue.",
        "With under 10 % of the tissue as low and over 30 % as high, how rich is the slide in lymphocytes?",
        "Lymphocytes may cover under 10 % (low), up to 30 % (moderate) or more (high): which fits this slide?",
    ),
    _change(
        "lymphocyte_place",
        by_pattern("inside the tumour", "along the margin of the tumour", "neither inside nor along the margin"),
        "Where do lymphocytes lie with respect to the tumour?",
        "How are lymphocytes arranged around the tumour?",
        "In relation to the tumour, where is the lymphocytic infiltrate?",
        "Describe the place of lymphocytes relative to tumour on this slide.",
    ),
    _change(
        "necrosis_or_lymphocytes",
        most_of("necrosis", "lymphocytes"),
        "Is there more necrosis or more lymphocytic infiltrate?",
        "Which covers the larger area, necrosis or lymphocytes?",
        "Comparing necrosis with lymphocytes, which is more extensive?",
        "Between necrosis and lymphocytes, which one prevails on this slide?",
    ),
    _cells(
        "pleomorphism",
        by_grade("mild", "moderate", "marked"),
        "How pleomorphic are the tumour nuclei?",
        "What degree of nuclear pleomorphism does the tumour show?",
        "How much do nuclei of the tumour vary in size and shape?",
        "Rate the variation among tumour nuclei on this slide.",
    ),
    _cells(
        "lymphocytes_or_glands",
        most_of("lymphocytes", "gland", words=("lymphocytes", "glandular cells")),
        "Which cells take up more area, lymphocytes or benign glandular cells?",
        "Are lymphocytes or benign glandular cells more widespread?",
        "Comparing lymphocytes with benign glandular cells, which fill more of the section?",
        "Between lymphocytes and benign glandular cells, which prevail on this slide?",
    ),
)
