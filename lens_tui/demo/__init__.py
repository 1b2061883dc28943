"""The bundled model and its SAEs, and how they are found."""
