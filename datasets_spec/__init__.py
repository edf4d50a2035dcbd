"""How folders of labelled volumes are laid out: one TOML file each, and the loader that reads them."""

from datasets_spec.layout import (
    CaseFiles,
    CaseList,
    DescriptionFile,
    Known,
    Layout,
    all_layouts,
    load_known,
    load_layouts,
    read_layout,
    read_spec,
    unknown_layout,
)

__all__ = [
    "CaseFiles",
    "CaseList",
    "DescriptionFile",
    "Known",
    "Layout",
    "all_layouts",
    "load_known",
    "load_layouts",
    "read_layout",
    "read_spec",
    "unknown_layout",
]
