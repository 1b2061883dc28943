"""A server of steered completions: OpenAI's HTTP interface over one MLX thread and one open batch."""
