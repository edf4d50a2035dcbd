"""One file for each decision that a plan consists of, as pure functions with a reason."""
