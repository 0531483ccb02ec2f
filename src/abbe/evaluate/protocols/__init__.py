"""How a model is judged: one file for each protocol."""
