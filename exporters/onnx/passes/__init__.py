"""Graph passes: one a file, each with its cases numbered in its docstring, each honest about whether it changed anything."""
