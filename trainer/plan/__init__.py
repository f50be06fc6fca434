"""The run graph and what executes it."""
