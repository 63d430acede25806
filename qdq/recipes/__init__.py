"""Recipes: rules that say which slots of a model are quantized and how; read from YAML, edited and planned."""
