"""Typed configuration: the schema, the strict loader, and the map from names to classes."""
