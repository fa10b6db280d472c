"""`python -m tritpress` is the command line."""

from tritpress.cli import main

if __name__ == "__main__":
    main()
