"""What lies on disk: the layouts other tools write and read, and the one way anything of ours gets there."""
