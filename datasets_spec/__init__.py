"""How folders of labelled volumes are laid out: one TOML file each, and the loader that reads them."""

from datasets_spec.layout import (
    CaseFiles,
    CaseList,
    DescriptionFile,
    Known,
    Layout,
    load_known,
    load_layouts,
    read_layout,
    read_spec,
)

__all__ = [
    "CaseFiles",
    "CaseList",
    "DescriptionFile",
    "Known",
    "Layout",
    "load_known",
    "load_layouts",
    "read_layout",
    "read_spec",
]
