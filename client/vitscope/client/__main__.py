"""`python -m vitscope.client` is the command `vitscope`."""

from vitscope.client.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
