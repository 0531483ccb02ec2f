"""Pictures: what was kept, shown on the slide."""
