"""How a command of this package begins, speaks and ends."""
