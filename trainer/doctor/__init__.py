"""What holds a training back on this machine, and which setting changes it."""
