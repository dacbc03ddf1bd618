"""``python -m lilnetx_mini``: the command line."""

from .cli import main

if __name__ == "__main__":
    main()
