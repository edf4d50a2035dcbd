"""How good a segmentation is, and what follows from it: metrics, tables, postprocessing, ensembles, selection."""
