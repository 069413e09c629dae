"""Where calls were: the stacks of killed and of running ones, and how results show them.

Lives in the worker main process.
"""
