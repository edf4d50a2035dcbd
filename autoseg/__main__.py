"""``python -m autoseg`` is the command ``autoseg``."""

from autoseg.cli import main

if __name__ == "__main__":
    main()
