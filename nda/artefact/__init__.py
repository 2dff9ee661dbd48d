"""Running the notebooks, shipping the results."""
