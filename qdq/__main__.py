"""``python -m qdq``, and the command ``qdq``."""

from __future__ import annotations

import sys

from qdq.processes import shadowing_problem

__all__ = ["main"]


def main() -> None:
    """Run the command, unless modules of the user hide packages of qdq."""
    for package in ("calibration", "exporters"):
        if problem := shadowing_problem(package):
            print(f"error: {problem}", file=sys.stderr)
            sys.exit(2)
    from qdq.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
