"""Other programs that share models and plans with this one."""
