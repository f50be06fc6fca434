"""The graph of runs and tables, and its execution."""
