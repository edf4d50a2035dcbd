"""What a run delivers: the report, its figures, packed submissions."""
