"""The one MLX thread: jobs in, events out. Importing this package does not import MLX."""
