"""Nonparametric data attribution for diffusion models: a thin module behind a book of notebooks."""
