"""``python -m fxtune``."""

from fxtune.cli import main

if __name__ == "__main__":
    main()
