"""Painting tissue: `tissue.render` gives the pixels of a class, `slide_file` whole slides.

`normal` and `carcinoma` paint the twelve classes from `layers` (nuclei and blending), `lattice` (objects), `noise`, and
`stain` (colours of a site).
"""
