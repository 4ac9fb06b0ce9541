"""Weights of other projects in instseg's names; a file for each source."""
