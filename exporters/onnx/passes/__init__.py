"""Graph passes, one per file. The docstring of a pass numbers its cases; its result says whether anything changed."""
