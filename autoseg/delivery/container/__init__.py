"""Containers for challenges: building them, the program inside, and rehearsing them as a platform runs them."""
