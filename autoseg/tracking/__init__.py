"""What a run reports while it works: progress and history."""
