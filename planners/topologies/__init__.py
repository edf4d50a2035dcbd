"""The network families, one file each: stages, layers for the memory model, presets and the torch module."""
