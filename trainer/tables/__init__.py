"""Predictions -> study boxes -> vertebra ratios -> pseudo labels -> study predictions -> submission, and scores.

Pure functions on data frames; files are read and written by their callers.
"""
