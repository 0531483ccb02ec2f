"""Pictures: what a model kept, drawn on the slide, and plots of what was measured."""
