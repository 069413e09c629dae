"""The sending side: options of calls, request scopes, results, and queries to workers.

Runs in programs that send calls, and in calls that send others. Imports nothing of the worker.
"""
