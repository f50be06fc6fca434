"""What models say of one study: the answer, its flags, and how far to believe it."""
