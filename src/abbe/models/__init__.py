"""What answers from tokens: the classifier, and saving and loading."""
