"""`python -m flagger` is the `flagger` command."""

from flagger.cli import main

if __name__ == "__main__":
    main()
