"""``python -m qdq``."""

from qdq.cli.main import main

main()
