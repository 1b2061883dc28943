"""What is read or changed inside a forward pass, and where."""
