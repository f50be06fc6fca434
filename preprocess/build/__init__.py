"""The Dask job: plan, task, state for the next build, cluster, report."""
