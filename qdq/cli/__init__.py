"""The command line, one file a command: the only room that sees every other."""

__all__: list[str] = []
