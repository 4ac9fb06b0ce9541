"""Drawing instances on images, and curves of a run."""
