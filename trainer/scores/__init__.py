"""Truth, baselines, score terms, and scores with bounds."""
