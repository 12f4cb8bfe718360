"""``python -m secretsvc``: the same as the command ``secretsvc``."""

from __future__ import annotations

import sys

from secretsvc.cli import main

if __name__ == "__main__":
    sys.exit(main())
