"""Every speed claim as the command that prints it again."""
