"""Entry point of `python -m sparselens`, and of `accelerate launch -m sparselens` for several processes."""

from sparselens.cli import main

if __name__ == "__main__":
    main()
