"""The bootsteps that join all this to Celery's worker.

Run in the worker main process. They only bind: the work is in plain objects of the other rooms.
"""
