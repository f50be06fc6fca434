"""A compressed frame -> stored values -> uint8: choice of the decoder, guards before it, checks after it."""
