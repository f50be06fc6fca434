"""Pictures to check by eye: contact sheets of what the models are shown, and figures of the tables that runs leave behind.

Drawn with matplotlib, which is imported when there is something to draw. The same settings and inputs give the same bytes.
"""
