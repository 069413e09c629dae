"""The bootsteps that connect this package to Celery's worker.

Run in the worker main process. They only connect: the work is in plain objects of other packages.
"""
