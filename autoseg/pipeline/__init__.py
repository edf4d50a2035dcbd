"""The stages of a run and their order; every stage is a plain function of a run and its options."""
