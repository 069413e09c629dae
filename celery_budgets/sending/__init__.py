"""What a caller gives along with a call, and how it asks workers: options, scopes, results.

Runs in programs that send calls, and in calls that send others. Imports nothing of a worker.
"""
