"""What a person asks for, on the caller's thread; the worker, the command line and the library share it."""
