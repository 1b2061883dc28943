"""``python -m lens_tui`` is ``mlx-lens-tui``."""

from lens_tui.cli import main

if __name__ == "__main__":
    main()
