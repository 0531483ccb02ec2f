"""Reports, questions and captions composed from the truth of a slide."""
