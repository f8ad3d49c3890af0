"""`python -m clframe`: the same as the command `clframe`."""

from __future__ import annotations

from clframe.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
