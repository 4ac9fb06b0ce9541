"""Models: parts (backbones, necks, heads) and their compositions (detection)."""
