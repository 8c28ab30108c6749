"""`python -m neuropeft VERB ...`."""

from neuropeft.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
