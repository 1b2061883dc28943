"""Widgets that show records and know nothing of where they came from."""
