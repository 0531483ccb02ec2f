"""The classifier of tokens, and saving and loading it."""
