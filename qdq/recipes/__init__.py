"""Recipes: which slots of a model are quantized and how, as rules that can be read from YAML, edited and explained."""
