"""From a slide file to patches, and from patches to a bag of features."""
