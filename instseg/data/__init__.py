"""Data sets: formats, index, transforms, samplers, loader, checks."""
