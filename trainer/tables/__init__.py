"""Predictions -> study boxes -> vertebra ratios -> pseudo labels -> study predictions -> submission, and scores.

Pure functions on data frames; their callers read and write files.
"""
