"""`python -m datablame`."""

from datablame.cli import main

if __name__ == "__main__":
    main()
