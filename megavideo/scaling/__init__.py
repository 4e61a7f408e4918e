"""Scaling laws: how loss falls with parameters, tokens and compute, and what a budget is best spent on."""
