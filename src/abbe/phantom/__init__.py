"""Slides whose truth is known: cohorts with exact labels, the class of every patch, and texts composed from both.

How a cohort comes to be, and which file does it:

1. `settings` options of a cohort and its bank; `plan` the patients and slides that follow from them
2. `tasks` (needle, mixture, spatial) and `layout` (tissue, regions, deposits): the class of every patch of a slide
3. `bank` encoded patches to draw slides from: rendered, or real ones (`mosaic`); `classes` what class numbers mean
4. `writer` slides on disk, as features or pixels, with labels and truth (`describe`) under one record
5. `render/` paints tissue: `tissue.render` gives pixels of a class, `slide_file` a whole slide
6. `texts/` reports and questions from the truth of a slide
7. `scores` oracle and ceiling of a cohort; `artefacts` adds artefacts to one; `realism` compares with real patches
"""
