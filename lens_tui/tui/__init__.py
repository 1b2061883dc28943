"""The Textual app: screens and widgets that show worker events. Never imports MLX."""
