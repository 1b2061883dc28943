"""One file per screen, each with its stylesheet beside it."""
