"""Commands about a model: predictions, weights, plots, examinations, and the data that it learns from."""
