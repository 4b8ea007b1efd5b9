"""`python -m datablame`."""

from datablame.cli.app import main

if __name__ == "__main__":
    main()
