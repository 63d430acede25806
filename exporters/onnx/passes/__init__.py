"""Graph passes, one a file: cases numbered in the docstring, honest about whether anything changed."""
