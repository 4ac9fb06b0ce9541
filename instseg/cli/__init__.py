"""What the `instseg` command and the scripts in `tools/` call."""
