"""Work over several processes and machines: a Dask cluster as an executor."""
