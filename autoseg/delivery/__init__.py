"""What a person takes away from a run: the report, its figures, packed submissions."""
