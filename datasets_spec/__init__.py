"""How folders of labelled volumes are laid out: one TOML file each, and the loader that reads them."""

from datasets_spec.layout import CaseFiles, DescriptionFile, Layout, load_layouts, read_layout

__all__ = ["CaseFiles", "DescriptionFile", "Layout", "load_layouts", "read_layout"]
