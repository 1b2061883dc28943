"""Losses, divergences, dose-response and the search for a scale."""
