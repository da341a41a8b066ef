"""`python -m sparselens`, which also lets `accelerate launch -m sparselens` start several processes."""

from sparselens.cli import main

if __name__ == "__main__":
    main()
