"""The schedule: what is trained for how long on which machine."""
