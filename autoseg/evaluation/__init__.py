"""How good a segmentation is: metrics, tables, postprocessing, ensembles, selection."""
