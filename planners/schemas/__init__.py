"""JSON schemas of the planner's documents, for programs that read them without this one."""
