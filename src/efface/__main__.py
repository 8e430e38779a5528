"""``python -m efface`` is the command ``efface``, for launchers that start a module."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="efface")
