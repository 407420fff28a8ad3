"""`python -m imagegen` is the command imagegen."""

from imagegen.cli.main import main

if __name__ == "__main__":
    main()
